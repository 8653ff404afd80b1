"""Prompts and a latent from files: whatever the layout, one list; what is wrong with it is said by row; a digest is kept to."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from hub import Hub

from sdbench import api, suites
from sdbench.assets import catalogue, prompts
from sdbench.errors import MissingError, UserError
from sdbench.generate import initial_noise, list_jobs
from sdbench.run import requirements
from sdbench.settings import Sampling
from sdbench.suites import Noise, Prompts, Suite
from sdbench.validation import validate

ROOT = Path(__file__).parents[2]
CAPTIONS = ["a red square", "Übung, mit Komma", 'say "hello"', "None", "a red square", "last"]
SAMPLING = Sampling(steps=1, guidance_scale=1, size_px=16, dtype="float32", batch=2)
SHAPE = (4, 2, 2)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `datasets` keeps what it opened; it asks no Hub. No ./suites."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("SDBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def suite(path: Path | str, n: int = 6, noise: Noise | None = None, **more: Any) -> Suite:
    listed = Prompts(source="dataset", path=str(path), n=n, **more)
    return Suite(name="own", version=1, family="scenes", description="", prompts=listed, sampling=SAMPLING, noise=noise or Noise())


def drawn(path: Path | str, n: int = 6, **more: Any) -> list[str]:
    return list(suite(path, n, **more).prompt_list().values())


def written(folder: Path, kind: str) -> Path:
    folder.mkdir(exist_ok=True)
    table, path = datasets.Dataset.from_dict({"id": list(range(6)), "caption": CAPTIONS}), folder / f"list.{kind}"
    match kind:
        case "parquet":
            table.to_parquet(path)
        case "csv":
            table.to_csv(path, index=False)
        case "tsv":
            table.to_csv(path, sep="\t", index=False)
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in table))
        case "json":
            path.write_text(json.dumps(CAPTIONS))
        case "txt":
            path.write_text("\n".join(CAPTIONS) + "\n")
    return path


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json", "txt"])
def test_every_layout_gives_the_same_list(kind: str, tmp_path: Path) -> None:
    assert drawn(written(tmp_path, kind)) == CAPTIONS


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_word_that_csv_readers_take_for_nothing_is_said_by_row(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, kind)
    assert drawn(path, 3) == CAPTIONS[:3]
    with pytest.raises(UserError, match=rf"prompts .*list\.{kind}: row 3 is empty, found None"):
        drawn(path)


@pytest.mark.parametrize(("row", "found"), [(None, "None"), ("", "''"), ("  \t", r"'  \\t'")])
def test_an_empty_prompt_is_refused_by_row(row: str | None, found: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"prompt": ["one", row, "three"]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(UserError, match=rf"row 1 is empty, found {found}; write a prompt, or remove the row"):
        drawn(tmp_path / "p.parquet", 3)
    assert drawn(tmp_path / "p.parquet", 1) == ["one"]


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"prompt": [0.5, float("nan")]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"column 'prompt' holds .*float64.*; expected text"):
        drawn(tmp_path / "p.parquet", 2)


def test_a_seed_draws_without_replacement_and_0_takes_the_first(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\n".join(f"prompt {row}" for row in range(50)) + "\n")
    assert drawn(path, 5) == [f"prompt {row}" for row in range(5)]
    one, other = drawn(path, 20, seed=1), drawn(path, 20, seed=2)
    assert len(set(one)) == len(set(other)) == 20
    assert one != other
    assert one == drawn(path, 20, seed=1)
    assert one[:5] == drawn(path, 5, seed=1)


def test_too_few_rows_and_an_unclear_column_are_errors(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"prompt": ["a"], "caption": ["b"], "other": ["c"]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"caption and prompt|prompt and caption"):
        drawn(tmp_path / "p.parquet", 1)
    assert drawn(tmp_path / "p.parquet", 1, column="other") == ["c"]
    with pytest.raises(UserError, match="did you mean 'caption'"):
        drawn(tmp_path / "p.parquet", 1, column="captoin")
    with pytest.raises(UserError, match="hold 1 rows; the suite asks for 2"):
        drawn(tmp_path / "p.parquet", 2, column="other")


def test_a_list_is_named_by_its_digest_and_another_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "txt")
    digest = hashlib.sha256(json.dumps(CAPTIONS).encode()).hexdigest()
    plain, stated = suite(path), suite(path, digest=digest)
    assert plain.describe_prompts() == f"6 of {path}, digest {digest} (unverified), 1 of them repeat an earlier one"
    assert stated.describe_prompts() == f"6 of {path}, digest {digest}, 1 of them repeat an earlier one"
    assert len(plain.prompt_list()) == 6  # a repeated prompt has an id of its own
    wrong = suite(path, digest="0" * 64)
    for ask in (wrong.prompt_list, wrong.describe_prompts, lambda: wrong.id):
        with pytest.raises(UserError, match=f"the list of prompts .* has digest {digest}, but the suite states 0000"):
            ask()
    assert api.Overrides(n=2).apply(stated).prompt_list().keys() == dict(list(plain.prompt_list().items())[:2]).keys()
    elsewhere = written(tmp_path / "elsewhere", "jsonl")
    assert stated.id == plain.id == suite(elsewhere, column="caption").id  # by what is in the list, wherever it lies
    assert suite(path, n=5).id != plain.id
    some = suite(path, digest=digest, looked=3)  # of the same list
    assert list(some.prompt_list()) == sorted(suites.look_order([*plain.prompt_list()], plain.sampling.batch)[:3])
    assert some.describe_prompts().startswith(f"3 of {path}, digest ")
    assert some.id != stated.id
    assert suites.load("quality").describe_prompts() == ""


def test_a_hub_name_that_is_not_here_is_missing() -> None:
    with pytest.raises(MissingError, match=r"cannot read 'owner/prompts' as a dataset \(.*Where there is a network"):
        drawn("owner/prompts", 1)


def test_a_hub_data_set_is_fetched_once_and_then_read_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched as a user has it, by a process whose environment names the mirror."""
    written(tmp_path, "parquet")
    hub = Hub(tmp_path / "served")
    hub.put("datasets/owner/prompts/data/test-00000-of-00001.parquet", (tmp_path / "list.parquet").read_bytes())
    code = """
from sdbench.run import requirements
from sdbench.suites import Prompts, Suite
listed = Prompts(source="dataset", path="owner/prompts", split="test", n=3)
suite = Suite(name="own", version=1, description="", prompts=listed)
print(requirements.inputs_are_here(suite), suite.describe_prompts())
"""
    home = tmp_path / "hf"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    hub.shutdown()
    hub.server_close()
    words = f"3 of owner/prompts, digest {hashlib.sha256(json.dumps(CAPTIONS[:3]).encode()).hexdigest()} (unverified)"
    assert done.stdout.strip() == f"False {words}", done.stderr

    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    offline = suite("owner/prompts", 3, split="test")
    assert requirements.inputs_are_here(offline)
    assert offline.describe_prompts() == words


