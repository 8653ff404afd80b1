"""Prompts and a latent from files: every layout gives the same list, errors name the row, digests are checked."""

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
    """Empty caches of `datasets` and the Hub, offline, in a folder without ./suites."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("SDBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)


def make_suite(path: Path | str, n: int = 6, noise: Noise | None = None, **more: Any) -> Suite:
    prompt_source = Prompts(source="dataset", path=str(path), n=n, **more)
    return Suite(name="own", version=1, family="scenes", description="", prompts=prompt_source, sampling=SAMPLING, noise=noise or Noise())


def read_prompts(path: Path | str, n: int = 6, **more: Any) -> list[str]:
    return list(make_suite(path, n, **more).prompt_list().values())


def write_list(folder: Path, kind: str) -> Path:
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
            path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")
        case "json":
            path.write_text(json.dumps(CAPTIONS), encoding="utf-8")
        case "txt":
            path.write_text("\n".join(CAPTIONS) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "json", "txt"])
def test_every_file_format_gives_the_same_list(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_list(tmp_path, kind)
    capsys.readouterr()  # how `datasets` writes it
    assert read_prompts(path) == CAPTIONS
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_prompt_that_csv_readers_parse_as_missing_is_reported_by_row(kind: str, tmp_path: Path) -> None:
    path = write_list(tmp_path, kind)
    assert read_prompts(path, 3) == CAPTIONS[:3]
    with pytest.raises(UserError, match=rf"prompts .*list\.{kind}: row 3 is empty, found None"):
        read_prompts(path)


@pytest.mark.parametrize(("row", "found"), [(None, "None"), ("", "''"), ("  \t", r"'  \\t'")])
def test_empty_prompt_is_rejected_with_its_row(row: str | None, found: str, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"prompt": ["one", row, "three"]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(UserError, match=rf"row 1 is empty, found {found}; write a prompt, or remove the row"):
        read_prompts(tmp_path / "p.parquet", 3)
    assert read_prompts(tmp_path / "p.parquet", 1) == ["one"]


def test_table_in_another_encoding_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "a caf\xe9"}\n')
    with pytest.raises(UserError, match=r"column 'prompt' is not UTF-8 .*0xe9.*; convert the file"):
        read_prompts(path, 1)


def test_column_that_is_not_text_is_rejected(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"prompt": [0.5, float("nan")]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"column 'prompt' holds .*float64.*; expected text"):
        read_prompts(tmp_path / "p.parquet", 2)


@pytest.mark.parametrize("what", ["p.parquet", "."])
def test_list_that_is_changed_is_read_again(what: str, tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    for captions in (["a", "b"], ["c", "d"]):
        datasets.Dataset.from_dict({"prompt": captions}).to_parquet(tmp_path / "lists" / "p.parquet")
        assert read_prompts(tmp_path / "lists" / what, 2) == captions


def test_seed_samples_without_replacement_and_seed_0_takes_the_first_rows(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("\n".join(f"prompt {row}" for row in range(50)) + "\n", encoding="utf-8")
    assert read_prompts(path, 5) == [f"prompt {row}" for row in range(5)]
    one, other = read_prompts(path, 20, seed=1), read_prompts(path, 20, seed=2)
    assert len(set(one)) == len(set(other)) == 20
    assert one != other
    assert one == read_prompts(path, 20, seed=1)
    assert one[:5] == read_prompts(path, 5, seed=1)


def test_too_few_rows_and_an_ambiguous_column_are_errors(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"prompt": ["a"], "caption": ["b"], "other": ["c"]}).to_parquet(tmp_path / "p.parquet")
    with pytest.raises(UserError, match=r"caption and prompt|prompt and caption"):
        read_prompts(tmp_path / "p.parquet", 1)
    assert read_prompts(tmp_path / "p.parquet", 1, column="other") == ["c"]
    with pytest.raises(UserError, match="did you mean 'caption'"):
        read_prompts(tmp_path / "p.parquet", 1, column="captoin")
    with pytest.raises(UserError, match="hold 1 rows; the suite asks for 2"):
        read_prompts(tmp_path / "p.parquet", 2, column="other")


def test_list_is_identified_by_its_digest_and_another_is_rejected(tmp_path: Path) -> None:
    path = write_list(tmp_path, "txt")
    digest = hashlib.sha256(json.dumps(CAPTIONS).encode()).hexdigest()
    plain, stated = make_suite(path), make_suite(path, digest=digest)
    assert plain.describe_prompts() == f"6 of {path}, digest {digest} (unverified), 1 of them repeat an earlier one"
    assert stated.describe_prompts() == f"6 of {path}, digest {digest}, 1 of them repeat an earlier one"
    assert len(plain.prompt_list()) == 6  # repeated prompts have distinct ids
    wrong = make_suite(path, digest="0" * 64)
    for access in (wrong.prompt_list, wrong.describe_prompts, lambda: wrong.id):
        with pytest.raises(UserError, match=f"the list of prompts .* has digest {digest}, but the suite states 0000"):
            access()
    assert api.Overrides(n=2).apply(stated).prompt_list().keys() == dict(list(plain.prompt_list().items())[:2]).keys()
    elsewhere = write_list(tmp_path / "elsewhere", "jsonl")
    assert stated.id == plain.id == make_suite(elsewhere, column="caption").id  # the id depends on the content, not the path
    assert make_suite(path, n=5).id != plain.id
    some = make_suite(path, digest=digest, looked=3)  # part of the same list
    assert list(some.prompt_list()) == sorted(suites.look_order([*plain.prompt_list()], plain.sampling.batch)[:3])
    assert some.describe_prompts().startswith(f"3 of {path}, digest ")
    assert some.id != stated.id
    assert suites.load("quality").describe_prompts() == ""


def test_dataset_beside_a_suite_file_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = write_list(tmp_path, "jsonl")
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\nversion = 1\nfamily = "scenes"\ndescription = "for tests"\n'
        f'prompts = {{ source = "dataset", path = "{listed.name}", column = "caption", n = 6 }}\n'
        'sampling = { steps = 1, guidance_scale = 1, size_px = 64, dtype = "float32", batch = 1 }\n',
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path.parent)
    assert [*suites.load(f"{tmp_path.name}/mine.toml").prompt_list().values()] == CAPTIONS


def test_repeated_lines_of_a_file_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "captions.txt"
    path.write_text("a cat\na dog\na cat\n", encoding="utf-8")
    repeating, plain = (api.Overrides(prompts=str(path), n=n).apply(suites.load("quality")) for n in (3, 2))
    assert repeating.describe_prompts() == "3 of captions.txt, 1 of them repeat an earlier one"
    assert plain.describe_prompts() == ""


def test_uncached_hub_dataset_is_missing_offline() -> None:
    with pytest.raises(MissingError, match=r"cannot read 'owner/prompts' as a dataset \(.*Where there is a network"):
        read_prompts("owner/prompts", 1)


def test_hub_dataset_is_fetched_once_and_then_read_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched as by a user: in a process whose environment names the mirror."""
    write_list(tmp_path, "parquet")
    hub = Hub(tmp_path / "served")
    hub.put("datasets/owner/prompts/data/test-00000-of-00001.parquet", (tmp_path / "list.parquet").read_bytes())
    code = """
from sdbench.run import requirements
from sdbench.settings import Sampling
from sdbench.suites import Prompts, Suite
sampling = Sampling(steps=1, guidance_scale=1, size_px=64, dtype="float32", batch=1)
prompt_source = Prompts(source="dataset", path="owner/prompts", split="test", n=3)
suite = Suite(name="own", version=1, family="scenes", description="", prompts=prompt_source, sampling=sampling)
print(requirements.inputs_are_here(suite), suite.describe_prompts())
"""
    hf_home = tmp_path / "hf"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HOME": str(hf_home), "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": hub.url}
    environment["TQDM_POSITION"] = "-1"  # shows bars without a terminal
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", check=False)
    hub.shutdown()
    hub.server_close()
    description = f"3 of owner/prompts, digest {hashlib.sha256(json.dumps(CAPTIONS[:3]).encode()).hexdigest()} (unverified)"
    assert done.stdout.strip() == f"False {description}", done.stderr
    assert "test-00000-of-00001.parquet: 100%" in done.stderr, "the download is shown"
    assert "Generating" not in done.stderr

    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(hf_home))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hf_home / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hf_home / "datasets")
    offline = make_suite("owner/prompts", 3, split="test")
    assert requirements.inputs_are_here(offline)
    assert offline.describe_prompts() == description


