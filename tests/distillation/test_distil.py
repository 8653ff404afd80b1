"""Runs with a tiny teacher: what a student consists of, that a stopped run ends like an unbroken one, and what is exported."""

import copy
import errno
import gc
import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from huggingface_hub.repocard import metadata_load
from processes import by_one, by_two, is_locked
from safetensors.torch import load_file, save_file
from tiny import edit_json, tiny_unet, with_unet
from torch import nn

from distillation import export, train
from distillation.ablation.experiment import one_shot_recipe
from distillation.accelerator import explain_training_memory, make_accelerator
from distillation.commands import data
from distillation.cut import MIDDLE_ATTENTION
from distillation.data import batches
from distillation.export import export_student
from distillation.provenance import Provenance
from distillation.prune import prune
from distillation.recipe import Recipe, load_recipe
from distillation.recipe_tables import KeepBlocks, Stage, Training
from distillation.run_folder import load_student, run_folder
from distillation.run_plan import RunPlan, plan_run
from distillation.sensitivity.budget import TIED_TO_MIDDLE
from distillation.succession import different_parts, warn_of_different_parts
from distillation.taps import Tap
from distillation.teacher import EMBEDDED, Teacher, fetch_folder, local_folder, open_teacher_for
from distillation.train import distil
from sdbench.disk import digest, read_json, read_json_lines, write_json
from sdbench.errors import UserError
from sdbench.machine import this_machine
from sdbench.models.architectures import unet_config
from sdbench.models.digest import weights_digest
from sdbench.models.files import part_files
from sdbench.models.resolve import resolve
from sdbench.models.text_encoders import PREFIX
from sdbench.scenes.training.pool import Pool
from sdbench.training.diffusion import Batch, predict
from sdbench.training.latents import LatentPool
from sdbench.training.loop import Schedule, fit
from sdbench.training.processes import rank_and_local_size

STEPS = 4
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def living() -> list[int]:
    """Number of UNets in memory when each stage of `student` starts to train."""
    return []


