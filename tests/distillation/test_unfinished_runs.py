"""The student of a run that was stopped or goes on: what is exported of it, and how another run starts from it."""

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from tiny import tiny_unet, with_unet
from torch import nn

from distillation import train
from distillation.ablation.experiment import one_shot_recipe
from distillation.cli import main
from distillation.data import batches
from distillation.provenance import Provenance
from distillation.prune import prune
from distillation.recipe import RECIPES, Recipe, load_recipe
from distillation.run_folder import Run, open_run
from distillation.run_plan import check_start, plan_run
from distillation.start import Start, open_start
from distillation.taps import Tap
from distillation.train import distil
from sdbench.disk import locked, read_json, write_json
from sdbench.errors import UserError
from sdbench.models.digest import weights_digest
from sdbench.models.resolve import resolve
from sdbench.scenes.training.pool import Pool
from sdbench.training.diffusion import Batch
from sdbench.training.loop import NotFiniteError, Schedule, fit

STEPS = 5  # two in the first stage, three in the second
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def stopped(vega: Recipe, teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was stopped before its last step; it saved after each."""

    def stopping(*arguments: Any) -> Callable[[int], Batch]:
        of_step = batches.numbered_batches(*arguments)

        def batch(number: int) -> Batch:
            if number == STEPS - 1:
                raise KeyboardInterrupt
            return of_step(number)

        return batch

    work = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "fit", partial(fit, save_every_s=-1))
        patch.setattr(train, "numbered_batches", stopping)
        with pytest.raises(KeyboardInterrupt):
            distil(plan_run(vega, "scenes", [teacher_folder], STEPS), work, work / "never")
    (folder,) = work.glob("vega-*")
    return folder


@pytest.fixture(scope="module")
def exported(stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command line writes of it while another process trains."""
    out, before = tmp_path_factory.mktemp("exported") / "student", [*stopped.rglob("*")]
    with locked(stopped / ".lock"):
        assert main(["export", str(stopped), "--out", str(out)]) == 0
    assert [*stopped.rglob("*")] == before
    return out


@pytest.fixture
def run(stopped: Path, vega: Recipe, teacher_folder: Path, tmp_path: Path) -> Run:
    """The run in a copy of its folder."""
    copied = shutil.copytree(stopped, tmp_path / "run")
    return Run(copied, plan_run(vega, "scenes", [teacher_folder], STEPS), "data", 8)


def test_the_newest_average_is_exported_as_a_pipeline(stopped: Path, exported: Path, teacher_folder: Path) -> None:
    assert resolve(str(exported), name="student").architecture == "vega"
    found = StableDiffusionXLPipeline.from_pretrained(exported).unet.state_dict()
    average, last = (load_file(stopped / "2-depth" / "step-00000002" / f"{name}.safetensors") for name in ("average", "model"))
    assert found.keys() == average.keys()
    assert all(torch.equal(tensor, average[name]) for name, tensor in found.items())
    assert not torch.equal(average["conv_in.weight"], last["conv_in.weight"])
    assert (exported / "vae" / WEIGHTS).read_bytes() == (teacher_folder / "vae" / WEIGHTS).read_bytes()
    assert sorted(path.name for path in (exported / "losses").iterdir()) == ["1-half.jsonl", "2-depth.jsonl"]


def test_its_provenance_says_that_the_run_was_not_finished(stopped: Path, exported: Path, vega: Recipe, teacher_folder: Path) -> None:
    noted = read_json(exported / "provenance.json")
    assert noted["unfinished"] == {"stage": "depth", "step": 4, "steps": STEPS, "weights": "moving average"}
    assert [(stage["name"], stage["steps"], set(stage["losses"])) for stage in noted["stages"]] == [
        ("half", 2, {"task", "output", "feature"}),
        ("depth", 2, set()),
    ]
    assert (noted["steps"], noted["images"], noted["passes"]) == (4, 8, 4 * 2 / 8)
    assert noted["data_digest"] == read_json(stopped / "identity.json")["data"]
    assert (noted["recipe_digest"], noted["start"]) == (vega.digest, None)
    assert noted["cut"]["blocks"]["down_blocks.2.attentions.0"] == [*vega.cuts[-1].blocks["down_blocks.2.attentions.0"]]
    assert noted["teacher_digest"] == weights_digest(resolve(str(teacher_folder), name="teacher"))
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert "# vega, family scenes, unfinished\n" in card
    assert "**The run was not finished**: this student is that of stage `depth` after step 4 of 5 (weights: moving average)." in card
    assert "- stage `depth`, 2 steps\n" in card


def test_a_student_on_the_way_is_what_export_writes_at_its_step(
    stopped: Path, exported: Path, vega: Recipe, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = shutil.copytree(stopped.parent, tmp_path / "work")  # with a checkpoint after step 4, from which nothing was written yet
    distil(plan_run(vega, "scenes", [teacher_folder], STEPS), work, tmp_path / "out", export_every=2)
    (found,) = tmp_path.glob("out-*")
    assert found.name == "out-step-00000004"
    assert f"the student in {found} is that of stage `depth` after step 4 of 5 (weights: moving average)\n" in capsys.readouterr().err
    assert (found / WEIGHTS).read_bytes() == (exported / "unet" / WEIGHTS).read_bytes()
    assert read_json(found / "provenance.json") == read_json(exported / "provenance.json")
    assert not (found / "model_index.json").exists()
    losses = [{path.name: path.read_bytes() for path in (folder / "losses").iterdir()} for folder in (found, exported)]
    assert losses[0] == losses[1]


def test_students_on_the_way_change_no_byte_and_each_is_written_once(
    vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher is stored in 16 bits, in which the network that is being trained must not end up too."""
    half, out = tmp_path / "half", tmp_path / "out"
    StableDiffusionXLPipeline.from_pretrained(teacher_folder).to(torch.float16).save_pretrained(half)
    plan = plan_run(one_shot_recipe(vega), "scenes", [half], 12)
    plain = distil(plan, tmp_path / "plain-work", tmp_path / "plain", unet_only=True)
    calls = list[int]()

    def killed(*arguments: Any) -> Callable[[int], Batch]:
        of_step = batches.numbered_batches(*arguments)

        def batch(number: int) -> Batch:
            calls.append(number)
            if len(calls) == 8:
                raise KeyboardInterrupt
            return of_step(number)

        return batch

    monkeypatch.setattr(train, "numbered_batches", killed)
    with pytest.raises(KeyboardInterrupt):
        distil(plan, tmp_path / "work", out, unet_only=True, export_every=4)
    first = tmp_path / "out-step-00000004"
    assert [*tmp_path.glob("out*")] == [first]
    written = (first / WEIGHTS).stat()
    distil(plan, tmp_path / "work", out, unet_only=True, export_every=4)
    assert calls[8] == 0, "without a checkpoint, step 4 came twice"
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out", "out-step-00000004", "out-step-00000008"]
    assert (first / WEIGHTS).stat() == written
    assert (out / WEIGHTS).read_bytes() == (plain / WEIGHTS).read_bytes()
    assert {tensor.dtype for tensor in load_file(first / WEIGHTS).values()} == {torch.float16}


def test_a_student_on_the_way_of_another_run_is_not_taken_for_one_of_this(
    exported: Path, vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "LatentPool", lambda *_: pytest.fail("encoded"))
    shutil.copytree(exported, tmp_path / "out[1]-step-00000004")
    begin = partial(distil, work=tmp_path / "work", out=tmp_path / "out[1]", export_every=2)
    with pytest.raises(pytest.fail.Exception, match="encoded"):
        begin(plan_run(vega, "scenes", [teacher_folder], STEPS))
    with pytest.raises(UserError, match=r"out\[1\]-step-00000004 is not of this run, vega-\w{12}\. Move it away, or name another folder"):
        begin(plan_run(vega, "scenes", [teacher_folder], STEPS + 1))


def test_an_older_checkpoint_or_stage_is_exported_where_there_is_no_newer_one(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    depth = run.folder / "2-depth"
    (depth / "step-00000002" / "average.safetensors").write_bytes(b"cut short")
    run.export(tmp_path / "older", unet_only=True)
    said = capsys.readouterr().err
    assert f"cannot read checkpoint {depth / 'step-00000002'}: ValueError: average.safetensors is not as it was written\n" in said
    assert "the run is not finished; its student is that of stage `depth` after step 3 of 5 (weights: moving average)\n" in said
    (depth / "step-00000001" / "digests.json").unlink()
    with pytest.raises(UserError, match=r"cannot read checkpoint .*step-00000002: .*; there is none that can be read"):
        run.export(tmp_path / "none", unet_only=True)
    shutil.rmtree(depth)
    first = run.export(tmp_path / "first", unet_only=True)
    assert read_json(first / "provenance.json")["unfinished"]["stage"] == "half"
    assert (first / WEIGHTS).read_bytes() == (run.folder / "1-half" / "student" / WEIGHTS).read_bytes()
    shutil.rmtree(run.folder / "1-half")
    with pytest.raises(UserError, match=r"run has neither a finished stage nor a checkpoint yet"):
        run.export(tmp_path / "none", unet_only=True)
    assert not (tmp_path / "none").exists()


def test_what_is_no_run_or_has_another_teacher_now_is_refused(run: Run, teacher_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no run that trains in .*2-depth: it has no request\.json\. Expected the folder of a run, such as"
    ):
        open_run(run.folder / "2-depth")
    request = read_json(run.folder / "request.json")
    other = with_unet(teacher_folder, tmp_path / "other", tiny_unet("sdxl", 1))
    write_json(run.folder / "request.json", request | {"teachers": [str(other)]})
    with pytest.raises(UserError, match=r"is not what is there now; it differs in: teachers\. The teacher has to be in .*other, as it was"):
        open_run(run.folder)
    write_json(run.folder / "request.json", {key: request[key] for key in ("recipe", "family")})
    with pytest.raises(UserError, match=r"request\.json is damaged \(KeyError: 'start'\)"):
        open_run(run.folder)


def test_a_run_starts_from_a_student_in_its_stage(
    vega: Recipe, teacher_folder: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, asked = list[dict[str, torch.Tensor]](), list[tuple[list[Tap], int]]()

    def stepped(model: nn.Module, loss: Callable[[int], object], schedule: Schedule, folder: Path, **_: Any) -> nn.Module:
        starts.append(model.state_dict())
        loss(schedule.steps - 1)
        (folder / "log.jsonl").touch()
        return model

    def noted(_: object, __: object, taps: list[Tap], number: int) -> dict[str, torch.Tensor]:
        asked.append((taps, number))
        return {"task": torch.tensor(0.0)}

    monkeypatch.setattr(train, "fit", stepped)
    monkeypatch.setattr(train, "batch_loss_terms", noted)
    start = open_start(exported, vega)
    assert start == replace(open_start(exported / "unet", vega), provenance=start.provenance), "a UNet alone will do"
    out = distil(plan_run(vega, "scenes", [teacher_folder], 3, start), tmp_path / "work", tmp_path / "out", unet_only=True)
    (begun,), expected = starts, load_file(exported / "unet" / WEIGHTS)
    assert begun.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in begun.items())
    assert asked == [(plan_run(vega, "scenes", [teacher_folder]).taps[1], number) for number in (2, 3)]
    (run,) = (tmp_path / "work").glob("vega-*")
    assert [path.name for path in run.iterdir() if path.is_dir()] == ["1-depth"]
    assert read_json(run / "identity.json")["start"] == start.digest
    noted_by_run, noted_before = (read_json(folder / "provenance.json") for folder in (out, exported))
    assert noted_by_run["start"] == {"digest": start.digest, "provenance": noted_before}
    assert [(stage["name"], stage["steps"]) for stage in noted_by_run["stages"]] == [("depth", 3)]
    assert noted_by_run["unfinished"] is None
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "Training started from another student; `provenance.json`" in card
    assert " parameters, of the shape that is cut from a teacher of architecture sdxl by recipe\n`vega` and trained" in card
    again = open_run(run)
    assert (again.plan.start, again.plan.segments) == (start, plan_run(vega, "scenes", [teacher_folder], 3, start).segments)


def test_the_student_that_a_run_starts_from_is_part_of_the_run_and_its_licences_stay(vega: Recipe, teacher_folder: Path) -> None:
    starts = [
        None,
        *(Start(teacher_folder, 1, digest, {"licences": ["openrail++"]}) for digest in "ab"),
        Start(teacher_folder, 1, "c", None),
    ]
    plan = plan_run(vega, "scenes", [teacher_folder], STEPS)
    identities = [replace(plan, start=start).identity("data", "cpu") for start in starts]
    assert [identity.get("start") for identity in identities] == [None, "a", "b", "c"]
    assert "start" not in identities[0], "runs from a teacher keep theirs"
    licences = [Provenance.from_run(vega, plan.teachers, tiny_unet(), start=start).licences for start in starts[1:]]
    assert licences == [[None, "openrail++"], [None, "openrail++"], [None]], "the tiny teacher has none"


def test_a_student_of_another_shape_or_width_is_no_start(vega: Recipe, teacher_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no student in .*; expected a pipeline or a UNet in diffusers layout"):
        open_start(tmp_path, vega)
    tiny_unet("ssd-1b").save_pretrained(tmp_path / "other")
    with pytest.raises(
        UserError, match=r"the shape of no stage of recipe 'vega': it has 34 transformer blocks, the stages have: half \d+, depth 15\. Name"
    ):
        open_start(tmp_path / "other", vega)
    teacher = UNet2DConditionModel.from_pretrained(teacher_folder / "unet")
    prune(teacher, vega.cuts[0]).save_pretrained(tmp_path / "half")
    half = open_start(tmp_path / "half", vega)
    plan = plan_run(vega, "scenes", [teacher_folder], STEPS, half)
    assert [segment.stage for segment in plan.segments] == [0, 1], "later stages cut it further"
    check_start(plan)
    tiny_unet("vega", block_out_channels=[4, 8, 32]).save_pretrained(tmp_path / "wide")
    with pytest.raises(UserError, match=r"is not one of the teacher in .*: its '.*' has shape \[.*\], expected \[.*\]\. Name another"):
        check_start(plan_run(vega, "scenes", [teacher_folder], STEPS, open_start(tmp_path / "wide", vega)))
    tiny_unet("vega", time_cond_proj_dim=8).save_pretrained(tmp_path / "guided")  # as students of few steps have
    with pytest.raises(UserError, match=r"its 'time_embedding.cond_proj.weight' has shape \[.*\], expected none\."):
        check_start(plan_run(vega, "scenes", [teacher_folder], STEPS, open_start(tmp_path / "guided", vega)))


def test_a_start_from_rounded_weights_is_not_silent(
    vega: Recipe, teacher_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = prune(UNet2DConditionModel.from_pretrained(teacher_folder / "unet"), vega.cuts[-1])
    accelerator = SimpleNamespace(is_main_process=True, main_process_first=nullcontext, device=torch.device("cpu"))
    for dtype, said in ((torch.float32, ""), (torch.float16, f"rounded to F16, those in {tmp_path / 'float16'}\n")):
        folder = tmp_path / str(dtype).removeprefix("torch.")
        student.to(dtype).save_pretrained(folder)
        plan = plan_run(vega, "scenes", [teacher_folder], STEPS, open_start(folder, vega))
        train._open_images(plan, Pool(tmp_path, 1), tmp_path, cast("Accelerator", accelerator))
        assert capsys.readouterr().err.partition("starting from weights that were ")[2] == said


def test_a_start_that_may_keep_other_blocks_than_the_recipe_is_not_silent(
    vega: Recipe, teacher_folder: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (RECIPES / "vega.toml").read_text(encoding="utf-8")
    (tmp_path / "mine.toml").write_text(
        text.replace('name = "vega"', 'name = "mine"').replace("blocks = [0, 6]", "blocks = [0, 2]"), encoding="utf-8"
    )
    mine = load_recipe(tmp_path / "mine.toml")
    slower = vega.model_copy(update={"scenes": vega.settings("scenes").model_copy(update={"lr": 1e-9})})
    assert mine.cuts[-1] != vega.cuts[-1]
    assert slower.digest != vega.digest
    older = shutil.copytree(exported, tmp_path / "older")
    write_json(older / "provenance.json", {key: item for key, item in read_json(older / "provenance.json").items() if key != "cut"})
    accelerator = cast("Accelerator", SimpleNamespace(is_main_process=True, main_process_first=nullcontext, device=torch.device("cpu")))
    for recipe, student, expected in ((vega, exported, 0), (slower, exported, 0), (mine, exported, 1), (vega, older, 1)):
        plan = plan_run(recipe, "scenes", [teacher_folder], STEPS, open_start(student, recipe))
        train._open_images(plan, Pool(tmp_path, 1), tmp_path, accelerator)
        note = f"was made by recipe 'vega', and its provenance does not name the blocks that stage 'depth' of '{recipe.name}' keeps."
        assert capsys.readouterr().err.count(f"the student in {student / 'unet'} {note}") == expected


@pytest.mark.usefixtures("fake_estimates")
def test_a_dry_run_describes_only_the_stages_that_are_left(
    teacher_folder: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "vega", "--teacher", str(teacher_folder), "--from", str(exported), "--steps", "1", "--out", str(tmp_path / "out")]
    assert main([*words, "--work", str(tmp_path), "--dry-run"]) == 0
    said, noted = capsys.readouterr()
    assert "was made by recipe" not in noted, "its recipe has other shares, but the same cuts"
    assert f"this run: starts from {exported}, a student of stage depth\n" in said + "\n"
    assert "\nstage depth: 1 steps" in said, "too few for both stages"
    assert "stage half" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (NotFiniteError("the loss is not finite"), r"not finite\. To keep what was trained"),
        (torch.OutOfMemoryError("CUDA out of memory"), r"use a device with more\. On another GPU, .* For any other change"),
    ],
)
def test_an_error_that_asks_for_another_recipe_tells_how_to_go_on_from_what_was_trained(
    error: Exception, reason: str, run: Run, vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: nn.Module, __: object, ___: Schedule, folder: Path, **____: Any) -> None:
        (folder / "step-00000001").mkdir()
        raise error

    monkeypatch.setattr(train, "fit", failing)
    said = rf"{reason}: distillation export .*vega-.* --out STUDENT, then the changed run with --from STUDENT"
    with pytest.raises(UserError, match=said):
        distil(plan_run(vega, "scenes", [teacher_folder], STEPS), tmp_path / "work", tmp_path / "out")
    with pytest.raises(NotFiniteError, match=r"not finite$"), train._advise_export(replace(run, folder=tmp_path / "new")):
        raise NotFiniteError("the loss is not finite")
