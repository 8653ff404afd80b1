"""What a suite needs that is not here is said before anything slow, without asking anybody, and as the record says it later."""

import json
import re
from pathlib import Path

import pytest
from factories import make_record, save_record
from tiny import tiny_unet, with_unet

from sdbench import cli, records, score, suites
from sdbench.leaderboard import standings, writing
from sdbench.models.spec import resolve
from sdbench.probes import work
from sdbench.records import Scores, Value
from sdbench.reference.cards import Card
from sdbench.run import requirements
from sdbench.run.plan import EFFICIENCY, plan

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _nothing_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SDBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr("huggingface_hub.file_download.http_get", lambda *_, **__: pytest.fail("asked somebody"))


def put(folder: Path, asset: str, *files: str) -> None:
    for file in files:
        (folder / "weights" / asset / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "weights" / asset / file).write_bytes(b"")


def test_weights_prompts_and_reference_are_told_with_their_sizes(tmp_path: Path) -> None:
    told = "\n".join(requirements.describe(suites.load("mlperf-sdxl"), tmp_path))
    for part in (
        "pytorch-fid/releases/download/fid_weights (0.10 GB)",
        "timm/vit_base_patch32_clip_224.openai (0.61 GB)",
        "coco2014/captions (0.86 MB)",
    ):
        assert part in told
    assert "missing: reference 'mlperf-val2014', so every distance to it will be missing: build it" in told
    assert "sdbench reference import mlperf-val2014 FILE.npz" in told
    assert "missing: prompts sayakpaul/coco-30-val-2014: not on this disk" in requirements.describe(suites.load("coco-30k"), tmp_path)
    latent = suites.load("quality").model_copy(update={"noise": suites.Noise(kind="fixed", file="latents.pt")})
    assert requirements.missing_inputs(latent, tmp_path) == ["latent latents.pt: not on this disk"]


def test_what_is_here_is_not_told(tmp_path: Path) -> None:
    suite = suites.load("mlperf-sdxl")
    put(tmp_path, "inception-2015", "pt_inception-2015-12-05-6726825d.pth")
    put(tmp_path, "clip-vit-b-32", "open_clip_model.safetensors")
    put(tmp_path, "mlperf-captions", "captions_source.tsv")
    assert not requirements.inputs_are_here(suite)
    put(tmp_path, "mlperf-latents", "latents.pt")
    assert requirements.inputs_are_here(suite)
    card = Card(name="mlperf-val2014", digest="d", encoder="e", encoder_id=None, data={"source": "s", "sha256": "0"}, n=5)
    (tmp_path / "references" / "mlperf-val2014").mkdir(parents=True)
    (tmp_path / "references" / "mlperf-val2014" / "e.json").write_text(card.model_dump_json())
    assert requirements.describe(suite, tmp_path) == []


def test_files_of_one_s_own_are_here_by_any_name_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own.jsonl").write_text('{"prompt": "a cat"}\n')
    suite = suites.load("coco-30k")
    assert suite.prompts
    monkeypatch.chdir(tmp_path)
    for path in ("own.jsonl", "*.jsonl", f"{tmp_path}/*.jsonl", "other/*.jsonl"):
        own = suite.model_copy(update={"prompts": suite.prompts.model_copy(update={"path": path})})
        assert requirements.inputs_are_here(own) == (path != "other/*.jsonl")


def test_a_data_set_that_was_opened_before_is_here(tmp_path: Path) -> None:
    (tmp_path / "datasets" / "sayakpaul___coco-30-val-2014" / "default").mkdir(parents=True)
    assert requirements.inputs_are_here(suites.load("coco-30k"))


@pytest.mark.parametrize("name", ["quality", "fid", "preference", "latency"])
def test_the_embedded_family_and_parts_need_nothing(name: str, tmp_path: Path) -> None:
    assert requirements.describe(suites.load(name), tmp_path) == []


