"""The student that a run starts from, in place of a cut of its teacher: one that was exported from another run, for example."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distillation.recipe import Recipe
from sdbench.disk import digest as digest_of
from sdbench.disk import file_digest, read_json
from sdbench.errors import UserError
from sdbench.models.architectures import shape_of, unet_config
from sdbench.models.checks import check_finite
from sdbench.models.files import weight_files
from sdbench.models.headers import read_headers
from sdbench.models.loading import build_on_meta, check_part, read_part
from sdbench.notes import print_note


@dataclass(frozen=True)
class Start:
    """The student that a run starts from.

    Attributes:
        folder: of its UNet.
        stage: number of the recipe's stage whose student has its shape; the run starts there.
        digest: SHA-256 (hex) of its configuration and weights.
        provenance: how it was made, from its provenance.json; None without one.
    """

    folder: Path
    stage: int
    digest: str
    provenance: dict[str, Any] | None

    @property
    def licences(self) -> list[str | None]:
        """The licences that it inherited, as in its provenance; of an unknown student, one that is not named."""
        return [None] if self.provenance is None else list(self.provenance["licences"])

    @property
    def dtypes(self) -> list[str]:
        """The dtypes that its weights are stored in, as safetensors spells them: F32, F16 or BF16.

        Raises:
            UserError: its files are damaged.
        """
        return sorted({tensor.dtype for tensor in read_headers(weight_files(self.folder, "unet", sixteen_bit=False)[1]).values()})

    def unet(self) -> nn.Module:
        """The UNet, in float32 on the CPU.

        Raises:
            UserError: weights are damaged or not finite.
        """
        unet = read_part("unet", self.folder, torch.float32)
        check_finite(unet, "unet", self.folder)
        return unet


def open_start(folder: Path, recipe: Recipe) -> Start:
    """The student in a folder, if a stage of the recipe has its shape. Reads its weights once, for their digest.

    Args:
        folder: a pipeline or a UNet in diffusers layout.

    Raises:
        UserError: there is none, it is damaged, or no stage has its shape.
    """
    unet = folder / "unet" if (folder / "model_index.json").is_file() else folder
    if not (unet / "config.json").is_file():
        raise UserError(f"no student in {folder}; expected a pipeline or a UNet in diffusers layout. `distillation export` writes one")
    network = build_on_meta("unet", check_part("unet", unet, sixteen_bit=False))
    found = shape_of(network.config)
    teacher = unet_config(recipe.teacher)
    shapes = [cut.shape(teacher) for cut in recipe.cuts]
    if found not in shapes:
        stages = ", ".join(f"{stage.name} {sum(shape.blocks.values())}" for stage, shape in zip(recipe.stages, shapes, strict=True))
        raise UserError(
            f"the student in {folder} has the shape of no stage of recipe {recipe.name!r}: it has {sum(found.blocks.values())} transformer "
            f"blocks, the stages have: {stages}. Name a student that this recipe makes, or write a recipe with a stage of its shape"
        )
    files = [unet / "config.json", *weight_files(unet, "unet", sixteen_bit=False)[1]]
    digest = hashlib.sha256("".join(map(file_digest, files)).encode()).hexdigest()
    note = folder / "provenance.json"
    return Start(unet.resolve(), shapes.index(found), digest, read_json(note, _check_provenance, part=note) if note.is_file() else None)


def warn_of_other_blocks(start: Start, recipe: Recipe) -> None:
    """Say so if the student may keep other blocks of its teacher than the recipe's stage of its shape; older provenance lacks them."""
    if start.provenance and digest_of(start.provenance.get("cut")) != digest_of(asdict(recipe.cuts[start.stage])):
        print_note(
            f"the student in {start.folder} was made by recipe {start.provenance['recipe']!r}, and its provenance does not name the blocks "
            f"that stage {recipe.stages[start.stage].name!r} of {recipe.name!r} keeps. Only its shape was compared: if it keeps others, "
            "taps and later cuts are wrong"
        )


def _check_provenance(provenance: dict[str, Any]) -> dict[str, Any]:
    list(provenance["licences"]), str(provenance["recipe"])
    return provenance
