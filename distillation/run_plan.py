"""A training run, checked before any weights are read: its teachers, its segments, and the taps of each stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distillation.estimate import fixed_bytes
from distillation.prune import student_config
from distillation.recipe import Recipe, Segment
from distillation.recipe_tables import FullSizeTraining, ScenesTraining
from distillation.start import Start
from distillation.taps import Tap, resolve_taps
from distillation.teacher import Teacher, check_family, open_teacher_for
from sdbench.disk import size_text
from sdbench.errors import UserError
from sdbench.models.architectures import Family
from sdbench.models.loading import build_on_meta, check_part, count_parameters, tensor_shapes
from sdbench.training.diffusion import check_diffusion
from sdbench.training.latents import CaptionedImages


@dataclass(frozen=True)
class RunPlan:
    """A checked run.

    Attributes:
        family: which of the recipe's settings to use.
        teachers: in the order in which they teach. The student is cut from the first and keeps its text encoders and VAE; only the UNets of
            the others are used.
        taps: for each stage.
        start: the student to start from; None: a cut of the first teacher.
    """

    recipe: Recipe
    family: Family
    teachers: list[Teacher]
    segments: list[Segment]
    taps: list[list[Tap]]
    start: Start | None = None

    @property
    def settings(self) -> ScenesTraining | FullSizeTraining:
        """The training settings of the run's family."""
        return self.recipe.settings(self.family)

    def identity(self, data_digest: str, device: str) -> dict[str, Any]:
        """Everything that decides the weights, but for rounding, as JSON values. It reads the teachers' weights, which may be gigabytes."""
        start = {"start": self.start.digest} if self.start else {}  # a key of its own, which runs from a teacher never had
        return start | {
            "recipe": self.recipe.training_digest(self.family),
            "teachers": [teacher.digest for teacher in self.teachers],
            "data": data_digest,
            "steps": [[segment.stage, segment.teacher, segment.end] for segment in self.segments],
            "device": device,
            # whoever asks for repeatable bytes must not be given those of a run that did not; a CPU's are repeatable anyway. With several
            # processes a resumed run still differs in rounding: the first step after a start averages gradients more often, in one bucket
            "deterministic": device == "cpu" or torch.are_deterministic_algorithms_enabled(),
        }

    def check_memory(self, stage: int, device: torch.device) -> None:
        """Check that a GPU holds what training takes before any image.

        The estimate is that of `distillation plan`, less autocast's copies where a step has one batch: they go while the gradients come.

        Args:
            stage: number of the first stage that is left to train, which is the largest one.

        Raises:
            UserError: it does not, so that no batch is small enough.
        """
        if device.type != "cuda":
            return
        teacher, settings = self.teachers[0], self.settings
        configs = [teacher.config, *(student_config(teacher.config, cut) for cut in self.recipe.cuts)]
        of_teacher, *of_students = (count_parameters(build_on_meta("unet", config)) for config in configs)
        fixed = [fixed_bytes(n, of_teacher, dtype=settings.dtype, ema=settings.ema > 0) for n in of_students]
        needed = [sum(each.values()) - (each["autocast_copies"] if settings.accumulation == 1 else 0) for each in fixed]
        available = torch.cuda.mem_get_info(device)[1]
        if needed[stage] > available:
            at_once = f", or a copy of the recipe whose only stage makes all cuts, which takes {size_text(needed[-1])}"
            raise UserError(
                f"stage {self.recipe.stages[stage].name!r} takes {size_text(needed[stage])} before any image, for student, optimiser and "
                f"teacher; {device} has {size_text(available)}, so no batch is small enough. Use a GPU with more memory"
                f"{at_once if needed[-1] <= available else ''}"
            )


def plan_run(
    recipe: Recipe, family: Family, teacher_folders: Sequence[Path], steps: int | None = None, start: Start | None = None
) -> RunPlan:
    """Plan a run, and check everything of recipe and teachers that can be checked before weights are read.

    Args:
        steps: in total over all stages that are trained; default: the recipe's.
        start: the student to start from, in the stage whose shape it has; default: a cut of the first teacher.

    Raises:
        UserError: the recipe has no settings for the family; a teacher's folder is not a complete pipeline, or its architecture, family,
            diffusion or noise does not fit; the number of teachers or steps does not fit the recipe; or student or tap cannot be made.
    """
    settings, teachers = recipe.settings(family), open_teachers(recipe, family, teacher_folders)
    segments = recipe.segments(steps or settings.steps, len(teachers), start.stage if start else 0)
    students = [(student_config(teachers[0].config, cut), cut) for cut in recipe.cuts]
    taps = [[resolve_taps(student, teacher.config, cut, recipe.taps) for student, cut in students] for teacher in teachers]
    # The taps of all teachers are alike; resolving them checks each teacher.
    return RunPlan(recipe, family, teachers, segments, taps[0], start)


def open_teachers(recipe: Recipe, family: Family, folders: Sequence[Path]) -> list[Teacher]:
    """The teachers in these folders, if they fit the recipe, the family and each other; no weights are read.

    Raises:
        UserError: a folder is not a complete pipeline, or its architecture, family, diffusion or noise does not fit.
    """
    teachers = [open_teacher_for(folder, recipe) for folder in folders]
    for teacher in teachers:
        _check_teacher(teacher, teachers[0], family, recipe)
    return teachers


def _check_teacher(teacher: Teacher, first: Teacher, family: Family, recipe: Recipe) -> None:
    """Check the teacher's family, and that it was trained with the same noise as the first teacher."""
    check_family(f"the teacher in {teacher.folder}", teacher.spec.family, family, recipe)
    check_diffusion(teacher.folder)
    if differences := [key for key, value in first.noise_settings.items() if teacher.noise_settings[key] != value]:
        key = differences[0]
        raise UserError(
            f"the teacher in {teacher.folder} was trained with different noise from the one in {first.folder}: "
            f"its scheduler's {key} is {teacher.noise_settings[key]}, not {first.noise_settings[key]}"
        )


def check_images(family: Family, images: CaptionedImages | None) -> None:
    """Check that there are images to train on.

    Raises:
        UserError: there are none, and the family has no rendered scenes.
    """
    if family == "sdxl" and images is None:
        raise UserError(
            "family 'sdxl' needs images to train on; name them with --data, or draw some with the teacher: `distillation data make`"
        )


def check_start(plan: RunPlan) -> None:
    """Check that the student that a run starts from, if any, has the tensors of one of its teacher.

    Raises:
        UserError: it does not, or its files are damaged.
    """
    if plan.start is None:
        return
    teacher = plan.teachers[0]
    found = tensor_shapes("unet", check_part("unet", plan.start.folder, sixteen_bit=False))
    expected = tensor_shapes("unet", student_config(teacher.config, plan.recipe.cuts[plan.start.stage]))
    if misfit := next((name for name in (*expected, *found) if found.get(name) != expected.get(name)), None):
        has, needs = (list(shapes[misfit]) if misfit in shapes else "none" for shapes in (found, expected))
        raise UserError(
            f"the student in {plan.start.folder} is not one of the teacher in {teacher.folder}: its {misfit!r} has shape {has}, expected "
            f"{needs}. Name another with --teacher"
        )
