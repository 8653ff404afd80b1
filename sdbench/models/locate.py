"""Locates the files of a model on this disk, from its `ModelSpec`."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdbench.errors import UserError
from sdbench.models import hub
from sdbench.models.files import (
    LORA_FILE,
    PART_CLASSES,
    PIPELINE_CLASS,
    STEMS,
    checkpoint_kind,
    choose_lora_file,
    read_config,
    read_model_json,
    unet_folder,
    weight_files,
)
from sdbench.models.headers import read_header, read_headers
from sdbench.models.spec import ModelSpec
from sdbench.scenes.embedded import WEIGHTS


@dataclass(frozen=True)
class ModelPaths:
    """The paths of a model's parts.

    Attributes:
        pipeline: folder with `model_index.json`.
        unet: folder or file of the UNet.
        checkpoint: file that holds all weights; only configuration and tokenizers then come from `pipeline`.
        lora: file of the LoRA.
    """

    pipeline: Path
    unet: Path
    checkpoint: Path | None
    lora: Path | None

    @property
    def unet_config(self) -> Path:
        """The path of the UNet's configuration: in its folder, or in the pipeline's if the UNet is a single file."""
        return (self.unet if self.unet.is_dir() else self.pipeline / "unet") / "config.json"

    def weights(self, *, sixteen_bit: bool) -> dict[str, list[Path]]:
        """The weight files of each part, or of the whole "checkpoint".

        Raises:
            UserError: see `weight_files`.
        """
        if self.checkpoint:
            return {"checkpoint": [self.checkpoint]}
        folders = {part: self.pipeline / part for part in STEMS} | {"unet": self.unet}
        return {part: [path] if path.is_file() else weight_files(path, part, sixteen_bit=sixteen_bit)[1] for part, path in folders.items()}


def locate(spec: ModelSpec) -> ModelPaths:
    """Locate the files of a model that has any (neither random nor rendered).

    Raises:
        UserError: they are not on this disk, or do not make an SDXL pipeline.
    """
    folder = _folder(spec)
    pipeline = _folder(spec.base) if spec.base else folder
    check_pipeline(pipeline)
    checkpoint = folder if spec.source == "file" and checkpoint_kind(folder, read_header(folder)) == "checkpoint" else None
    return ModelPaths(pipeline, folder if spec.base else folder / "unet", checkpoint, _lora_file(spec.lora) if spec.lora else None)


def read_unet_config(spec: ModelSpec) -> dict[str, Any]:
    """The configuration of a model's UNet; empty where it is not on this disk (yet), and where there is none."""
    if spec.source in ("random", "rendered"):
        return {}
    try:
        return read_model_json(locate(spec).unet_config)
    except UserError:
        return {}


def check_local_files(spec: ModelSpec) -> None:
    """Check the weight files of a model's local parts; parts on the Hub may still have to be downloaded.

    Raises:
        UserError: see `locate` and `ModelPaths.weights`.
    """
    if spec.lora and Path(spec.lora).is_absolute():
        _lora_file(spec.lora)
    if spec.source == "unet-folder":
        weight_files(Path(spec.location), "unet", sixteen_bit=False)
    if spec.source in ("folder", "unet-folder", "file") and (spec.base is None or spec.base.source != "hub"):
        locate(replace(spec, lora=None)).weights(sixteen_bit=False)


def check_pipeline(folder: Path) -> None:
    """Check the files of a pipeline beside the weights and the networks' configurations.

    Raises:
        UserError: it is not an SDXL pipeline of stock parts, or a file is missing, is damaged or holds code.
    """
    _check_model_index(folder)
    _check_small_files(folder)


def _check_model_index(folder: Path) -> None:
    """Check that a folder is an SDXL pipeline of stock parts, so that no other code is loaded for it.

    Raises:
        UserError: it is not.
    """
    path = folder / "model_index.json"
    index = read_model_json(path)
    if index.get("_class_name") != PIPELINE_CLASS:
        raise UserError(
            f"{path} describes a {index.get('_class_name')!r}, expected {PIPELINE_CLASS!r}; "
            "only SDXL pipelines and their students are measured"
        )
    for part, expected in PART_CLASSES.items():
        if index.get(part) != list(expected):
            raise UserError(f"{path}: {part} is {index.get(part)}, expected {list(expected)}; parts with custom code are not loaded")
    match index.get("scheduler"):
        case ["diffusers", str(name)] if name.endswith("Scheduler"):
            return
        case other:
            raise UserError(
                f"{path}: scheduler is {other}, expected one of diffusers', such as ['diffusers', 'EulerDiscreteScheduler']; "
                "parts with custom code are not loaded"
            )


def _check_small_files(folder: Path) -> None:
    """Check that a pipeline has its scheduler and tokenizers: the libraries would make up a tokenizer of two words.

    Raises:
        UserError: a file is missing or holds code, or a configuration is damaged.
    """
    read_config(folder / "scheduler" / "scheduler_config.json")
    if code := next((file for part in ("scheduler", "tokenizer", "tokenizer_2") for file in (folder / part).glob("*.py")), None):
        raise UserError(f"{code} is code, which diffusers would take for that of a part; parts with custom code are not loaded")
    for path in (folder / "tokenizer", folder / "tokenizer_2"):
        names = {file.name for file in path.glob("*")}
        if not names:
            raise UserError(f"{path} is missing or empty; copy it from the base pipeline")
        if "tokenizer.json" not in names and not names.issuperset(("vocab.json", "merges.txt")):
            raise UserError(
                f"{path} has no vocabulary: expected vocab.json and merges.txt, or tokenizer.json, found {', '.join(sorted(names))}; "
                "copy them from the base pipeline"
            )
        if "model_max_length" not in read_config(path / "tokenizer_config.json"):
            raise UserError(f"{path / 'tokenizer_config.json'} has no model_max_length; copy the file from the base pipeline")


def _folder(spec: ModelSpec) -> Path:
    if spec.source == "embedded":
        return _existing(WEIGHTS / spec.location, "the embedded weights are part of the package: install it again, or train them anew")
    if spec.source == "hub":
        snapshot = _cached_snapshot(spec.location, spec.revision)
        return unet_folder(snapshot) if spec.base else snapshot
    return _existing(Path(spec.location), "it was moved or deleted since it was named")


def _existing(path: Path, advice: str) -> Path:
    if not path.exists():
        raise UserError(f"{path} does not exist: {advice}")
    return path


def _cached_snapshot(repository: str, revision: str | None = None) -> Path:
    folder = hub.cached_snapshot(repository, revision)
    if folder is None:
        raise UserError(
            f"the weights of {repository!r} are not on this disk; fetch them where the Hub is reachable, or name a folder that holds them"
        )
    return folder


def _lora_file(lora: str) -> Path:
    path = Path(lora) if Path(lora).is_absolute() else _cached_snapshot(lora)
    folder, names = (path.parent, [path.name]) if path.is_file() else (path, sorted(file.name for file in path.glob("*.safetensors")))
    name = choose_lora_file(names)
    if name is None:
        raise UserError(f"LoRA {path}: expected {LORA_FILE} or a single .safetensors file, found {names or 'none'}; name the file")
    chosen = folder / name
    if not any("lora" in name.lower() for name in read_headers([chosen])):
        raise UserError(f"{chosen} is not a LoRA: none of its tensors has 'lora' in its name. If it is a model, name it as the model.")
    return chosen
