"""How a student was made: the record that lies beside its weights, and its model card."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Literal, Self

import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import ModelCardData

from distillation.cut import Cut
from distillation.recipe import Recipe
from distillation.recipe_tables import Training
from distillation.start import Start
from distillation.teacher import Teacher
from sdbench import __version__
from sdbench.machine import checkout_state, this_machine
from sdbench.models.loading import count_parameters


@dataclass(frozen=True)
class Environment:
    """What decides the last digits of trained weights.

    Attributes:
        versions: of Python and packages.
        commit: of the checkout, if there is one.
        dirty: whether anything but the checkout's results differed from that commit; None without a checkout.
        device: name of the GPU or CPU.
        threads: of each process, on CPUs.
    """

    versions: dict[str, str]
    commit: str | None
    dirty: bool | None
    device: str
    processes: int
    threads: int

    @classmethod
    def of_this_process(cls, device: str, processes: int) -> Self:
        """That of one of `processes` processes, which trains on `device` ("cpu", "cuda" or "cuda:<index>")."""
        machine = this_machine(device)
        name = machine.cpu if device == "cpu" else machine.device
        commit, dirty = checkout_state()
        return cls(package_versions(), commit, dirty, name, processes, torch.get_num_threads())


@dataclass(frozen=True)
class SegmentResult:
    """How a segment (one stage under one teacher) was trained.

    Attributes:
        name: of its stage.
        losses: final weighted terms, averaged over a few batches after its own and, as `validation/<term>`, over the images held out; none
            of an unfinished segment.
        environments: in which it was trained; several, in order, if it was resumed in another one.
    """

    name: str
    teacher_digest: str
    steps: int
    losses: dict[str, float]
    environments: list[Environment]


@dataclass(frozen=True)
class Unfinished:
    """Where a run was when its student was written before its end.

    Attributes:
        stage: name of the stage that the student is from.
        step: number of steps taken, in all stages.
        steps: number that the run was to take.
        weights: those of the student.
    """

    stage: str
    step: int
    steps: int
    weights: Literal["moving average", "last step"]

    def describe(self) -> str:
        """It in words."""
        return f"that of stage `{self.stage}` after step {self.step:,} of {self.steps:,} (weights: {self.weights})"


@dataclass(frozen=True)
class Provenance:
    """How a student was made; written to `provenance.json`. `data_digest`, `images`, `passes` and `seed` are None without training.

    Attributes:
        student: its architecture, or the recipe's name if the architecture has none.
        teacher_digest: of all weights of the first teacher, as in records of that teacher: the student was cut from it, unless `start` says
            from what, and has its other parts.
        cut: what the recipe keeps of that teacher in the student's stage, in the teacher's paths and numbers.
        start: the student that training started from, in place of a cut of the teacher: `digest` of its weights, and its own `provenance`.
        unfinished: where the run was, for a student that is not its last one; None for one that is.
        run: name of the run's folder, which ends in a digest of all that decides the weights; None without training.
        data_digest: of the training images and captions.
        images: number of training images that could be decoded, without those held out.
        passes: how often each image was seen, on average.
        licences: of the teachers and of `start`, which a student inherits; None for one whose folder names none.
        seed: of the training.
        steps: in total over all stages; 0 for a student that was only cut.
        versions: of Python and packages when this was written; each stage has those it was trained with.
        commit: of the checkout then, if there is one.
        dirty: whether anything but the checkout's results differed from that commit; None without a checkout.
    """

    recipe: str
    recipe_digest: str
    student: str
    teacher: str
    teacher_digest: str
    cut: Cut
    start: dict[str, Any] | None
    unfinished: Unfinished | None
    run: str | None
    data_digest: str | None
    images: int | None
    passes: float | None
    licences: list[str | None]
    family: str
    parameters: int
    seed: int | None
    steps: int
    stages: list[SegmentResult]
    versions: dict[str, str]
    commit: str | None
    dirty: bool | None

    @classmethod
    def from_run(
        cls,
        recipe: Recipe,
        teachers: Sequence[Teacher],
        student: UNet2DConditionModel,
        settings: Training | None = None,
        stages: list[SegmentResult] | None = None,
        data_digest: str | None = None,
        images: int | None = None,
        *,
        start: Start | None = None,
        unfinished: Unfinished | None = None,
        run: str | None = None,
    ) -> Self:
        """Describe a student of a recipe, cut from the first of its teachers or from another student, and the software that writes it."""
        steps = sum(stage.steps for stage in stages or [])
        stage = [each.name for each in recipe.stages].index(stages[-1].name) if stages else -1
        commit, dirty = checkout_state()
        return cls(
            recipe=recipe.name,
            recipe_digest=recipe.digest,
            student=recipe.student or recipe.name,
            teacher=recipe.teacher,
            teacher_digest=teachers[0].digest,
            cut=recipe.cuts[stage],
            start={"digest": start.digest, "provenance": start.provenance} if start else None,
            unfinished=unfinished,
            run=run,
            data_digest=data_digest,
            images=images,
            passes=settings.epochs(images, steps) if images and settings else None,
            licences=list(dict.fromkeys([*(teacher.licence for teacher in teachers), *(start.licences if start else [])])),
            family=teachers[0].spec.family,
            parameters=count_parameters(student),
            seed=settings.seed if settings else None,
            steps=steps,
            stages=stages or [],
            versions=package_versions(),
            commit=commit,
            dirty=dirty,
        )


def model_card(provenance: Provenance, *, unet_only: bool) -> str:
    """A short model card in Markdown."""
    is_single = len(provenance.licences) == 1
    licence = provenance.licences[0] if is_single else "other"
    if licence is None:
        terms = "the teacher's, which its folder does not name"
    else:
        names = " and ".join(name or "one that is not named" for name in provenance.licences)
        start = " and of the student that training started from" if provenance.start else ""
        terms = f"{names}, as " + ("the teacher's" if is_single else f"those of the teachers{start}")
    kind = "UNet2DConditionModel" if unet_only else "StableDiffusionXLPipeline"
    seen = f" on {provenance.images:,} images, each seen {provenance.passes:,.1f} times on average," if provenance.images else ""
    trained = (
        f"trained for {provenance.steps} steps{seen} with layer-level losses (arXiv 2401.02677)" if provenance.steps else "not trained"
    )
    stages = [
        f"- stage `{stage.name}`, {stage.steps} steps"
        f"{': ' if stage.losses else ''}{', '.join(f'{name} loss {value:.4g}' for name, value in stage.losses.items())}"
        for stage in provenance.stages
    ]
    cut = "of the shape that is cut" if provenance.start else "cut"
    remarks = [
        *([f"**The run was not finished**: this student is {provenance.unfinished.describe()}.", ""] if provenance.unfinished else []),
        *(["Training started from another student; `provenance.json` has how that was made.", ""] if provenance.start else []),
    ]
    return "\n".join(
        [
            "---",
            ModelCardData(library_name="diffusers", license=licence, tags=["distillation", provenance.student]).to_yaml(),
            "---",
            f"# {provenance.student}, family {provenance.family}{', unfinished' if provenance.unfinished else ''}",
            "",
            f"A UNet of {provenance.parameters:,} parameters, {cut} from a teacher of architecture {provenance.teacher} by recipe",
            f"`{provenance.recipe}` and {trained}. `provenance.json` records how it was made.",
            "",
            *remarks,
            "These are not released weights, nor a copy of them; the recipe file gives the source of each choice.",
            "",
            *stages,
            *([""] if stages else []),
            f"Licence: {terms}.",
            # without a dtype, transformers takes the one that the text encoders are stored in, diffusers float32 for the UNet
            f"Load it with `diffusers.{kind}.from_pretrained(FOLDER, dtype=torch.float16)`, on a CPU with `dtype=torch.float32`.",
            "",
        ]
    )


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide weights and images."""
    packages = ("torch", "accelerate", "diffusers", "transformers")
    return {"python": platform.python_version(), "sdbench": __version__} | {name: version(name) for name in packages}