def test_file_beside_the_suites_is_found(tmp_path: Path) -> None:
    (tmp_path / "suites").mkdir()
    write_list(tmp_path / "suites", "txt")
    assert read_prompts("list.txt") == CAPTIONS


def test_lists_of_an_asset_and_no_others_are_joined_and_verified_by_its_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "weights" / "lists" / "in"
    folder.mkdir(parents=True)
    for name, texts in (("b", CAPTIONS[3:]), ("a", CAPTIONS[:3])):
        (folder / f"{name}.json").write_text(json.dumps(texts), encoding="utf-8")
    (folder / "aa.json").write_text(json.dumps(["of the same repository, not of the asset"]), encoding="utf-8")
    digests = [hashlib.sha256((folder / f"{name}.json").read_bytes()).hexdigest() for name in "ab"]

    def list_asset(*stated: str | None) -> catalogue.Asset:
        return catalogue.Asset(
            "lists", "dataset:owner/lists", tuple(catalogue.File(f"in/{name}.json", 9, sha) for name, sha in zip("ab", stated, strict=True))
        )

    monkeypatch.setattr(catalogue, "ASSETS", {"lists": list_asset(*digests)})
    own = make_suite("asset:lists/in/*.json")
    assert list(own.prompt_list().values()) == CAPTIONS
    assert "unverified" not in own.describe_prompts()
    monkeypatch.setattr(catalogue, "ASSETS", {"lists": list_asset(digests[0], None)})
    assert "unverified" in own.describe_prompts()
    with pytest.raises(UserError, match="unknown asset 'list'; did you mean 'lists'"):
        read_prompts("asset:list/in/*.json")
    with pytest.raises(UserError, match=r"asset 'lists' has no file 'out/\*\.json'; it has in/a\.json, in/b\.json"):
        read_prompts("asset:lists/out/*.json")


