"""How a student was made: the record that lies beside its weights, and its model card."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Self

import torch
from diffusers import UNet2DConditionModel
from huggingface_hub import ModelCardData

from distillation.recipe import Recipe
from distillation.recipe_tables import Training
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
        losses: final weighted terms, averaged over a few batches after its own.
        environments: in which it was trained; several, in order, if it was resumed in another one.
    """

    name: str
    teacher_digest: str
    steps: int
    losses: dict[str, float]
    environments: list[Environment]


@dataclass(frozen=True)
class Provenance:
    """How a student was made; written to `provenance.json`. `data_digest`, `images`, `passes` and `seed` are None without training.

    Attributes:
        student: its architecture, or the recipe's name if the architecture has none.
        teacher_digest: of all weights of the teacher that the student was cut from, as in records of that teacher.
        data_digest: of the training images and captions.
        images: number of training images that could be decoded.
        passes: how often each image was seen, on average.
        licences: of the teachers, which a student inherits; None for a teacher whose folder names none.
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
    ) -> Self:
        """Describe a student of a recipe, cut from the first of its teachers, and the software that writes it."""
        steps = sum(stage.steps for stage in stages or [])
        commit, dirty = checkout_state()
        return cls(
            recipe=recipe.name,
            recipe_digest=recipe.digest,
            student=recipe.student or recipe.name,
            teacher=recipe.teacher,
            teacher_digest=teachers[0].digest,
            data_digest=data_digest,
            images=images,
            passes=settings.epochs(images, steps) if images and settings else None,
            licences=list(dict.fromkeys(teacher.licence for teacher in teachers)),
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
        terms = f"{names}, as " + ("the teacher's" if is_single else "those of the teachers")
    kind = "UNet2DConditionModel" if unet_only else "StableDiffusionXLPipeline"
    seen = f" on {provenance.images:,} images, each seen {provenance.passes:,.1f} times on average," if provenance.images else ""
    trained = (
        f"trained for {provenance.steps} steps{seen} with layer-level losses (arXiv 2401.02677)" if provenance.steps else "not trained"
    )
    stages = [
        f"- stage `{stage.name}`, {stage.steps} steps: {', '.join(f'{name} loss {value:.4g}' for name, value in stage.losses.items())}"
        for stage in provenance.stages
    ]
    return "\n".join(
        [
            "---",
            ModelCardData(library_name="diffusers", license=licence, tags=["distillation", provenance.student]).to_yaml(),
            "---",
            f"# {provenance.student}, family {provenance.family}",
            "",
            f"A UNet of {provenance.parameters:,} parameters, cut from a teacher of architecture {provenance.teacher} by recipe",
            f"`{provenance.recipe}` and {trained}. `provenance.json` records how it was made.",
            "",
            "These are not released weights, nor a copy of them; the recipe file gives the source of each choice.",
            "",
            *stages,
            *([""] if stages else []),
            f"Licence: {terms}.",
            f"Load it with `diffusers.{kind}.from_pretrained`.",
            "",
        ]
    )


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide weights and images."""
    packages = ("torch", "accelerate", "diffusers", "transformers")
    return {"python": platform.python_version(), "sdbench": __version__} | {name: version(name) for name in packages}
