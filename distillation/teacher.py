"""The teacher: a whole pipeline on disk, whose UNet is of the architecture that a recipe cuts."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffusers import UNet2DConditionModel
from huggingface_hub.repocard import metadata_load
from yaml import YAMLError

from distillation.recipe import Recipe
from sdbench.assets.pipelines import fetch, fetch_card, is_cached
from sdbench.errors import UserError
from sdbench.models.architectures import Config
from sdbench.models.digest import weights_digest
from sdbench.models.files import read_headers, read_json, weight_files
from sdbench.models.loading import load_unet
from sdbench.models.locate import locate
from sdbench.models.spec import ModelSpec, resolve
from sdbench.scenes.embedded import WEIGHTS

EMBEDDED = WEIGHTS / "pipeline"
_NOISE: dict[str, object] = {  # keys of a scheduler's configuration, and diffusers' defaults
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "rescale_betas_zero_snr": False,
}
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Teacher:
    """Where it lies and what it is.

    Attributes:
        dtype: that its UNet is stored in; students are stored likewise.
        licence: that its model card gives, as the Hub spells licences; None where there is none. The embedded teacher has the project's.
    """

    folder: Path
    spec: ModelSpec
    dtype: str
    licence: str | None

    @cached_property
    def digest(self) -> str:
        """Of all its weights, of two copies those of 32 bits, as records of float32 runs give it; gigabytes are read for it, once."""
        return str(weights_digest(self.spec, dtype="float32"))

    @property
    def config(self) -> Config:
        """Of its UNet."""
        return read_json(self.folder / "unet" / "config.json")

    @property
    def noise(self) -> dict[str, object]:
        """What its UNet was trained to undo, by its scheduler's configuration."""
        config = read_json(self.folder / "scheduler" / "scheduler_config.json")
        return {key: config.get(key, default) for key, default in _NOISE.items()}

    def unet(self, dtype: str, device: str) -> UNet2DConditionModel:
        """Its UNet, frozen, of two copies that of 32 bits; tensors are checked on the way. As stored and on the CPU, it takes no memory of its own.

        Raises:
            UserError: weights are missing, damaged or not finite, or the device is not there.
        """
        return load_unet(self.folder, dtype=dtype, device=device)


def place(what: str | None) -> Path:
    """The folder of the pipeline that `what` names, fetched from the Hub where it is not on this disk; the embedded teacher where nothing is named.

    Args:
        what: a folder, a name of the catalogue such as "sdxl", or `owner/name` on the Hub.

    Raises:
        UserError: there is no such pipeline, or the Hub cannot be reached.
    """
    if isinstance(found := _named(what), Path):
        return found
    fetch(found, dtype="float32")
    fetch_card(found)
    return locate(found).pipeline


def here(what: str | None) -> Path | None:
    """The folder that `place` gives, or None where it would fetch it.

    Raises:
        UserError: there is no such pipeline.
    """
    if isinstance(found := _named(what), Path):
        return found
    return locate(found).pipeline if is_cached(found, dtype="float32") else None


def _named(what: str | None) -> Path | ModelSpec:
    if what is None or Path(what).is_dir():
        return EMBEDDED if what is None else Path(what)
    spec = resolve(what)
    if spec.base is not None or spec.source not in ("hub", "embedded"):
        raise UserError(f"{what!r} is no whole pipeline in diffusers layout; name a folder, 'sdxl', or owner/name on the Hub")
    return spec


def pipeline(folder: Path) -> ModelSpec:
    """The whole pipeline in a folder; no weights are read.

    Raises:
        UserError: there is none.
    """
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"no teacher in {folder}; expected a whole pipeline in diffusers layout, with a model_index.json. Name one with --teacher"
        )
    return resolve(str(folder), name="teacher")


def find(folder: Path, recipe: Recipe) -> Teacher:
    """The teacher in a folder, of the architecture that the recipe cuts; no weights are read.

    Raises:
        UserError: the folder is no whole pipeline, or its architecture is another.
    """
    teacher = at(folder)
    if teacher.spec.architecture != recipe.teacher:
        raise UserError(
            f"the teacher in {folder} is of architecture {teacher.spec.architecture!r}; recipe {recipe.name!r} cuts {recipe.teacher!r}"
        )
    return teacher


def at(folder: Path) -> Teacher:
    """The teacher in a folder, of any architecture; no weights are read.

    Raises:
        UserError: the folder is no whole pipeline, or its model card cannot be read.
    """
    spec = pipeline(folder)
    kinds = {tensor.dtype for tensor in read_headers(weight_files(folder / "unet", "unet", sixteen_bit=False)[1]).values()}
    if len(kinds) > 1 or not kinds <= _DTYPES.keys():
        raise UserError(f"the UNet in {folder} is stored as {', '.join(sorted(kinds))}; expected one of {', '.join(_DTYPES)}")
    return Teacher(folder, spec, _DTYPES[kinds.pop()], "apache-2.0" if folder == EMBEDDED else _licence(folder / "README.md"))


def _licence(card: Path) -> str | None:
    try:
        return (metadata_load(card) or {}).get("license") if card.is_file() else None
    except (ValueError, YAMLError) as error:
        raise UserError(
            f"cannot read the licence, which students inherit, from {card}: {' '.join(str(error).split())}. Mend the YAML at its top, or remove the file"
        ) from error