def test_text_file_has_one_prompt_per_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_bytes("\ufeffone\r\n\n  two\u2028and a half\x85 \nÜbung".encode())
    assert prompts.read_lines(path) == ("one", "two\u2028and a half", "Übung")
    path.write_bytes("Übung".encode("latin-1"))
    for file in (path, tmp_path / "nowhere", tmp_path / "nowhere.csv", tmp_path):
        with pytest.raises(UserError, match=rf"prompts {file} cannot be read: .*expected a UTF-8 text file with one prompt per line"):
            prompts.read_lines(file)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a cat"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"metadata.jsonl are a table; expected a UTF-8 text file"):
        prompts.read_lines(tmp_path / "metadata.jsonl")


@pytest.mark.parametrize(("name", "missing"), [("coco-30k", "sayakpaul/coco"), ("hpdv2", "hpdv2-prompts"), ("mlperf-sdxl", "mlperf-")])
def test_shipped_suites_without_their_prompts_name_what_is_missing(name: str, missing: str) -> None:
    shipped = suites.load(name)
    for access in (shipped.prompt_list, lambda: shipped.id):
        with pytest.raises(MissingError, match=missing):
            access()


@pytest.mark.parametrize(
    ("prompt", "expected"), [({"source": "dataset"}, "'dataset' needs 'path'"), ({"source": "file"}, "'file' needs 'file'")]
)
def test_source_without_its_location_is_an_error(prompt: dict[str, str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        validate(Prompts, {**prompt, "n": 1}, "prompts x")


# ---- latents from files ----


def save_latent(path: Path, content: Any) -> Noise:
    torch.save(content, path)
    return Noise(kind="fixed", file=str(path))


@pytest.mark.parametrize("shape", [SHAPE, (1, *SHAPE)])
def test_latent_file_is_used_for_every_prompt(shape: tuple[int, ...], tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(shape, np.float32)
    noise = save_latent(tmp_path / "latents.pt", torch.from_numpy(values))
    for prompt in ("a", "b"):
        np.testing.assert_array_equal(initial_noise(noise, prompt, 0, SHAPE).numpy(), values.reshape(SHAPE))
    with pytest.raises(UserError, match=r"must be a finite tensor of shape \(4, 4, 4\), as the suite's size_px needs; found \(.*4, 2, 2\)"):
        initial_noise(noise, "a", 0, (4, 4, 4))


@pytest.mark.parametrize("content", [{"latents": torch.zeros(SHAPE)}, torch.full(SHAPE, torch.nan), torch.zeros(2, *SHAPE)])
def test_invalid_latent_is_rejected(content: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be a finite tensor"):
        initial_noise(save_latent(tmp_path / "latents.pt", content), "a", 0, SHAPE)


def test_code_in_a_latent_file_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return pytest.fail, ("code was run",)

    with pytest.raises(UserError, match="cannot be read as a tensor"):
        initial_noise(save_latent(tmp_path / "trap.pt", Trap()), "a", 0, SHAPE)


def test_image_names_and_suite_digest_depend_on_the_content_of_the_latent_file(tmp_path: Path) -> None:
    path = write_list(tmp_path, "txt")

    def names(noise: Noise) -> tuple[str, str]:
        own = make_suite(path, noise=noise)
        return own.id.digest, list_jobs(own, SAMPLING, "weights")[0].image_id

    one, other = (save_latent(tmp_path / f"{value}.pt", torch.full(SHAPE, value)) for value in (1.0, 2.0))
    before = names(one)
    (tmp_path / "1.0.pt").rename(tmp_path / "moved.pt")
    moved = Noise(kind="fixed", file=str(tmp_path / "moved.pt"))
    assert names(moved) == before
    for differs in (other, Noise(kind="fixed")):
        assert not set(names(differs)) & set(before)
    with pytest.raises(UserError, match=r"latent .*1\.0\.pt is missing"):
        names(one)


def test_latent_with_another_digest_than_the_suite_states_is_rejected(tmp_path: Path) -> None:
    noise = save_latent(tmp_path / "latents.pt", torch.zeros(SHAPE))
    found = hashlib.sha256((tmp_path / "latents.pt").read_bytes()).hexdigest()
    assert noise.model_copy(update={"digest": found}).path() == tmp_path / "latents.pt"
    with pytest.raises(UserError, match=rf"latent .*latents\.pt has digest {found}, but the suite states 1234"):
        noise.model_copy(update={"digest": "1234"}).identity()


def test_latent_file_requires_fixed_noise(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='it needs kind = "fixed"'):
        validate(Noise, {"file": str(tmp_path)}, "noise x")
