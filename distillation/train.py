"""Training: stage by stage, prune and fit, so that a run that was killed continues where it was.

Each stage has a folder of its own under the work folder, named by everything that decides its weights. A finished stage
is a UNet in safetensors with its losses beside it; an unfinished one holds the checkpoint to go on from.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from distillation import teacher as teachers
from distillation.data import batches, scenes_pool
from distillation.export import Provenance, StageResult, check_free, export
from distillation.losses import terms
from distillation.prune import prune
from distillation.recipe import Family, Recipe
from distillation.taps import Tap, collect, resolve
from sdbench.errors import UserError
from sdbench.scenes.embedded import checked
from sdbench.scenes.networks import SceneNet
from sdbench.scenes.training.latents import Batch, noisy, predict, target
from sdbench.scenes.training.watch import Watch
from sdbench.training import Schedule, fit

FINAL_BATCHES = 4  # over which a stage's final losses are averaged; it was trained on none of them
STUDENT, LOSSES = "student", "losses.json"


@dataclass(frozen=True)
class Lesson:
    """What every stage shares: the teacher's UNet, the noise schedule, each numbered batch, and how to look at a student."""

    recipe: Recipe
    teacher: UNet2DConditionModel
    scheduler: DDIMScheduler
    batch: Callable[[int], Batch]
    accelerator: Accelerator
    watch: Watch


def distil(
    recipe: Recipe,
    family: Family,
    teacher_folder: Path,
    work: Path,
    out: Path,
    *,
    steps: int | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    unet_only: bool = False,
) -> Path:
    """Make the student and write it to `out`; what an earlier run finished under `work` is not done again.

    Args:
        recipe: what to cut and how to train.
        family: which of the recipe's settings to take.
        teacher_folder: the teacher as a whole diffusers pipeline.
        work: gets training pictures, latents and the stages.
        out: gets the student; must not hold anything yet.
        steps: of all stages together; the recipe's where not given.
        device: where both networks run; under `accelerate launch`, each process takes its own.
        unet_only: write the UNet alone instead of a whole pipeline.

    Raises:
        UserError: the family cannot be trained here, the teacher does not fit the recipe, or `out` is taken.
        UserError: the device is not there, or a loss is not finite.
    """
    teacher, counts = check(recipe, family, teacher_folder, out, steps)
    settings = recipe.scenes
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "no device 'cuda' here: torch finds no GPU; `sdbench doctor` says what this machine can run, --device cpu always works"
        )
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if settings.dtype == "bfloat16" else "no")
    with accelerator.main_process_first():  # the others find what it drew and encoded
        pool = scenes_pool(settings, teacher_folder, work)
    place = str(accelerator.device)
    watch = Watch(pool, SceneNet.load(checked("evaluators/reader.safetensors")))
    lesson = Lesson(recipe, teacher.unet("float32", place), pool.scheduler, batches(pool, settings, place), accelerator, watch)
    decides = json.dumps([recipe.digest, teacher.digest, counts, device, accelerator.num_processes])
    student, stages = teach(lesson, counts, work / f"{recipe.name}-{hashlib.sha256(decides.encode()).hexdigest()[:12]}")
    if accelerator.is_main_process:
        export(student, out, teacher, Provenance.of(recipe, teacher, student, settings.seed, stages), unet_only=unet_only)
    return out


def check(recipe: Recipe, family: Family, teacher_folder: Path, out: Path, steps: int | None = None) -> tuple[teachers.Teacher, list[int]]:
    """All that can be said before any weights are read => the teacher, and each stage's steps.

    Raises:
        UserError: the run cannot work.
    """
    if family != "scenes":
        raise UserError(
            f"family {family!r} cannot be trained yet; expected 'scenes'. `distillation prune` cuts a full-size teacher without training"
        )
    check_free(out)
    teacher = teachers.find(teacher_folder, recipe)
    if teacher.spec.family != family:
        raise UserError(f"the teacher in {teacher_folder} is of family {teacher.spec.family!r}; expected {family!r}, as --family says")
    return teacher, recipe.stage_steps(steps or recipe.scenes.steps)


