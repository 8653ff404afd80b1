"""The teacher: a complete diffusers pipeline on disk, whose UNet a recipe cuts."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from diffusers import UNet2DConditionModel
from huggingface_hub.repocard import metadata_load
from yaml import YAMLError

from distillation.recipe import Recipe
from sdbench.assets.pipelines import fetch, fetch_card, is_cached, is_local
from sdbench.errors import UserError
from sdbench.models.architectures import Config, Family
from sdbench.models.catalogue import CATALOGUE, TEACHERS
from sdbench.models.digest import weights_digest
from sdbench.models.files import read_model_json, weight_files
from sdbench.models.headers import read_headers
from sdbench.models.loading import check_headers, load_unet
from sdbench.models.locate import locate
from sdbench.models.resolve import resolve
from sdbench.models.spec import ModelSpec, path_of
from sdbench.scenes.embedded import WEIGHTS

EMBEDDED = WEIGHTS / "pipeline"
_NOISE_DEFAULTS: dict[str, object] = {  # keys of a scheduler's configuration, and diffusers' defaults
    "prediction_type": "epsilon",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "rescale_betas_zero_snr": False,
}
STORED_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Teacher:
    """A teacher's folder and what it holds.

    Attributes:
        dtype: of the stored UNet; students are stored in the same.
        licence: from the model card, as the Hub spells licences, or None. The embedded teacher has the project's.
    """

    folder: Path
    spec: ModelSpec
    dtype: str
    licence: str | None

    @cached_property
    def digest(self) -> str:
        """Digest of all weights, as in records of float32 runs; prefers 32-bit files over a 16-bit copy. Reads gigabytes, once.

        Raises:
            UserError: weights are missing or damaged.
        """
        return str(weights_digest(self.spec, dtype="float32"))

    @property
    def config(self) -> Config:
        """The UNet's config.

        Raises:
            UserError: it cannot be read.
        """
        return read_model_json(self.folder / "unet" / "config.json")

    @property
    def noise_settings(self) -> dict[str, object]:
        """The scheduler settings that define the noise the UNet was trained on.

        Raises:
            UserError: they cannot be read.
        """
        config = read_model_json(self.folder / "scheduler" / "scheduler_config.json")
        return {key: config.get(key, default) for key, default in _NOISE_DEFAULTS.items()}

    def unet(self, dtype: str, device: str) -> UNet2DConditionModel:
        """The UNet, frozen and checked; prefers 32-bit files over a 16-bit copy. In the stored dtype on the CPU it is memory-mapped.

        Raises:
            UserError: weights are missing, damaged or not finite, or the device is missing.
        """
        return load_unet(self.folder, dtype=dtype, device=device)


def fetch_folder(name: str | None) -> Path:
    """Fetch a pipeline from the Hub if it is not on this disk, and return its folder.

    Args:
        name: see `teacher_spec`.

    Raises:
        UserError: there is no such pipeline, its small files are damaged, or the Hub cannot be reached.
    """
    spec = teacher_spec(name)
    fetch(spec, dtype="float32")
    fetch_card(spec)
    return locate(spec).pipeline


def local_folder(name: str | None) -> Path | None:
    """The folder that `fetch_folder` gives, or None if the pipeline is on the Hub and not on this disk.

    Raises:
        UserError: there is no such pipeline, or its small files are damaged.
    """
    spec = teacher_spec(name)
    return locate(spec).pipeline if is_local(spec) or is_cached(spec, dtype="float32") else None


def check_named_teacher(name: str | None, recipe: Recipe, family: Family | None = None) -> None:
    """Check what is known of a teacher before it is fetched.

    Args:
        family: that it must have; None: any.

    Raises:
        UserError: there is no such pipeline, or it is of another family or architecture.
    """
    spec = teacher_spec(name)
    what = f"the teacher in {spec.location}" if spec.source == "folder" else f"the teacher {name or TEACHERS['scenes']!r}"
    if family:
        check_family(what, spec.family, family, recipe)
    if spec.architecture != "custom":  # that of a Hub repository may not be known yet
        _check_architecture(what, spec, recipe)


def check_family(what: str, found: str, family: Family, recipe: Recipe) -> None:
    """Check that a teacher, described by `what`, is of the family to train.

    Raises:
        UserError: it is not.
    """
    if found != family:
        other = f", or train its family: distillation run --family {found}" if found in recipe.families else ""
        raise UserError(
            f"{what} belongs to family {found!r}, but the family to train is {family!r}; "
            f"name another teacher with --teacher, such as {TEACHERS[family]}{other}"
        )


def teacher_spec(name: str | None) -> ModelSpec:
    """The spec of a teacher that may still have to be fetched; a Hub repository that is not on this disk counts as full size.

    Args:
        name: a name of the catalogue such as "sdxl", a folder, or `owner/name` on the Hub; None: the embedded teacher.

    Raises:
        UserError: there is no such pipeline.
    """
    name = name or TEACHERS["scenes"]
    path = path_of(name)
    if name not in CATALOGUE and path.is_dir():
        return pipeline_spec(path)
    if name not in CATALOGUE and path.is_file():
        raise UserError(
            f"{name!r} is a file; a teacher is a folder with a complete pipeline in diffusers layout. Write a checkpoint with all parts as "
            f"one: StableDiffusionXLPipeline.from_single_file({name!r}).save_pretrained({path.stem!r}). To teach with a LoRA, call "
            "load_lora_weights, fuse_lora and unload_lora_weights on its pipeline, and save that"
        )
    spec = resolve(name)
    if spec.base is not None or spec.source not in ("hub", "embedded"):
        raise UserError(f"{name!r} is not a complete pipeline in diffusers layout; name a folder, 'sdxl', or owner/name on the Hub")
    return spec


def pipeline_spec(folder: Path) -> ModelSpec:
    """The spec of the complete pipeline in a folder; no weights are read.

    Raises:
        UserError: the folder holds none.
    """
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"no teacher in {folder}; expected a complete pipeline in diffusers layout, with a model_index.json. Name one with --teacher"
        )
    return resolve(str(folder), name="teacher")


def open_teacher_for(folder: Path, recipe: Recipe) -> Teacher:
    """The teacher in a folder, if it has the architecture that the recipe cuts; no weights are read.

    Raises:
        UserError: the teacher has another architecture, or cannot be opened (see `open_teacher`).
    """
    teacher = open_teacher(folder)
    _check_architecture(f"the teacher in {folder}", teacher.spec, recipe)
    return teacher


def _check_architecture(what: str, spec: ModelSpec, recipe: Recipe) -> None:
    if spec.architecture != recipe.teacher:
        raise UserError(
            f"{what} has architecture {spec.architecture!r}; recipe {recipe.name!r} cuts {recipe.teacher!r}. Name another with --teacher"
        )


def open_teacher(folder: Path) -> Teacher:
    """The teacher in a folder, of any architecture; no weights are read, only their headers.

    Raises:
        UserError: the folder is not a complete pipeline, a part of it is damaged (see `check_headers`), its UNet mixes dtypes or has an
            unknown one, or its model card cannot be read.
    """
    spec = pipeline_spec(folder)
    check_headers(spec, dtype="float32")
    dtypes = {tensor.dtype for tensor in read_headers(weight_files(folder / "unet", "unet", sixteen_bit=False)[1]).values()}
    if len(dtypes) > 1 or not dtypes <= STORED_DTYPES.keys():
        raise UserError(f"the UNet in {folder} is stored as {', '.join(sorted(dtypes))}; expected one of {', '.join(STORED_DTYPES)}")
    return Teacher(folder, spec, STORED_DTYPES[dtypes.pop()], "apache-2.0" if folder == EMBEDDED else _read_licence(folder / "README.md"))


def _read_licence(card: Path) -> str | None:
    try:
        return (metadata_load(card) or {}).get("license") if card.is_file() else None
    except (ValueError, YAMLError) as error:
        raise UserError(
            f"cannot read the licence, which students inherit, from {card}: {' '.join(str(error).split())}. "
            "Correct the YAML at its top, or remove the file"
        ) from error
