"""Students on disk: a diffusers folder with a record of how the student was made and a model card."""

import glob
import json
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Self

import torch
from diffusers import UNet2DConditionModel
from filelock import FileLock
from huggingface_hub import ModelCardData
from safetensors import SafetensorError

from distillation.recipe import Recipe
from distillation.recipe_tables import Training
from distillation.teacher import Teacher
from sdbench import __version__
from sdbench.disk import locked
from sdbench.errors import UserError
from sdbench.machine import checkout_state, this_machine
from sdbench.models.files import part_files
from sdbench.models.loading import count_parameters

INDEX = "model_index.json"
EXPORTING = "exporting.lock"  # held while its folder is filled


@dataclass(frozen=True)
class Environment:
    """What decides the last digits of trained weights.

    Attributes:
        versions: of Python and packages.
        commit: of the checkout, if there is one.
        device: name of the GPU or CPU.
        threads: of each process, on CPUs.
    """

    versions: dict[str, str]
    commit: str | None
    device: str
    processes: int
    threads: int

    @classmethod
    def of_this_process(cls, device: str, processes: int) -> Self:
        """That of one of `processes` processes, which trains on `device` ("cpu", "cuda" or "cuda:<index>")."""
        machine = this_machine(device)
        name = machine.cpu if device == "cpu" else machine.device
        return cls(package_versions(), _commit(), name, processes, torch.get_num_threads())


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
            commit=_commit(),
        )


def export_student(
    student: UNet2DConditionModel,
    out: Path,
    teacher: Teacher,
    provenance: Provenance,
    *,
    logs: Mapping[str, Path] | None = None,
    unet_only: bool = False,
) -> Path:
    """Write the student in the teacher's dtype, as a pipeline with the teacher's other parts or as the UNet alone, and return `out`.

    Args:
        student: on any device.
        out: new or empty folder.
        teacher: what the student was cut from.
        logs: training losses of each segment, JSON lines, by the name of its folder; copied to `losses/<name>.jsonl`.

    Raises:
        UserError: `out` is not empty or another run fills it meanwhile, weights of the teacher are missing, or the disk is full; nothing
            is written to `out` then.
    """
    check_new_or_empty(out)
    target = out.resolve()  # "." has no name of its own
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        with (
            tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary,  # of this run alone
            locked(Path(temporary) / EXPORTING),
        ):
            partial = Path(temporary) / "student"  # unlike the temporary folder, readable by others
            _write_folder(student, partial, teacher, provenance, unet_only=unet_only)
            for name, log in (logs or {}).items():
                (partial / "losses").mkdir(exist_ok=True)
                shutil.copy(log, partial / "losses" / f"{name}.jsonl")
            check_new_or_empty(out)  # another run may have written its student there
            if target.exists():
                target.rmdir()
            partial.rename(target)
    except (OSError, SafetensorError) as error:  # safetensors wraps the OSError of a full disk
        raise UserError(f"cannot write the student to {out}: {error}. Make room, or name another folder with --out") from error
    return out


def _remove_leftovers(target: Path) -> None:
    """Remove what exports to this folder that were killed left beside it: temporary folders whose lock nobody holds any more."""
    for lock in target.parent.glob(f".{glob.escape(target.name)}-*/{EXPORTING}"):
        with suppress(OSError), FileLock(lock, blocking=False):  # one that is held raises a TimeoutError, which is an OSError
            shutil.rmtree(lock.parent)


def _write_folder(student: UNet2DConditionModel, folder: Path, teacher: Teacher, provenance: Provenance, *, unet_only: bool) -> None:
    folder.mkdir()
    if not unet_only:
        _copy_parts(teacher.folder, folder)
    unet = folder if unet_only else folder / "unet"
    student.to(getattr(torch, teacher.dtype)).save_pretrained(unet)
    config = json.loads((unet / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # a local path
    (unet / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "provenance.json").write_text(json.dumps(asdict(provenance), indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(provenance, unet_only=unet_only), encoding="utf-8")


def check_new_or_empty(out: Path) -> None:
    """Check that writing to `out` overwrites nothing.

    Raises:
        UserError: `out` is a file or a folder that is not empty.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise UserError(f"{out} exists; expected a new or empty folder. Remove it, or name another with --out")


def model_card(provenance: Provenance, *, unet_only: bool) -> str:
    """A short model card in Markdown."""
    licence = provenance.licences[0] if len(provenance.licences) == 1 else "other"
    kind = "UNet2DConditionModel" if unet_only else "StableDiffusionXLPipeline"
    seen = f" on {provenance.images:,} images, each seen {provenance.passes:,.1f} times on average," if provenance.images else ""
    trained = (
        f"trained for {provenance.steps} steps{seen} with layer-level losses (arXiv 2401.02677)" if provenance.steps else "not trained"
    )
    owner = "the teacher's" if len(provenance.licences) == 1 else "those of the teachers"
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
            "Licence: the teacher's, which its folder does not name."
            if licence is None
            else f"Licence: {' and '.join(name or 'one that is not named' for name in provenance.licences)}, as {owner}.",
            f"Load it with `diffusers.{kind}.from_pretrained`.",
            "",
        ]
    )


def _copy_parts(teacher: Path, out: Path) -> None:
    shutil.copy(teacher / INDEX, out / INDEX)
    for name, kind in json.loads((teacher / INDEX).read_text(encoding="utf-8")).items():
        if name != "unet" and isinstance(kind, list) and kind[0] is not None:
            (out / name).mkdir()
            for path in part_files(teacher / name, name):
                _copy_without_variant(path, out / name)
    for path in teacher.glob("LICENSE*"):
        shutil.copy(path, out / path.name)


def _copy_without_variant(path: Path, folder: Path) -> None:
    """Copy a file without "fp16" in its name, so that it loads without `variant`; a teacher may have only 16-bit files."""
    copy = folder / path.name.replace(".fp16", "")
    if ".index." in path.name:
        copy.write_text(path.read_text(encoding="utf-8").replace(".fp16", ""), encoding="utf-8")
    else:
        shutil.copy(path, copy)


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide weights and images."""
    packages = ("torch", "accelerate", "diffusers", "transformers")
    return {"python": platform.python_version(), "sdbench": __version__} | {name: version(name) for name in packages}


def _commit() -> str | None:
    return checkout_state(Path(__file__).resolve().parents[1])[0]
