"""Missing inputs of a suite are reported before any slow work, without network access, and worded as in the record."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from factories import make_record, save_record
from tiny import tiny_unet, with_unet

from sdbench import api, cli, machine, records, score, suites
from sdbench.encoders.catalogue import ENCODERS
from sdbench.errors import UserError
from sdbench.leaderboard import standings, writing
from sdbench.metrics.frechet import Gaussian
from sdbench.models.resolve import resolve
from sdbench.probes import ceilings, work
from sdbench.records import Scores, Value
from sdbench.reference.cards import save
from sdbench.run import requirements, runner
from sdbench.run.context import RunContext
from sdbench.run.plan import EFFICIENCY, START_S, plan

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SDBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setattr("huggingface_hub.file_download.http_get", lambda *_, **__: pytest.fail("network access"))


def put_asset(folder: Path, asset: str, *files: str) -> None:
    for file in files:
        (folder / "weights" / asset / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "weights" / asset / file).write_bytes(b"")


def test_missing_weights_prompts_and_reference_are_listed_with_sizes(tmp_path: Path) -> None:
    description = "\n".join(requirements.describe(suites.load("mlperf-sdxl"), tmp_path))
    for part in (
        "pytorch-fid/releases/download/fid_weights (95.6 MB)",
        "timm/vit_base_patch32_clip_224.openai (605 MB)",
        "coco2014/captions (862 kB)",
    ):
        assert part in description
    assert "missing: reference 'mlperf-val2014', so fid.mlperf will be missing: build it" in description
    assert "sdbench reference import mlperf-val2014 FILE.npz --encoder inception.mlperf --n N" in description
    prompts, reference = requirements.missing_inputs(suites.load("coco-30k"), tmp_path)
    assert prompts == "prompts sayakpaul/coco-30-val-2014: not on this disk"
    assert "build coco-30k --images FOLDER --encoder clip.vit-l-14-336 dinov2.vit-l-14 inception.clean` (or --dataset)" in reference
    (of_none,) = requirements.missing_inputs(suites.load("quality").model_copy(update={"reference": None}), tmp_path)
    assert of_none.startswith("reference, of which the suite names none, so fd.scenes will be missing: name one, with `reference = ")
    latent = suites.load("quality").model_copy(update={"noise": suites.Noise(kind="fixed", file="latents.pt")})
    assert requirements.missing_inputs(latent, tmp_path) == ["latent latents.pt: not on this disk"]


def test_available_inputs_are_not_listed(tmp_path: Path) -> None:
    suite = suites.load("mlperf-sdxl")
    put_asset(tmp_path, "inception-2015", "pt_inception-2015-12-05-6726825d.pth")
    put_asset(tmp_path, "clip-vit-b-32", "open_clip_model.safetensors")
    put_asset(tmp_path, "mlperf-captions", "captions_source.tsv")
    assert not requirements.inputs_are_here(suite)
    put_asset(tmp_path, "mlperf-latents", "latents.pt")
    assert requirements.inputs_are_here(suite)
    moments, data = Gaussian(np.zeros(1), np.eye(1), 5), {"source": "s", "sha256": "0"}
    save("mlperf-val2014", ENCODERS["inception.mlperf"], "d", data, moments, None, tmp_path)
    assert requirements.describe(suite, tmp_path) == []
    lacking = requirements.missing_reference(suite, ["fid.mlperf", "cmmd"], tmp_path)
    assert lacking
    assert lacking.startswith("reference 'mlperf-val2014', so cmmd will be missing: build it")
    assert "--encoder clip.vit-l-14-336`" in lacking


def test_own_prompt_files_are_found_by_any_supported_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "suites").mkdir()
    for file in ("own.jsonl", "suites/beside.jsonl"):
        (tmp_path / file).write_text('{"prompt": "a cat"}\n', encoding="utf-8")
    suite = suites.load("coco-30k")
    monkeypatch.chdir(tmp_path)
    for path in ("own.jsonl", "*.jsonl", "**/own.jsonl", f"{tmp_path}/*.jsonl", "beside.jsonl", "other/*.jsonl"):
        own = suite.model_copy(update={"prompts": suite.prompts.model_copy(update={"path": path})})
        assert requirements.inputs_are_here(own) == (path != "other/*.jsonl")


def test_previously_opened_dataset_counts_as_available(tmp_path: Path) -> None:
    (tmp_path / "datasets" / "sayakpaul___coco-30-val-2014" / "default").mkdir(parents=True)
    assert requirements.inputs_are_here(suites.load("coco-30k"))


@pytest.mark.parametrize("name", ["quality", "diversity-scenes", "efficiency-scenes"])
def test_embedded_family_needs_nothing(name: str, tmp_path: Path) -> None:
    assert requirements.describe(suites.load(name), tmp_path) == []


def test_dry_run_lists_missing_inputs_and_fetches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sdbench.run.plan._macs", lambda *_: None)
    monkeypatch.setattr(machine, "is_slow", lambda dtype, _: dtype == "float16")
    content = plan([resolve("sdxl", random=True)], RunContext(suites.load("mlperf-sdxl"), "cpu", tmp_path, tmp_path))
    assert content["suite"] == {"name": "mlperf-sdxl", "version": 1, "digest": None}
    assert {"latents.pt", "open_clip_model.safetensors"} < {file["name"] for file in content["files"]}
    assert content["disk_bytes"] > 95_628_359 + 605_109_252
    text = content["text"]
    assert text.startswith("suite mlperf-sdxl@1 (digest not known until its prompts are here): 5000 images a model")
    assert "captions_source.tsv (862 kB)" in text
    assert "\nmissing: reference 'mlperf-val2014'" in text
    assert text.endswith(
        "\nthis processor has no fast convolutions in float16, which take up to 80 times as long as in float32: see --dtype and --setting"
    )
    known = plan([resolve("sdxl", random=True)], RunContext(suites.load("standard"), "cpu", tmp_path, tmp_path))
    assert known["suite"]["digest"] == suites.load("standard").id.digest
    args = ["--model", "sdxl", "--weights", "random", "--suite", "mlperf-sdxl", "--only", "quality", "--runs", str(tmp_path)]
    assert cli.main(["run", *args, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lacking"] == content["lacking"]


def test_dry_run_reports_a_teacher_that_is_neither_measured_nor_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sdbench.run.plan._macs", lambda *_: None)
    args = ["run", "--model", "scenes-vega", "--dry-run", "--only", "quality", "--results", str(tmp_path)]
    warning = (
        f"missing: record of the teacher, scenes-teacher under {suites.load('quality').id.title_with_digest}, so win rates and agreement "
        "with it will be missing: add --model scenes-teacher\n"
    )
    assert cli.main(args) == 0
    assert warning in capsys.readouterr().out
    assert cli.main([*args, "--model", "scenes-teacher"]) == 0
    assert "teacher, " not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "images", "timed", "probes", "duration"),
    [
        ([], 512, 5 * (1 + 4), "base", "4.0 h"),
        (["--only", "quality"], 512, 0, None, "3.8 h"),
        (["--weights", "random"], 0, 5 * (1 + 4), "base", "11.2 min"),
        (
            ["--suite", "efficiency-scenes", "--setting", "b8", "--setting", "compiled"],
            0,
            5 * (8 * (2 + 4) + 2 + 4),
            "b8, compiled",
            "2.0 h",
        ),
    ],
)
def test_dry_run_estimates_what_the_same_run_would_do(
    options: list[str],
    images: int,
    timed: int,
    probes: str | None,
    duration: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ceilings, "measure", lambda *_: 2 / EFFICIENCY["cpu"])
    monkeypatch.setattr(work, "_work", lambda *_: work.Work(1, 0, 0))
    assert cli.main(["run", "--model", "scenes-vega", "--dry-run", "--json", "--runs", str(tmp_path), *options]) == 0
    out, err = capsys.readouterr()
    assert f": {images or 'no'} images a model" in err
    assert re.findall(r"of (sampling|timed calls) on this machine", err) == ["sampling" if images else "timed calls"]
    assert f"; roughly {duration} of " in err
    assert re.findall(r"probes: 5 rounds a model, each a process for every setting: (.*); to start them", err) == (
        [probes] if probes else []
    )
    content = json.loads(out)
    assert content["starts_s"] == pytest.approx(5 * len(probes.split(", ")) * START_S if probes else 0)
    (row,) = content["models"]
    assert (row["model"], row["seconds"]) == ("scenes-vega", pytest.approx((images + timed) * (2 + 12 * 2 + 1)))
    assert f"scenes-vega: DDIMScheduler (v_prediction) at {', '.join(map(str, row['scheduler']['timesteps']))}; roughly" in err
    assert (len(row["scheduler"]["timesteps"]), row["scheduler"]["timesteps"][0]) == (12, 999)
    assert (content["disk_bytes"] > 0) == (images > 0)


def test_rendered_images_start_no_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ceilings, "measure", lambda *_: 1.0)
    specs, context = [resolve("scenes-rendered"), resolve("scenes-vega")], RunContext(suites.load("quality"), "cpu", tmp_path, tmp_path)
    assert plan(specs, context)["starts_s"] == plan(specs[1:], context)["starts_s"] == pytest.approx(5 * START_S, rel=0.01)


@pytest.mark.parametrize(("model", "load_s"), [("sdxl", 35.7), ("vega", 21.5)])
def test_process_of_a_full_size_model_takes_longer_than_to_build_it_took(
    model: str, load_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cold_start.load` in the records of `efficiency-cpu@1`; imports and other stages come on top, up to 17 s in the embedded family."""
    monkeypatch.setattr(ceilings, "measure", lambda *_: 1.0)
    suite, spec = suites.load("efficiency-cpu"), resolve(model, random=True)
    negative = suite.model_copy(update={"sampling": suite.sampling.model_copy(update={"negative_prompt": "blurry"})})
    once, other = (
        plan([spec], RunContext(own, "cpu", tmp_path, tmp_path, settings=("channels-last",)))["starts_s"] / 3 for own in (suite, negative)
    )
    assert load_s < once < load_s + 17
    assert once == other, "the encoders of a negative prompt are the same"