def teach(lesson: Lesson, counts: list[int], folder: Path) -> tuple[UNet2DConditionModel, list[StageResult]]:
    """Every stage in turn => the last student, and what each stage came to.

    Args:
        lesson: what the stages share.
        counts: steps of each stage.
        folder: gets a folder for each stage.
    """
    student, before, start, results = lesson.teacher, None, 0, []
    for number, (stage, plan, steps) in enumerate(zip(lesson.recipe.stages, lesson.recipe.plans, counts, strict=True), 1):
        done = folder / f"{number}-{stage.name}"
        if not (done / STUDENT).exists():
            _run_stage(lesson, prune(student, plan.within(before) if before else plan), range(start, start + steps), done)
        lesson.accelerator.wait_for_everyone()  # until the main process has written it
        student = UNet2DConditionModel.from_pretrained(done / STUDENT, local_files_only=True).to(lesson.teacher.device)
        results.append(StageResult(stage.name, steps, json.loads((done / STUDENT / LOSSES).read_text())))
        before, start = plan, start + steps
    return student, results


def _run_stage(lesson: Lesson, student: UNet2DConditionModel, steps: range, folder: Path) -> None:
    settings, accelerator = lesson.recipe.scenes, lesson.accelerator
    taps = resolve(student.config, lesson.teacher.config, lesson.recipe.taps)
    if settings.checkpointing:
        student.enable_gradient_checkpointing()
    model = accelerator.prepare_model(student)
    first, after = (step * settings.accumulation * accelerator.num_processes for step in (steps.start, steps.stop))
    schedule = Schedule(
        len(steps),
        settings.lr,
        settings.batch,
        warmup=settings.warmup,
        ema=settings.ema or None,
        seed=settings.seed,
        accumulation=settings.accumulation,
    )
    kept = fit(
        model,
        lambda number: step_terms(lesson, model, taps, first + number),
        schedule,
        folder,
        accelerator=accelerator,
        watch=lesson.watch,
    )
    if accelerator.is_main_process:
        _finish(kept, _final_losses(lesson, kept, taps, after), folder)


def _finish(student: nn.Module, losses: dict[str, float], folder: Path) -> None:
    beside = folder / f"{STUDENT}.part"
    shutil.rmtree(beside, ignore_errors=True)
    student.save_pretrained(beside)  # type: ignore[operator]  # a UNet
    (beside / LOSSES).write_text(json.dumps(losses))
    beside.rename(folder / STUDENT)
    for checkpoint in folder.glob("step-*"):
        shutil.rmtree(checkpoint)


def step_terms(lesson: Lesson, student: nn.Module, taps: list[Tap], number: int) -> dict[str, Tensor]:
    """The weighted loss terms of one batch; the student may be wrapped for several processes."""
    batch = lesson.batch(number)
    noised = noisy(lesson.scheduler, batch)
    plain = lesson.accelerator.unwrap_model(student)
    with collect(lesson.teacher, [tap.teacher for tap in taps]) as taught, collect(plain, [tap.student for tap in taps]) as learned:
        with torch.no_grad():
            answer = predict(lesson.teacher, noised, batch)
        return terms(
            lesson.recipe.loss,
            taps,
            target=target(lesson.scheduler, batch),
            student=predict(student, noised, batch),
            teacher=answer,
            student_features=learned,
            teacher_features=taught,
        )


@torch.no_grad()
def _final_losses(lesson: Lesson, student: nn.Module, taps: list[Tap], start: int) -> dict[str, float]:
    """Mean of each weighted term over the batches that come after the stage's own."""
    rows = [step_terms(lesson, student, taps, start + number) for number in range(FINAL_BATCHES)]
    return {name: float(torch.stack([row[name] for row in rows]).mean()) for name in rows[0]}