def test_a_dry_run_tells_it_and_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sdbench.run.plan._macs", lambda *_: None)
    content = plan([resolve("sdxl", random=True)], suites.load("mlperf-sdxl"), tmp_path)
    assert content["suite"] == {"name": "mlperf-sdxl", "version": 1, "digest": None}
    assert {"latents.pt", "open_clip_model.safetensors"} < {file["name"] for file in content["files"]}
    assert content["disk_bytes"] > 95_628_359 + 605_109_252
    text = content["text"]
    assert text.startswith("suite mlperf-sdxl@1 (digest not known until its prompts are here): 5000 pictures a model")
    assert "captions_source.tsv (0.86 MB)" in text
    assert "\nmissing: reference 'mlperf-val2014'" in text
    known = plan([resolve("sdxl", random=True)], suites.load("standard"), tmp_path)
    assert known["suite"]["digest"] == suites.load("standard").id.digest
    words = ["--model", "sdxl", "--weights", "random", "--suite", "mlperf-sdxl", "--only", "quality", "--runs", str(tmp_path)]
    assert cli.main(["run", *words, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lacking"] == content["lacking"]


def test_a_teacher_that_is_neither_measured_nor_asked_for_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["run", "--model", "scenes-vega", "--dry-run", "--only", "quality", "--results", str(tmp_path)]
    told = (
        "missing: record of the teacher, scenes-teacher under quality@4, so win rates and agreement with it will be missing: "
        "add --model scenes-teacher\n"
    )
    assert cli.main(words) == 0
    assert told in capsys.readouterr().out
    assert cli.main([*words, "--model", "scenes-teacher"]) == 0
    assert "teacher, " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "pictures", "timed", "probes"),
    [
        ([], 512, 5 * (1 + 4), "base"),
        (["--only", "quality"], 512, 0, None),
        (["--weights", "random"], 0, 5 * (1 + 4), "base"),
        (["--suite", "efficiency-scenes", "--setting", "b8", "--setting", "compiled"], 0, 5 * (8 * (2 + 4) + 2 + 4), "b8, compiled"),
    ],
)
def test_a_dry_run_tells_what_the_same_run_would_make(
    options: list[str],
    pictures: int,
    timed: int,
    probes: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sdbench.run.plan._macs_per_s", lambda _: 1 / EFFICIENCY)
    monkeypatch.setattr(work, "_count", lambda *_: work.Work(1, 0, 0))
    assert cli.main(["run", "--model", "scenes-vega", "--dry-run", "--json", "--runs", str(tmp_path), *options]) == 0
    out, err = capsys.readouterr()
    assert f": {pictures or 'no'} pictures a model" in err
    assert re.findall(r"of (sampling|timed calls) on this machine", err) == ["sampling" if pictures else "timed calls"]
    assert re.findall(r"probes: 5 rounds a model, each a process for every setting: (.*)", err) == ([probes] if probes else [])
    content = json.loads(out)
    (row,) = content["models"]
    assert (row["model"], row["seconds"]) == ("scenes-vega", pytest.approx((pictures + timed) * (2 + 12 * 2 + 1)))
    assert f"scenes-vega: DDIMScheduler at {', '.join(map(str, row['scheduler']['timesteps']))}; roughly" in err
    assert (len(row["scheduler"]["timesteps"]), row["scheduler"]["timesteps"][0]) == (12, 999)
    assert (content["disk_bytes"] > 0) == (pictures > 0)


def test_a_unet_that_is_told_the_guidance_scale_is_run_once_a_step(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdbench.run.plan._macs_per_s", lambda _: 1 / EFFICIENCY)
    monkeypatch.setattr(work, "_count", lambda *_: work.Work(1, 0, 0))
    specs = [resolve(str(made)), resolve(str(with_unet(made, tmp_path / "lcm", tiny_unet(time_cond_proj_dim=8))))]
    content = plan(specs, suites.load("quality"), tmp_path, only="quality")
    assert [row["seconds"] for row in content["models"]] == pytest.approx([512 * (2 + 12 * 2 + 1), 512 * (2 + 12 + 1)])


def test_random_weights_need_no_evaluators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdbench.run.plan._macs_per_s", lambda _: 1.0)
    monkeypatch.setattr("sdbench.run.plan._macs", lambda *_: 1)  # takes seconds of so large networks
    content = plan([resolve("sdxl", random=True)], suites.load("standard"), tmp_path, only="probes")
    assert (content["files"], content["lacking"], content["disk_bytes"]) == ([], [], 0)
    assert content["suite"]["digest"] == suites.load("standard").id.digest


def test_suites_are_listed_with_what_they_lack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["suites", "--runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(row for row, line in enumerate(lines) if line.startswith("standard@"))
    assert lines[at + 2].startswith("    not on this disk: ")
    assert "yuvalkirstain/PickScore_v1 (3.94 GB)" in lines[at + 2]
    assert lines[at + 3].startswith("    missing: reference 'coco-30k'")


def test_a_run_without_its_prompts_stops_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    at = ["--results", str(tmp_path / "results")]
    assert cli.main(["run", "--model", "sdxl", "--weights", "random", "--only", "quality", "--suite", "mlperf-sdxl", *at]) == 2
    assert "sdbench: weights: 'mlperf-latents' is not on this disk and cannot be fetched" in capsys.readouterr().err
    assert not list((tmp_path / "results").rglob("*.png"))


def test_unverified_weights_and_prompts_are_said_in_the_record_and_the_tables(tmp_path: Path) -> None:
    value = Value(name="pickscore.v1", kind="score", direction="higher", unit="logit", value=21.5, n=3)
    assert score._note_unverified_weights(value).note == "unverified weights: pickscore-v1"
    assert (
        score._note_unverified_weights(value.model_copy(update={"name": "win_rate.pickscore.v1", "note": "2 wins"})).note
        == "2 wins; unverified weights: pickscore-v1"
    )
    assert score._note_unverified_weights(value.model_copy(update={"name": "fid.clean"})).note == ""  # whose digest is stated
    missing = Value(name="pickscore.v1", kind="score", direction="higher", unit="logit", state="missing", reason="weights: ...")
    assert score._note_unverified_weights(missing) == missing
    record = make_record("student", values=(score._note_unverified_weights(value),)).model_copy(
        update={"prompts": "5 of owner/list, digest 12ab (unverified)"}
    )
    path = save_record((record, Scores([], [], {})), tmp_path)
    assert records.read(path)[0].prompts == "5 of owner/list, digest 12ab (unverified)"
    table = writing.markdown(standings.read_rows(tmp_path))
    assert "- prompts: 5 of owner/list, digest 12ab (unverified)" in table
    assert "unverified weights: pickscore-v1" in table