def test_evaluator_that_cannot_be_had_is_told_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    suite = suites.load("standard").model_copy(update={"metrics": {"sdxl": ("clip_score.vit-b-32",)}})
    monkeypatch.setattr(runner, "fetch_models", lambda specs, _: specs)
    monkeypatch.setattr(runner, "describe_model", lambda *_: None)
    monkeypatch.setattr(runner, "_draw_images", lambda *_: pytest.fail(capsys.readouterr().err))
    monkeypatch.setattr(runner, "describe_scheduler", lambda *_: {})
    with pytest.raises(pytest.fail.Exception, match=r"^missing: weights: 'clip-vit-b-32' is not on this disk and cannot be fetched"):
        api.run("sdxl", suite, places=api.Places(tmp_path), device="cpu", only="quality")


def test_gate_draws_nothing_without_an_evaluator_that_its_policy_requires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(runner, "run", lambda *_: pytest.fail("run"))
    with pytest.raises(UserError, match=r"requires what this machine lacks: weights: 'clip-vit-l-14' is not on this disk.*'pickscore"):
        api.gate("vega", "ssd-1b", "standard", places=api.Places(tmp_path), device="cpu")


def test_estimate_for_a_gpu_is_near_published_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDXL in 20 steps at 1024 px takes 2.706 s on an A100 (open-muse), whose matrix products run at up to 312 TFLOP/s."""
    monkeypatch.setattr(ceilings, "measure", lambda *_: 312e12)
    suite = api.Overrides(n=1, steps=20).apply(suites.load("standard"))
    content = plan([resolve("sdxl", random=True)], RunContext(suite, "cuda:0", tmp_path, tmp_path, "quality"))
    assert content["models"][0]["seconds"] == pytest.approx(2.706, rel=0.25)


def test_unet_that_embeds_the_guidance_scale_is_estimated_at_one_run_per_step(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "measure", lambda *_: 2 / EFFICIENCY["cpu"])
    monkeypatch.setattr(work, "_work", lambda *_: work.Work(1, 0, 0))
    specs = [resolve(str(tiny_pipeline)), resolve(str(with_unet(tiny_pipeline, tmp_path / "lcm", tiny_unet(time_cond_proj_dim=8))))]
    content = plan(specs, RunContext(suites.load("quality"), "cpu", tmp_path, tmp_path, "quality"))
    assert [row["seconds"] for row in content["models"]] == pytest.approx([512 * (2 + 12 * 2 + 1), 512 * (2 + 12 + 1)])


def test_student_with_blocks_of_its_own_is_estimated_from_its_own_configuration(
    tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ceilings, "measure", lambda *_: 2.0)
    deeper = tiny_unet(transformer_layers_per_block=[1, 2, 3], reverse_transformer_layers_per_block=None)  # as no model of the catalogue
    folder = with_unet(tiny_pipeline, tmp_path / "own", deeper)
    specs = [resolve(str(tiny_pipeline)), resolve(str(folder))]
    assert specs[1].architecture == "custom"
    vega, own = (row["seconds"] for row in plan(specs, RunContext(suites.load("quality"), "cpu", tmp_path, tmp_path, "quality"))["models"])
    assert own > vega > 0


def test_random_weights_need_no_evaluators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "measure", lambda *_: 2.0)
    monkeypatch.setattr("sdbench.run.plan._macs", lambda *_: 1)  # takes seconds for networks of this size
    content = plan([resolve("sdxl", random=True)], RunContext(suites.load("standard"), "cpu", tmp_path, tmp_path, "probes"))
    assert (content["files"], content["lacking"], content["disk_bytes"]) == ([], [], 0)
    assert content["suite"]["digest"] == suites.load("standard").id.digest


def test_suite_is_shown_with_its_missing_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["suites", "standard", "--runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\n    3.94 GB  yuvalkirstain/PickScore_v1\n" in out
    assert "\nmissing: reference 'coco-30k'" in out


def test_run_without_its_prompts_stops_before_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    results = ["--results", str(tmp_path / "results")]
    assert cli.main(["run", "--model", "sdxl", "--weights", "random", "--only", "quality", "--suite", "mlperf-sdxl", *results]) == 2
    assert "sdbench: weights: 'mlperf-latents' is not on this disk and cannot be fetched" in capsys.readouterr().err
    assert not list((tmp_path / "results").rglob("*.png"))


def test_unverified_weights_and_prompts_are_marked_in_the_record_and_the_tables(tmp_path: Path) -> None:
    value = Value(name="pickscore.v1", kind="score", direction="higher", unit="logit", value=21.5, n=3)
    assert score._note_unverified_weights(value).note == "unverified weights: pickscore-v1"
    assert (
        score._note_unverified_weights(value.model_copy(update={"name": "win_rate.pickscore.v1", "note": "2 wins"})).note
        == "2 wins; unverified weights: pickscore-v1"
    )
    assert score._note_unverified_weights(value.model_copy(update={"name": "fid.clean"})).note == ""  # its digest is stated
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