@pytest.fixture(scope="module")
def student(vega: Recipe, teacher_folder: Path, living: list[int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, before = tmp_path_factory.mktemp("run"), count_unets()

    def counted(*arguments: Any, **chosen: Any) -> Any:
        living.append(count_unets() - before)
        assert is_locked(arguments[3].parent / ".lock"), "another process that trains the same must wait"
        return fit(*arguments, **chosen)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "fit", counted)
        return distil(plan_run(vega, "scenes", [teacher_folder], STEPS), folder / "work", folder / "vega")


def count_unets() -> int:
    gc.collect()
    return sum(type(thing) is UNet2DConditionModel for thing in gc.get_objects())


@pytest.fixture(scope="module")
def half_teacher(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher in half precision."""
    folder = tmp_path_factory.mktemp("teacher") / "half"
    StableDiffusionXLPipeline.from_pretrained(teacher_folder).to(torch.float16).save_pretrained(folder)
    return folder


@pytest.fixture
def work(student: Path, tmp_path: Path) -> Path:
    """A copy of the student's work folder without the second stage."""
    return shutil.copytree(student.parent / "work", tmp_path / "work", ignore=shutil.ignore_patterns("2-depth"))


@pytest.fixture
def finish(vega: Recipe, teacher_folder: Path, work: Path, tmp_path: Path) -> Callable[[], Path]:
    """Trains the second stage, and writes the student to `out`."""
    return partial(distil, plan_run(vega, "scenes", [teacher_folder], STEPS), work, tmp_path / "out")


def cut(teacher_folder: Path, recipe: Recipe) -> dict[str, torch.Tensor]:
    """The student's weights before any training."""
    weights: dict[str, torch.Tensor] = prune(UNet2DConditionModel.from_pretrained(teacher_folder / "unet"), recipe.cuts[-1]).state_dict()
    return weights


def export_cut(teacher_folder: Path, recipe: Recipe, out: Path, *, unet_only: bool = False) -> Path:
    """Export the student without any training."""
    teacher = open_teacher_for(teacher_folder, recipe)
    student = prune(teacher.unet("float32", "cpu"), recipe.cuts[-1])
    return export_student(student, out, teacher, Provenance.from_run(recipe, [teacher], student), unet_only=unet_only)


class Interrupted:
    """Batches that stop the run at call number `stop`, and count the calls."""

    def __init__(self, stop: int) -> None:
        self.stop, self.calls = stop, 0

    def __call__(self, *arguments: Any) -> Callable[[int], Batch]:
        of_step = batches.numbered_batches(*arguments)

        def batch(step: int) -> Batch:
            self.calls += 1
            if self.calls == self.stop:
                raise KeyboardInterrupt
            return of_step(step)

        return batch


def test_a_stopped_run_ends_with_the_same_bytes_and_repeats_no_step(
    finish: Callable[[], Path], student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "fit", partial(fit, save_every_s=0))
    stopped, resumed = Interrupted(2), Interrupted(0)
    monkeypatch.setattr(train, "numbered_batches", stopped)
    with pytest.raises(KeyboardInterrupt):
        finish()
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(train, "numbered_batches", resumed)
    out = finish()
    assert resumed.calls == STEPS // 2 + train.FINAL_BATCHES - 1  # the first stage and the second one's first step were there
    assert (out / "unet" / WEIGHTS).read_bytes() == (student / "unet" / WEIGHTS).read_bytes()
    assert read_json(out / "provenance.json")["stages"] == read_json(student / "provenance.json")["stages"]


def test_batches_that_a_thread_makes_ahead_change_no_byte(
    finish: Callable[[], Path], student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ahead(pool: LatentPool, settings: Training, _: str, processes: int) -> Callable[[int], Batch]:
        return batches.made_ahead(lambda number: pool.batch(number, settings.batch, settings.seed, settings.drop), processes)

    monkeypatch.setattr(train, "numbered_batches", ahead)
    assert (finish() / "unet" / WEIGHTS).read_bytes() == (student / "unet" / WEIGHTS).read_bytes()


def test_each_stage_names_the_versions_that_it_was_trained_with(finish: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "fit", partial(fit, save_every_s=0))
    for torch_version, stop in (("1", 1), ("2", 2), ("3", 0)):  # the first upgrade comes before the first checkpoint, the second after it
        monkeypatch.setattr("distillation.provenance.package_versions", lambda version=torch_version: {"torch": version})
        monkeypatch.setattr(train, "numbered_batches", Interrupted(stop))
        if stop:
            with pytest.raises(KeyboardInterrupt):
                finish()
    first, second = read_json(finish() / "provenance.json")["stages"]
    (earlier,) = first["environments"]
    assert earlier["versions"]["torch"] == metadata.version("torch")
    assert (earlier["device"], earlier["processes"], earlier["threads"]) == (this_machine("cpu").cpu, 1, torch.get_num_threads())
    assert [environment["versions"]["torch"] for environment in second["environments"]] == ["2", "3"]


@pytest.mark.gpu
def test_a_gpu_trains_in_bfloat16(vega: Recipe, teacher_folder: Path, tmp_path: Path) -> None:
    settings = vega.settings("scenes").model_copy(update={"dtype": "bfloat16", "checkpointing": True})
    recipe, places = vega.model_copy(update={"scenes": settings}), (tmp_path / "work", tmp_path / "out")
    trained = load_file(distil(plan_run(recipe, "scenes", [teacher_folder], STEPS), *places, device="cuda", unet_only=True) / WEIGHTS)
    start = cut(teacher_folder, vega)
    assert all(tensor.isfinite().all() for tensor in trained.values())
    assert sum(not torch.equal(tensor, start[name]) for name, tensor in trained.items()) > len(start) / 2


class DigestedOnce(Pool):
    """Rendered scenes whose digest only the main process may ask for: that of real images may take reading them all."""

    @cached_property
    def digest(self) -> str:
        assert rank_and_local_size()[0] == 0
        return super().digest


def of_two_batches(recipe: Recipe, teacher: Path, folder: Path) -> Path:
    """Train with two accumulated batches per step and gradient checkpointing; returns the path of the weights."""
    changes = {"accumulation": 2, "checkpointing": True}
    recipe = one_shot_recipe(recipe.model_copy(update={"scenes": recipe.settings("scenes").model_copy(update=changes)}))
    images = DigestedOnce(folder / "work" / "pool", recipe.settings("scenes").images)
    plan = plan_run(recipe, "scenes", [teacher], 2)
    return distil(plan, folder / "work", folder / "out", images=images, unet_only=True, export_every=1) / WEIGHTS


def test_two_processes_make_the_student_that_one_makes(vega: Recipe, teacher_folder: Path, tmp_path: Path) -> None:
    assert by_two(of_two_batches, vega, teacher_folder, tmp_path / "by-2") == [0, 0]
    together, alone = load_file(tmp_path / "by-2" / "out" / WEIGHTS), load_file(of_two_batches(vega, teacher_folder, tmp_path / "by-1"))
    start = cut(teacher_folder, vega)
    apart = torch.stack([(together[name] - tensor).square().sum() for name, tensor in alone.items()]).sum().sqrt()
    moved = torch.stack([(tensor - start[name]).square().sum() for name, tensor in alone.items()]).sum().sqrt()
    assert apart < 0.01 * moved
    assert [path.name for path in (tmp_path / "by-2").glob("out-*")] == ["out-step-00000001"]
    (run,) = (tmp_path / "by-2" / "work").glob("vega-*")
    assert [path.name for path in (tmp_path / "by-1" / "work").glob("vega-*")] == [run.name], "either can continue the other's run"


def test_processes_that_cannot_share_a_step_evenly_are_refused_first(
    vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(UserError, match="1 batches per step cannot be shared evenly by 2 processes; start 1, or change"):
        distil(plan_run(vega, "scenes", [teacher_folder], STEPS), tmp_path / "work", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_process_trains_on_one_device_in_one_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    make_accelerator("cpu", "float32")
    with pytest.raises(UserError, match="already trained with other settings; start a new one to train in bfloat16 on cpu"):
        make_accelerator("cpu", "bfloat16")
    monkeypatch.setattr(Accelerator, "device", torch.device("cuda"))
    with pytest.raises(UserError, match="already trained on cuda; start a new one to train on cpu"):
        make_accelerator("cpu", "float32")


@pytest.fixture
def old_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every GPU only emulates bfloat16."""
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)


@pytest.mark.usefixtures("old_gpu")
def test_emulated_bfloat16_is_not_silent(
    vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = SimpleNamespace(is_main_process=True, main_process_first=nullcontext)
    for device, dtype, warned in (("cuda", "bfloat16", True), ("cuda", "float32", False), ("cpu", "bfloat16", False)):
        accelerator = SimpleNamespace(device=torch.device(device), **vars(place))
        recipe = vega.model_copy(update={"scenes": vega.settings("scenes").model_copy(update={"dtype": dtype})})
        plan = plan_run(recipe, "scenes", [teacher_folder], STEPS)
        train._open_images(plan, Pool(tmp_path, 1), tmp_path, cast("Accelerator", accelerator))
        assert ("only emulates bfloat16" in capsys.readouterr().err) == warned
    assert [data._default_dtype(device) for device in ("cpu", "cuda:0")] == ["float32", "float16"]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert data._default_dtype("cuda:0") == "bfloat16"


def test_a_launcher_that_shards_networks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(UserError, match=r"accelerate is set up for FSDP, which shards networks; .* with torchrun"):
        make_accelerator("cpu", "float32")


def test_more_processes_than_gpus_are_refused_before_accelerate_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distillation.accelerator.Accelerator", lambda **_: pytest.fail("started"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(UserError, match=r"8 processes were started on a machine where torch finds 4 GPUs; .* start at most 4"):
        make_accelerator("cuda", "float32")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(pytest.fail.Exception, match="started"):
        make_accelerator("cuda", "float32")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("batch", [1, 16])
def test_an_out_of_memory_error_tells_the_way_out(batch: int, checkpointing: bool, vega: Recipe) -> None:
    settings = vega.settings("sdxl").model_copy(update={"batch": batch, "checkpointing": checkpointing})
    said = rf"too little memory on cuda .* batch = {batch}, accumulation = 8 .*Tried to allocate 2.00 GiB\.\); .*use a device with more$"
    with pytest.raises(UserError, match=said) as error, explain_training_memory(settings, "cuda"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it")
    assert ("halve batch and double accumulation" in str(error.value)) == (batch > 1)
    assert ("set checkpointing = true" in str(error.value)) != checkpointing
    with pytest.raises(RuntimeError, match="something else"), explain_training_memory(settings, "cuda"):
        raise RuntimeError("something else")


@pytest.mark.parametrize(
    ("name", "stage", "accumulation", "gigabytes", "said"),
    [
        (
            "vega",
            0,
            8,
            24,
            r"stage 'half' takes 25\.7 GB before any image, .*; cuda has 24 GB, so no batch is small enough\. .*takes 18\.5 GB$",
        ),
        ("vega", 1, 8, 24, None),
        ("vega", 0, 8, 26, None),
        ("vega", 0, 1, 24, None),
        ("ssd-1b", 1, 8, 24, r"stage 'depth' takes 29\.1 GB before any image, .*small enough\. Use a GPU with more memory$"),
    ],
)
def test_a_gpu_that_holds_no_batch_of_a_stage_is_refused(
    name: str, stage: int, accumulation: int, gigabytes: int, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, teacher = load_recipe(name), cast("Teacher", SimpleNamespace(config=unet_config("sdxl")))
    recipe = recipe.model_copy(update={"sdxl": recipe.settings("sdxl").model_copy(update={"accumulation": accumulation})})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (0, gigabytes * 10**9))
    with pytest.raises(UserError, match=said) if said else nullcontext():
        RunPlan(recipe, "sdxl", [teacher], [], []).check_memory(stage, torch.device("cuda"))


def test_too_small_a_gpu_is_refused_before_images_are_encoded(
    finish: Callable[[], Path], student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise UserError(f"stage {arguments[1]}")

    with monkeypatch.context() as patch:
        patch.setattr(RunPlan, "check_memory", refuse)
        patch.setattr(train, "LatentPool", lambda *_: pytest.fail("encoded"))
        with pytest.raises(UserError, match="stage 1"):  # the first is there
            finish()
    assert (finish() / "unet" / WEIGHTS).read_bytes() == (student / "unet" / WEIGHTS).read_bytes()


def test_too_little_memory_to_encode_is_explained(finish: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train, "LatentPool", full)
    with pytest.raises(UserError, match=r"too little memory on cpu to encode the images \(CUDA out of memory\); use a device with more"):
        finish()


def test_a_run_without_enough_memory_tells_the_way_out(
    vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(train, "fit", full)
    with pytest.raises(UserError, match="too little memory on cpu to train with batch = 2"):
        distil(plan_run(vega, "scenes", [teacher_folder], STEPS), tmp_path / "work", tmp_path / "out")


def test_a_finished_run_is_only_exported(
    vega: Recipe, teacher_folder: Path, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Interrupted(1)
    monkeypatch.setattr(train, "numbered_batches", batches)
    (left,) = (student.parent / "work").glob("vega-*/2-depth")
    (left / "step-00000002").mkdir()  # as left by a run killed before it removed its checkpoint
    out = distil(plan_run(vega, "scenes", [teacher_folder], STEPS), student.parent / "work", tmp_path / "again", unet_only=True)
    assert (out / WEIGHTS).read_bytes() == (student / "unet" / WEIGHTS).read_bytes()
    assert not (out / "model_index.json").exists()
    assert not (left / "step-00000002").exists()


def test_a_full_disk_keeps_the_stages_last_checkpoint(
    finish: Callable[[], Path], student: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(UNet2DConditionModel, "save_pretrained", full)
        with pytest.raises(
            UserError, match=r"cannot write student to .*2-depth.*No space left.*the last good checkpoint is .*step-00000002"
        ):
            finish()
    (stage,) = work.glob("vega-*/2-depth")
    assert {path.name for path in stage.iterdir()} == {"environments.json", "log.jsonl", "samples", "step-00000002", "tensorboard"}
    assert (finish() / "unet" / WEIGHTS).read_bytes() == (student / "unet" / WEIGHTS).read_bytes()


@pytest.mark.usefixtures("student")
def test_only_student_and_teacher_are_in_memory_during_a_stage(living: list[int]) -> None:
    assert living == [2, 2]


def test_gradient_checkpointing_gives_the_same_student(vega: Recipe, teacher_folder: Path, student: Path, tmp_path: Path) -> None:
    frugal = vega.model_copy(update={"scenes": vega.settings("scenes").model_copy(update={"checkpointing": True})})
    out = distil(plan_run(frugal, "scenes", [teacher_folder], STEPS), tmp_path / "work", tmp_path / "out")
    kept = load_file(student / "unet" / WEIGHTS)
    for name, tensor in load_file(out / "unet" / WEIGHTS).items():
        torch.testing.assert_close(tensor, kept[name], msg=name)


def test_a_student_with_fewer_resnets_and_no_middle_trains_too(vega: Recipe, teacher_folder: Path, tmp_path: Path) -> None:
    koala = one_shot_recipe(load_recipe("koala-700m")).model_copy(update={"scenes": vega.scenes})
    out = distil(plan_run(koala, "scenes", [teacher_folder], 1), tmp_path / "work", tmp_path / "out")
    assert resolve(str(out), name="student").architecture == "koala-700m"
    start, trained = cut(teacher_folder, koala), StableDiffusionXLPipeline.from_pretrained(out).unet.state_dict()
    assert start.keys() == trained.keys()
    assert not torch.equal(start["up_blocks.0.resnets.1.conv1.weight"], trained["up_blocks.0.resnets.1.conv1.weight"])


def test_samples_are_saved_after_each_stage(student: Path) -> None:
    for stage in ("1-half", "2-depth"):
        (folder,) = (student.parent / "work").glob(f"vega-*/{stage}")
        assert [path.name for path in (folder / "samples").iterdir()] == [f"step-{STEPS // 2:08d}.png"]
        assert "scene_accuracy" in [*read_json_lines(folder / "log.jsonl")][-1]
        assert not list(folder.glob("step-*"))


def test_the_student_is_a_stock_pipeline_that_was_trained(vega: Recipe, teacher_folder: Path, student: Path) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(student)
    start, trained = cut(teacher_folder, vega), pipeline.unet.state_dict()
    assert start.keys() == trained.keys()
    assert not torch.equal(start["conv_in.weight"], trained["conv_in.weight"])
    assert resolve(str(student), name="student").architecture == "vega"
    for part in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler"):
        for file in (teacher_folder / part).iterdir():
            assert (student / part / file.name).read_bytes() == file.read_bytes()


def test_provenance_records_how_the_student_was_made(vega: Recipe, teacher_folder: Path, student: Path) -> None:
    noted = read_json(student / "provenance.json")
    unet = UNet2DConditionModel.from_pretrained(student / "unet")
    assert noted["recipe_digest"] == vega.digest
    assert noted["teacher_digest"] == weights_digest(resolve(str(teacher_folder), name="teacher"))
    assert noted["parameters"] == sum(parameter.numel() for parameter in unet.parameters())
    assert noted["unfinished"] is noted["start"] is None
    assert (noted["steps"], noted["seed"], noted["family"]) == (STEPS, vega.settings("scenes").seed, "scenes")
    assert [(stage["name"], stage["steps"], set(stage["losses"])) for stage in noted["stages"]] == [
        (stage.name, 2, {"task", "output", "feature"}) for stage in vega.stages
    ]
    assert str(teacher_folder) not in json.dumps(noted)
    for stage in ("1-half", "2-depth"):
        (log,) = (student.parent / "work").glob(f"vega-*/{stage}/log.jsonl")
        assert (student / "losses" / f"{stage}.jsonl").read_text(encoding="utf-8") == log.read_text(encoding="utf-8")


def test_the_model_card_has_the_teachers_licence(vega: Recipe, teacher_folder: Path, student: Path, tmp_path: Path) -> None:
    assert metadata_load(student / "README.md") == {"library_name": "diffusers", "tags": ["distillation", "vega"]}
    assert "which its folder does not name" in (student / "README.md").read_text(encoding="utf-8")
    shutil.copytree(teacher_folder, tmp_path / "named")
    (tmp_path / "named" / "README.md").write_text("---\nlicense: openrail++\n---\nA teacher.\n", encoding="utf-8")
    out = export_cut(tmp_path / "named", vega, tmp_path / "out", unet_only=True)
    metadata = metadata_load(out / "README.md")
    assert metadata
    assert metadata["license"] == "openrail++"
    assert open_teacher_for(EMBEDDED, vega).licence == "apache-2.0"
    (tmp_path / "named" / "README.md").write_text(
        "---\nlicense: open: rail\n---\n", encoding="utf-8"
    )  # refused before training, not after it
    with pytest.raises(
        UserError, match=r"cannot read the licence, which students inherit, from .*README.md: mapping values are not allowed"
    ):
        open_teacher_for(tmp_path / "named", vega)


def test_every_setting_reaches_the_loop_and_its_batches(
    vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_schedule: dict[str, Any] = {
        "lr": 3e-5, "batch": 3, "warmup": 7, "weight_decay": 0.03, "ema": 0.75, "clip_norm": 0.5, "seed": 11, "accumulation": 2,
        "betas": (0.8, 0.95), "lr_decay": "none",
    }  # fmt: skip
    recipe = vega.model_copy(update={"scenes": vega.settings("scenes").model_copy(update={**of_schedule, "drop": 0.25})})
    schedules, asked = list[Schedule](), list[tuple[Any, ...]]()

    def noted(_: nn.Module, loss: Callable[[int], object], schedule: Schedule, *__: Any, **___: Any) -> None:
        schedules.append(schedule)
        loss(5)

    def stopped(_: LatentPool, *arguments: Any) -> None:
        asked.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "fit", noted)
    monkeypatch.setattr(LatentPool, "batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        distil(plan_run(recipe, "scenes", [teacher_folder], STEPS), tmp_path / "work", tmp_path / "out")
    assert [asdict(schedule) for schedule in schedules] == [{**of_schedule, "steps": STEPS // 2}]
    assert asked == [(5, 3, 11, 0.25)]


def test_a_step_predicts_from_noised_latents_what_the_teachers_scheduler_says(
    vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, drawn, inputs, students = list[dict[str, Any]](), list[Batch](), list[torch.Tensor](), list[UNet2DConditionModel]()

    def batches_noted(pool: LatentPool, *arguments: Any) -> Callable[[int], Batch]:
        drawn.append(batches.numbered_batches(pool, *arguments)(3))
        return lambda number: {3: drawn[0]}[number]

    def predict_and_note(unet: UNet2DConditionModel, noised: torch.Tensor, batch: Batch) -> torch.Tensor:
        inputs.append(noised)
        return predict(unet, noised, batch)

    def once(student: UNet2DConditionModel, loss: Callable[[int], object], *_: Any, **__: Any) -> None:
        students.append(student)
        loss(3)
        raise KeyboardInterrupt

    recipe = vega.model_copy(update={"loss": vega.loss.model_copy(update={"snr_gamma": 5.0})})
    monkeypatch.setattr(train, "numbered_batches", batches_noted)
    monkeypatch.setattr(train, "predict", predict_and_note)
    monkeypatch.setattr(train, "weighted_terms", lambda *_, **terms: given.append(terms))
    monkeypatch.setattr(train, "fit", once)
    with pytest.raises(KeyboardInterrupt):
        distil(plan_run(recipe, "scenes", [teacher_folder], STEPS), tmp_path / "work", tmp_path / "out")
    (batch,), (terms,), (student,) = drawn, given, students
    share = DDIMScheduler.from_pretrained(teacher_folder / "scheduler").alphas_cumprod[batch.timesteps][:, None, None, None]
    noised, velocity = (
        share.sqrt() * batch.latents + (1 - share).sqrt() * batch.noise,
        share.sqrt() * batch.noise - (1 - share).sqrt() * batch.latents,
    )
    assert len(inputs) == 2, "of teacher and student"
    for each in inputs:
        torch.testing.assert_close(each, noised)
    torch.testing.assert_close(terms["target"], velocity)
    snr = (share / (1 - share)).flatten()
    torch.testing.assert_close(terms["sample_weights"], snr.clamp(max=5) / (snr + 1))
    teacher = UNet2DConditionModel.from_pretrained(teacher_folder / "unet")
    for name, unet in {"student": student, "teacher": teacher}.items():
        torch.testing.assert_close(terms[name], predict(unet, noised, batch))
        assert terms[name].requires_grad == (name == "student"), "only the student is trained"


def test_a_stage_continues_the_student_and_the_batches_of_the_one_before(
    vega: Recipe, half_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    koala = load_recipe("koala-700m")
    whole = Stage(name="whole", share=0.5, keep=(KeepBlocks(attentions="up_blocks.1.attentions.*", blocks="all", source=""),))
    settings = vega.settings("scenes").model_copy(update={"accumulation": 2, "checkpointing": True})
    recipe = koala.model_copy(update={"scenes": settings, "stages": (whole, koala.stages[0].model_copy(update={"share": 0.5}))})
    starts, asked = list[torch.Tensor](), list[tuple[list[Tap], int]]()

    def moved(model: nn.Module, loss: Callable[[int], object], _: Schedule, folder: Path, **__: Any) -> nn.Module:
        assert model.is_gradient_checkpointing
        weight = model.get_parameter("conv_in.weight")
        starts.append(weight.detach().clone())
        loss(0)
        with torch.no_grad():
            weight.add_(1)
        (folder / "log.jsonl").touch()
        return model

    def noted(context: train.StepContext, _: object, taps: list[Tap], number: int) -> dict[str, torch.Tensor]:
        assert context.teacher.dtype == torch.float32
        asked.append((taps, number))
        return {"task": torch.tensor(0.0)}

    monkeypatch.setattr(train, "fit", moved)
    monkeypatch.setattr(train, "batch_loss_terms", noted)
    distil(plan_run(recipe, "scenes", [half_teacher], 4), tmp_path / "work", tmp_path / "out", unet_only=True)
    assert [start.dtype for start in starts] == [torch.float32] * 2, "nothing is trained in the teacher's half precision"
    assert torch.equal(starts[1], starts[0] + 1)
    first, last = plan_run(recipe, "scenes", [half_teacher], 4).taps
    assert first != last
    assert asked == [(first, 0), (first, 4), (last, 4), (last, 8)]  # each stage's first batch, and the one after its two steps


def test_several_teachers_licences_are_all_named(vega: Recipe, teacher_folder: Path, tmp_path: Path) -> None:
    for name, licence in (("one", "openrail++"), ("two", "mit")):
        shutil.copytree(teacher_folder, tmp_path / name)
        (tmp_path / name / "README.md").write_text(f"---\nlicense: {licence}\n---\n", encoding="utf-8")
    (tmp_path / "one" / "LICENSE.md").write_text("its text", encoding="utf-8")
    found = [open_teacher_for(tmp_path / name, vega) for name in ("one", "two", "one")] + [open_teacher_for(teacher_folder, vega)]
    student = prune(found[0].unet("float32", "cpu"), vega.cuts[-1])
    out = export_student(student, tmp_path / "out", found[0], Provenance.from_run(vega, found, student))
    metadata = metadata_load(out / "README.md")
    assert metadata
    assert metadata["license"] == "other"
    assert "openrail++ and mit and one that is not named, as those of the teachers." in (out / "README.md").read_text(encoding="utf-8")
    assert (out / "LICENSE.md").read_text(encoding="utf-8") == "its text"


def test_a_student_of_a_16_bit_teacher_is_stored_in_16_bits_and_loads_without_a_variant(
    vega: Recipe, teacher_folder: Path, tmp_path: Path
) -> None:
    pipeline = StableDiffusionXLPipeline.from_pretrained(teacher_folder).to(torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16", max_shard_size="20kB")
    assert list((tmp_path / "half" / "text_encoder").glob("*.index.fp16.json"))
    (tmp_path / "half" / "vae" / "diffusion_pytorch_model.bin").write_bytes(b"of another kind")
    (tmp_path / "half" / "tokenizer" / ".ipynb_checkpoints").mkdir()
    out = export_cut(tmp_path / "half", vega, tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(out / "unet" / WEIGHTS).values()} == {torch.float16}
    loaded = StableDiffusionXLPipeline.from_pretrained(out, dtype=torch.float16)
    expected = pipeline.text_encoder.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.text_encoder.state_dict().items())
    assert not [path.name for path in out.rglob("*") if "fp16" in path.name or path.suffix == ".bin"]


def test_a_student_draws_as_its_card_says_how_to_load_it(vega: Recipe, half_teacher: Path, tmp_path: Path) -> None:
    card = (export_cut(half_teacher, vega, tmp_path / "out") / "README.md").read_text(encoding="utf-8")
    arguments = re.findall(r"\bdtype=torch\.(\w+)", card)
    assert arguments == ["float16", "float32"], "without a dtype, the parts are loaded in several, which cannot draw"
    for dtype in arguments:
        pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "out", dtype=getattr(torch, dtype))
        assert pipeline("a circle", num_inference_steps=1, height=64, width=64, output_type="pt").images.isfinite().all()


def test_teachers_with_different_noise_are_refused(vega: Recipe, teacher_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher_folder, tmp_path / "other")
    edit_json(tmp_path / "other" / "scheduler" / "scheduler_config.json", prediction_type="epsilon")
    with pytest.raises(
        UserError, match=r"different noise from the one in .*: its scheduler's prediction_type is epsilon, not v_prediction"
    ):
        plan_run(vega, "scenes", [teacher_folder, tmp_path / "other", teacher_folder])


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        # the schedulers of Playground v2.5, of flow matching, and of a flow in a scheduler that has betas too
        ("scheduler/scheduler_config.json", {"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5}, "EDMDPMSolver"),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}, "FlowMatchEuler"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "linear", "use_flow_sigmas": True}, "DDIMScheduler"),
        ("vae/config.json", {"latents_mean": [0.0, 1.0, 0.0, 1.0]}, "latents_mean"),
    ],
)
def test_a_teacher_with_another_diffusion_process_is_refused(
    file: str, changes: dict[str, Any], said: str, vega: Recipe, teacher_folder: Path, tmp_path: Path
) -> None:
    config = shutil.copytree(teacher_folder, tmp_path / "other") / file
    write_json(config, {key: value for key, value in read_json(config).items() if not key.startswith("beta_")} | changes)
    with pytest.raises(UserError, match=f"other uses a kind of diffusion that cannot be trained here: .*{said}"):
        plan_run(vega, "scenes", [tmp_path / "other"])
    with pytest.raises(UserError, match=said):
        LatentPool(tmp_path / "other", Pool(tmp_path, 1), tmp_path)


def test_a_later_teacher_with_other_text_encoders_or_vae_gets_a_warning(
    vega: Recipe, teacher_folder: Path, half_teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rounded = (half_teacher, tmp_path / "brain")
    StableDiffusionXLPipeline.from_pretrained(teacher_folder).to(torch.bfloat16).save_pretrained(rounded[1])
    tuned = with_unet(teacher_folder, tmp_path / "tuned", tiny_unet("sdxl", 1)) / "text_encoder_2" / "model.safetensors"
    save_file({name: tensor + 1e-3 for name, tensor in load_file(tuned).items()}, tuned)
    capsys.readouterr()  # diffusers may warn about float16
    warn_of_different_parts([open_teacher_for(folder, vega) for folder in (teacher_folder, tmp_path / "tuned", *rounded)])
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(
        f"the teacher in {tmp_path / 'tuned'} differs from the first one, in {teacher_folder}, in its text_encoder_2, but"
    )


def test_a_text_encoder_with_added_tokens_is_another(teacher_folder: Path, tmp_path: Path) -> None:
    file = shutil.copytree(teacher_folder, tmp_path / "grown") / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    (name,) = (name for name in tensors if name.endswith("token_embedding.weight"))
    save_file(tensors | {name: torch.cat([tensors[name], tensors[name][:1]])}, file)
    assert different_parts(teacher_folder, tmp_path / "grown") == ["text_encoder"]
    assert different_parts(teacher_folder, teacher_folder) == []
    save_file(tensors | {"a_layer_more.weight": torch.zeros(3)}, file)
    assert different_parts(teacher_folder, tmp_path / "grown") == ["text_encoder"]


def test_a_text_encoder_as_another_version_of_transformers_stores_it_is_the_same(teacher_folder: Path, tmp_path: Path) -> None:
    file = shutil.copytree(teacher_folder, tmp_path / "other") / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    renamed = {name.removeprefix(PREFIX) if name.startswith(PREFIX) else PREFIX + name: tensor for name, tensor in tensors.items()}
    save_file(renamed | {"embeddings.position_ids": torch.arange(77)[None]}, file)
    assert different_parts(teacher_folder, tmp_path / "other") == []


def test_a_new_run_tells_how_earlier_ones_differ(vega: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "work"
    decides = {"recipe": vega.training_digest("scenes"), "steps": 4}
    run_folder(work, "vega-mine", decides)  # another recipe's
    before = run_folder(work, "vega", decides)
    reworded = vega.model_copy(update={"middle": vega.middle.model_copy(update={"source": "a better one"})})
    assert run_folder(work, "vega", decides | {"recipe": reworded.training_digest("scenes")}) == before
    assert capsys.readouterr().err == ""
    lower = vega.model_copy(update={"scenes": vega.settings("scenes").model_copy(update={"lr": 1e-5})})
    after = run_folder(work, "vega", decides | {"recipe": lower.training_digest("scenes")})
    assert capsys.readouterr().err == f"starting a new run in {after}; the run in {before} differs in: recipe\n"
    newer = run_folder(work, "vega", decides | {"device": "cpu"})
    assert f"starting a new run in {newer}; the run in {before} differs in: device\n" in capsys.readouterr().err


def test_whatever_decides_the_weights_decides_the_run(vega: Recipe, teacher_folder: Path, tmp_path: Path) -> None:
    tuned = with_unet(teacher_folder, tmp_path / "tuned", tiny_unet("sdxl", 1))
    faster = vega.model_copy(update={"scenes": vega.settings("scenes").model_copy(update={"lr": 1.0})})
    settings = vega.settings("sdxl")
    rows = tuple(row.model_copy(update={"share": share}) for row, share in zip(settings.teachers, (0.25, 0.5, 0.25), strict=True))
    shared = vega.model_copy(update={"sdxl": settings.model_copy(update={"teachers": rows})})
    runs: list[tuple[Recipe, list[Path], int, str]] = [
        (vega, [teacher_folder], STEPS, "data"),
        (faster, [teacher_folder], STEPS, "data"),
        (vega, [tuned], STEPS, "data"),
        (vega, [teacher_folder], STEPS + 2, "data"),
        (vega, [teacher_folder], STEPS, "other data"),
        (vega, [teacher_folder, teacher_folder, teacher_folder], STEPS, "data"),
        (shared, [teacher_folder, teacher_folder, teacher_folder], STEPS, "data"),
        (vega, [teacher_folder, teacher_folder, tuned], STEPS, "data"),
    ]

    def identity(recipe: Recipe, folders: list[Path], steps: int, data: str) -> str:
        return digest(plan_run(recipe, "scenes", folders, steps).identity(data, "cpu"))

    assert len({identity(*run) for run in runs}) == len(runs)
    reworded = vega.model_copy(update={"middle": vega.middle.model_copy(update={"source": "a better one"})})
    assert identity(reworded, [teacher_folder], STEPS, "data") == identity(*runs[0])


def test_repeatable_bytes_are_not_taken_from_a_run_that_did_not_ask_for_them(
    vega: Recipe, teacher_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, digests = plan_run(vega, "scenes", [teacher_folder], STEPS), dict[tuple[str, bool], str]()
    for device, deterministic in itertools.product(("cpu", "cuda"), (False, True)):
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda wanted=deterministic: wanted)
        digests[device, deterministic] = digest(plan.identity("data", device))
    assert digests["cuda", True] != digests["cuda", False]
    assert digests["cpu", True] == digests["cpu", False] not in (digests["cuda", True], digests["cuda", False])


@pytest.mark.parametrize(
    ("name", "location", "folder"),
    [
        (None, "pipeline", EMBEDDED),
        ("scenes-teacher", "pipeline", EMBEDDED),
        ("sdxl", "stabilityai/stable-diffusion-xl-base-1.0", Path("cached")),
    ],
)
def test_a_teacher_is_found_by_name(name: str | None, location: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[tuple[str, str]] = []
    monkeypatch.setattr("distillation.teacher.fetch", lambda spec, dtype: fetched.append((spec.location, dtype)))
    monkeypatch.setattr("distillation.teacher.fetch_card", lambda spec: fetched.append((spec.location, "card")))
    if name == "sdxl":
        monkeypatch.setattr("distillation.teacher.locate", lambda _: SimpleNamespace(pipeline=Path("cached")))
    assert fetch_folder(name) == folder
    assert fetched == [(location, "float32"), (location, "card")]


def test_a_teacher_in_two_precisions_is_read_in_32_bits(vega: Recipe, teacher_folder: Path, tmp_path: Path) -> None:
    alone = open_teacher_for(teacher_folder, vega)
    shutil.copytree(teacher_folder, tmp_path / "both")
    for part in ("unet", "vae"):
        noise = {name: torch.randn(tensor.shape).half() for name, tensor in load_file(teacher_folder / part / WEIGHTS).items()}
        save_file(noise, tmp_path / "both" / part / WEIGHTS.replace(".", ".fp16.", 1))
    both = open_teacher_for(tmp_path / "both", vega)
    assert (both.dtype, both.digest) == ("float32", alone.digest)
    taught = both.unet("bfloat16", "cpu").state_dict()
    assert all(torch.equal(taught[name], tensor) for name, tensor in alone.unet("bfloat16", "cpu").state_dict().items())
    assert different_parts(teacher_folder, tmp_path / "both") == []
    assert [path.name for path in part_files(tmp_path / "both" / "vae", "vae")] == ["config.json", WEIGHTS], "what the student is given"


def test_an_incomplete_pipeline_is_not_a_teacher() -> None:
    with pytest.raises(UserError, match="is not a complete pipeline in diffusers layout; name a folder, 'sdxl', or owner/name"):
        fetch_folder("scenes-vega")
    with pytest.raises(UserError, match="nowhere"):
        fetch_folder("nowhere")


def test_a_teacher_in_one_file_is_refused_with_the_way_to_make_a_folder_of_it(teacher_folder: Path) -> None:
    file = teacher_folder / "unet" / WEIGHTS
    with pytest.raises(UserError, match=r"is a file; .*from_single_file\('.*'\)\.save_pretrained\('diffusion_pytorch_model'\)"):
        fetch_folder(str(file))


def test_a_damaged_folder_is_not_taken_for_one_to_fetch(teacher_folder: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(teacher_folder, tmp_path / "damaged")
    (damaged / "unet" / WEIGHTS).unlink()  # which opening it reports
    assert local_folder(str(damaged)) == fetch_folder(str(damaged)) == damaged


def test_a_teachers_folder_may_be_in_a_home_folder(teacher_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(teacher_folder.parent))
    monkeypatch.setenv("USERPROFILE", str(teacher_folder.parent))
    assert fetch_folder(f"~/{teacher_folder.name}") == teacher_folder


def test_training_brings_the_student_closer_to_the_teacher(vega: Recipe, teacher_folder: Path, tmp_path: Path) -> None:
    scenes = vega.settings("scenes").model_copy(update={"lr": 5e-3})
    brisk = one_shot_recipe(vega).model_copy(update={"scenes": scenes, "loss": vega.loss.model_copy(update={"task": 0.0})})
    out = distil(plan_run(brisk, "scenes", [teacher_folder], 10), tmp_path / "work", tmp_path / "out")
    (log,) = (tmp_path / "work").glob("vega-*/1-all/log.jsonl")
    first, last = next(read_json_lines(log)), read_json(out / "provenance.json")["stages"][-1]["losses"]
    assert last["output"] + last["feature"] < 0.9 * (first["output"] + first["feature"])


def test_the_final_losses_are_of_the_network_that_is_stored(
    vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average of the weights, not the weights of the last step."""
    averages, judged = list[nn.Module](), list[nn.Module]()

    def fitted(model: nn.Module, _: object, __: Schedule, folder: Path, **___: Any) -> nn.Module:
        (folder / "log.jsonl").touch()
        averages.append(copy.deepcopy(model))
        return averages[-1]

    def noted(_: object, student: nn.Module, *__: Any) -> dict[str, torch.Tensor]:
        judged.append(student)
        return {"task": torch.tensor(float(len(judged)))}

    monkeypatch.setattr(train, "FINAL_BATCHES", 3)
    monkeypatch.setattr(train, "fit", fitted)
    monkeypatch.setattr(train, "batch_loss_terms", noted)
    out = distil(plan_run(one_shot_recipe(vega), "scenes", [teacher_folder], 2), tmp_path / "work", tmp_path / "out")
    assert judged == averages * 3
    assert read_json(out / "provenance.json")["stages"][-1]["losses"] == {"task": 2.0}


def test_what_cannot_work_is_refused_before_any_work(vega: Recipe, teacher_folder: Path, student: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with pytest.raises(UserError, match="exists; expected a new or empty folder"):
        distil(plan_run(vega, "scenes", [teacher_folder]), work, student)
    with pytest.raises(UserError, match="architecture 'vega'; recipe 'vega' cuts 'sdxl'"):
        plan_run(vega, "scenes", [student])
    with pytest.raises(UserError, match="no teacher in"):
        plan_run(vega, "scenes", [teacher_folder / "unet"])
    with pytest.raises(UserError, match="belongs to family 'scenes', but the family to train is 'sdxl'"):
        plan_run(vega, "sdxl", [teacher_folder])
    halves = tuple(KeepBlocks(attentions=path, blocks=(0, 1), source="") for path in (TIED_TO_MIDDLE, MIDDLE_ATTENTION))
    first = vega.stages[0].model_copy(update={"keep": halves})
    unsayable = vega.stages[1].model_copy(update={"keep": (KeepBlocks(attentions=TIED_TO_MIDDLE, blocks=(0,), source=""),)})
    both = vega.model_copy(update={"student": None, "stages": (first, unsayable)})
    with pytest.raises(UserError, match="a diffusers config cannot express these depths"):
        plan_run(both, "scenes", [teacher_folder])
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no device 'cuda' here: torch finds no GPU"):
            distil(plan_run(vega, "scenes", [teacher_folder]), work, tmp_path / "out", device="cuda")
    assert not work.exists()


def test_export_overwrites_nothing(vega: Recipe, teacher_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="exists"):
        export_student(None, tmp_path / "out", open_teacher_for(teacher_folder, vega), None)  # type: ignore[arg-type]  # never used
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_of_two_exports_to_one_folder_at_once_the_second_is_refused_and_the_first_stays(
    vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_parts, others, out = export._copy_parts, [0], tmp_path / "students" / "out"
    write = partial(export_cut, teacher_folder, vega, out)

    def copy_while_another_exports(source: Path, folder: Path) -> None:
        assert folder.is_relative_to(out.parent)  # a folder elsewhere may be on another disk, from which none can be renamed
        copy_parts(source, folder)
        if others.pop() == 0:
            others.append(1)
            write()

    monkeypatch.setattr(export, "_copy_parts", copy_while_another_exports)
    with pytest.raises(UserError, match=r"out exists; expected a new or empty folder"):
        write()
    assert StableDiffusionXLPipeline.from_pretrained(out).unet.config.mid_block_type == "UNetMidBlock2D"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_what_a_killed_export_left_is_removed_by_the_next_one(
    vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = partial(export_cut, teacher_folder, vega, tmp_path / "out", unet_only=True)
    (tmp_path / ".out-mine").mkdir()  # of the user
    with monkeypatch.context() as patch:
        patch.setattr(export, "_write_folder", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
        assert by_one(write) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2
    write()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out-mine", "out"]


@pytest.mark.parametrize("content", [b"{", b"{}"])
def test_student_of_a_finished_stage_with_a_damaged_configuration_is_named_with_the_way_out(content: bytes, work: Path) -> None:
    (stage,) = work.glob("vega-*/1-half")
    (stage / "student" / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"damaged.*Move {re.escape(str(stage / 'student'))} away"):
        load_student(stage)


@pytest.mark.parametrize(("file", "content"), [(WEIGHTS, b""), ("losses.json", b"[]")])
def test_damaged_student_of_a_finished_stage_is_named_with_the_way_out(
    file: str, content: bytes, finish: Callable[[], Path], student: Path, work: Path
) -> None:
    (first,) = work.glob("vega-*/1-half/student")
    (first / file).write_bytes(content)
    with pytest.raises(UserError, match=rf"damaged.*[Mm]ove {re.escape(str(first))} away"):
        finish()
    if file == WEIGHTS:  # of what was moved away nothing is left, whatever was damaged
        shutil.rmtree(first)
        assert (finish() / "unet" / WEIGHTS).read_bytes() == (student / "unet" / WEIGHTS).read_bytes()


def test_a_student_can_be_written_to_the_current_folder(
    vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export_cut(teacher_folder, vega, Path(), unet_only=True)
    assert (tmp_path / "here" / WEIGHTS).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_provenance_tells_whether_the_code_was_that_of_its_commit(
    finish: Callable[[], Path], work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (earlier,) = work.glob("vega-*/1-half/environments.json")
    write_json(earlier, [row | {"dirty": False} for row in read_json(earlier)])
    monkeypatch.setattr("distillation.provenance.checkout_state", lambda: ("abc", True))
    noted = read_json(finish() / "provenance.json")
    assert (noted["commit"], noted["dirty"]) == ("abc", True)
    environments = [environment for stage in noted["stages"] for environment in stage["environments"]]
    assert [environment["dirty"] for environment in environments] == [False, True]