def test_a_file_beside_the_suites_is_found(tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    written(tmp_path / "suites", "txt")
    assert drawn("list.txt") == CAPTIONS


def test_an_asset_s_lists_are_one_and_verified_by_its_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weights" / "lists" / "in"
    folder.mkdir(parents=True)
    for name, texts in (("b", CAPTIONS[3:]), ("a", CAPTIONS[:3])):
        (folder / f"{name}.json").write_text(json.dumps(texts))
    digests = [hashlib.sha256((folder / f"{name}.json").read_bytes()).hexdigest() for name in "ab"]

    def listed(*stated: str | None) -> catalogue.Asset:
        return catalogue.Asset(
            "lists", "dataset:owner/lists", tuple(catalogue.File(f"in/{name}.json", 9, sha) for name, sha in zip("ab", stated, strict=True))
        )

    monkeypatch.setattr(catalogue, "ASSETS", {"lists": listed(*digests)})
    own = suite("asset:lists/in/*.json")
    assert list(own.prompt_list().values()) == CAPTIONS
    assert "unverified" not in own.describe_prompts()
    monkeypatch.setattr(catalogue, "ASSETS", {"lists": listed(digests[0], None)})
    assert "unverified" in own.describe_prompts()
    with pytest.raises(UserError, match="unknown asset 'list'; did you mean 'lists'"):
        drawn("asset:list/in/*.json")


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffone\r\n\n  two\u2028and a half\x85 \nÜbung".encode())
    assert prompts.read_lines(path) == ("one", "two\u2028and a half", "Übung")
    path.write_bytes("Übung".encode("latin-1"))
    for file in (path, tmp_path / "nowhere", tmp_path):
        with pytest.raises(UserError, match=rf"prompts {file} cannot be read as UTF-8 text \(.*a prompt a line"):
            prompts.read_lines(file)


@pytest.mark.parametrize(("name", "lacks"), [("coco-30k", "sayakpaul/coco"), ("hpdv2", "hpdv2-prompts"), ("mlperf-sdxl", "mlperf-")])
def test_shipped_suites_without_their_prompts_say_what_is_missing(name: str, lacks: str) -> None:
    shipped = suites.load(name)
    for ask in (shipped.prompt_list, lambda: shipped.id):
        with pytest.raises(MissingError, match=lacks):
            ask()


@pytest.mark.parametrize(
    ("prompt", "expected"), [({"source": "dataset"}, "'dataset' needs 'path'"), ({"source": "file"}, "'file' needs 'file'")]
)
def test_a_source_without_its_place_is_an_error(prompt: dict[str, str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        validate(Suite, {"name": "x", "version": 1, "description": "", "prompts": {**prompt, "n": 1}}, "suite x")


# ---- the latent of a file ----


def latent(path: Path, what: Any) -> Noise:
    torch.save(what, path)
    return Noise(kind="fixed", file=str(path))


@pytest.mark.parametrize("shape", [SHAPE, (1, *SHAPE)])
def test_a_latent_is_read_from_its_file_whatever_the_prompt(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    noise = latent(tmp_path / "latents.pt", torch.from_numpy(values))
    for prompt in ("a", "b"):
        np.testing.assert_array_equal(initial_noise(noise, prompt, 0, SHAPE).numpy(), values.reshape(SHAPE))
    with pytest.raises(UserError, match=r"must be a finite tensor of shape \(4, 4, 4\), as the suite's size_px needs; found \(.*4, 2, 2\)"):
        initial_noise(noise, "a", 0, (4, 4, 4))


@pytest.mark.parametrize("what", [{"latents": torch.zeros(SHAPE)}, torch.full(SHAPE, torch.nan), torch.zeros(2, *SHAPE)])
def test_what_is_no_latent_is_refused(what: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a finite tensor"):
        initial_noise(latent(tmp_path / "latents.pt", what), "a", 0, SHAPE)


def test_code_in_a_latent_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return pytest.fail, ("it was run",)

    with pytest.raises(UserError, match="cannot be read as a tensor"):
        initial_noise(latent(tmp_path / "trap.pt", Trap()), "a", 0, SHAPE)


def test_pictures_and_suite_are_named_by_what_is_in_the_latent_s_file(tmp_path: Path) -> None:
    listed = written(tmp_path, "txt")

    def names(noise: Noise) -> tuple[str, str]:
        own = suite(listed, noise=noise)
        return own.id.digest, list_jobs(own, SAMPLING, "weights")[0].image

    one, other = (latent(tmp_path / f"{value}.pt", torch.full(SHAPE, value)) for value in (1.0, 2.0))
    before = names(one)
    (tmp_path / "1.0.pt").rename(tmp_path / "moved.pt")
    moved = Noise(kind="fixed", file=str(tmp_path / "moved.pt"))
    assert names(moved) == before
    for differs in (other, Noise(kind="fixed")):
        assert not set(names(differs)) & set(before)
    with pytest.raises(UserError, match=r"latent .*1\.0\.pt is missing"):
        names(one)


def test_another_latent_than_the_suite_states_is_refused(tmp_path: Path) -> None:
    noise = latent(tmp_path / "latents.pt", torch.zeros(SHAPE))
    found = hashlib.sha256((tmp_path / "latents.pt").read_bytes()).hexdigest()
    assert noise.model_copy(update={"digest": found}).path() == tmp_path / "latents.pt"
    with pytest.raises(UserError, match=rf"latent .*latents\.pt has digest {found}, but the suite states 1234"):
        noise.model_copy(update={"digest": "1234"}).identity()


def test_a_latent_of_a_file_is_one_for_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='it needs kind = "fixed"'):
        validate(Suite, {"name": "x", "version": 1, "description": "", "noise": {"file": str(tmp_path)}}, "suite x")
