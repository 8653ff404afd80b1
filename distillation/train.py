"""Training: stage by stage, prune and fit, so that a run that was killed continues where it was.

Each stage has a folder of its own under the work folder, named by everything that decides its weights. A finished stage
is a UNet in safetensors with its losses beside it; an unfinished one holds the state to resume from.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from distillation import teacher as teachers
from distillation.data import batches, scenes_pool
from distillation.export import Provenance, StageResult, check_free, export
from distillation.losses import terms
from distillation.prune import prune
from distillation.recipe import Family, Recipe
from distillation.taps import Tap, collect, resolve
from sdbench.errors import UserError
from sdbench.scenes.training.latents import Batch, noisy, predict, target
from sdbench.training import Schedule, fit

FINAL_BATCHES = 4  # over which a stage's final losses are averaged; it was trained on none of them
STUDENT, LOSSES = "student", "losses.json"


@dataclass(frozen=True)
class Lesson:
    """What every stage shares: the teacher's UNet, the noise schedule, and the batch of each step."""

    recipe: Recipe
    teacher: UNet2DConditionModel
    scheduler: DDIMScheduler
    batch: Callable[[int], Batch]


def distil(
    recipe: Recipe,
    family: Family,
    teacher_folder: Path,
    work: Path,
    out: Path,
    *,
    steps: int | None = None,
    device: str = "cpu",
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
        device: where both networks run.
        unet_only: write the UNet alone instead of a whole pipeline.

    Raises:
        UserError: the family cannot be trained here, the teacher does not fit the recipe, or `out` is taken.
        UserError: a loss is not finite.
    """
    teacher, counts = check(recipe, family, teacher_folder, out, steps)
    settings = recipe.scenes
    pool = scenes_pool(settings, teacher_folder, work)
    lesson = Lesson(recipe, teacher.unet("float32", device), pool.scheduler, batches(pool, settings, device))
    decides = json.dumps([recipe.digest, teacher.digest, counts, device])
    student, stages = teach(lesson, counts, work / f"{recipe.name}-{hashlib.sha256(decides.encode()).hexdigest()[:12]}")
    return export(student, out, teacher, Provenance.of(recipe, teacher, student, settings.seed, stages), unet_only=unet_only)


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
        student = UNet2DConditionModel.from_pretrained(done / STUDENT, local_files_only=True).to(lesson.teacher.device)
        results.append(StageResult(stage.name, steps, json.loads((done / STUDENT / LOSSES).read_text())))
        before, start = plan, start + steps
    return student, results


def _run_stage(lesson: Lesson, student: UNet2DConditionModel, steps: range, folder: Path) -> None:
    settings = lesson.recipe.scenes
    taps = resolve(student.config, lesson.teacher.config, lesson.recipe.taps)
    schedule = Schedule(len(steps), settings.lr, settings.batch, warmup=settings.warmup, seed=settings.seed)
    fit(student, lambda step: step_terms(lesson, student, taps, steps.start + step), schedule, folder)
    losses = _final_losses(lesson, student, taps, steps.stop)
    beside = folder / f"{STUDENT}.part"
    shutil.rmtree(beside, ignore_errors=True)
    student.save_pretrained(beside)
    (beside / LOSSES).write_text(json.dumps(losses))
    beside.rename(folder / STUDENT)
    (folder / "state.pt").unlink()


def step_terms(lesson: Lesson, student: UNet2DConditionModel, taps: list[Tap], step: int) -> dict[str, Tensor]:
    """The weighted loss terms of one step."""
    batch = lesson.batch(step)
    noised = noisy(lesson.scheduler, batch)
    with collect(lesson.teacher, [tap.teacher for tap in taps]) as taught, collect(student, [tap.student for tap in taps]) as learned:
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
def _final_losses(lesson: Lesson, student: UNet2DConditionModel, taps: list[Tap], start: int) -> dict[str, float]:
    """Mean of each weighted term over the batches of the steps that come after the stage's own."""
    rows = [step_terms(lesson, student, taps, start + step) for step in range(FINAL_BATCHES)]
    return {name: float(torch.stack([row[name] for row in rows]).mean()) for name in rows[0]}
