"""Weight files, read without torch: safetensors headers, which files of a folder to take, and what kind of file each is.

Format of safetensors: 8 bytes (little-endian) with the length of the header, a JSON header, then the raw tensors.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from safetensors import SafetensorError, safe_open

from sdbench.errors import UserError

T = TypeVar("T")
PIPELINE_CLASS = "StableDiffusionXLPipeline"  # of diffusers
PART_CLASSES = {  # part -> library and class, as in model_index.json
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
}
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model", "text_encoder_2": "model"}
SHARED_PARTS = tuple(part for part in STEMS if part != "unet")  # a student has its teacher's
LORA_FILE = "pytorch_lora_weights.safetensors"
LDM_PREFIXES = {  # of the names of each part's tensors in a checkpoint in the original layout
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}
ADAPTER = "adapter_config.json"  # of peft; transformers applies the adapter beside it to a text encoder
MERGE_ADAPTER = (
    "It is an adapter of peft, which is not read: merge it with "
    "`PeftModel.from_pretrained(unet, adapter_folder).merge_and_unload().save_pretrained(folder)`, "
    "and name that folder as the model, with --base."
)
_EDM_TENSORS = ("edm_mean", "edm_vpred.sigma_max")  # of Playground v2.5's layout and of CosXL's
_WRAPPERS = ("unet.", "module.", "_orig_mod.")  # added by a pipeline's trainer, by (Distributed)DataParallel, by torch.compile
COPY_AGAIN = "Copy or download it again"
MAX_LAYERS, MAX_NUMBER = 1000, 1_000_000  # in configurations; far beyond any pipeline, and still built in seconds and megabytes
_MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own limit


@dataclass(frozen=True)
class Tensor:
    """A tensor on disk: bytes `start` to `stop` of `path`."""

    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    stop: int

    @property
    def n_elements(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, Tensor]:
    """Read the header of a safetensors file and return its tensors by name.

    Raises:
        UserError: the file is missing, is not a safetensors file, or was cut short.
    """
    header, offset = _read_header(path)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, offset, entry) for name, entry in header.items()}
    end, size = max((tensor.stop for tensor in tensors.values()), default=offset), path.stat().st_size
    if end != size:
        cut = next((name for name, tensor in tensors.items() if tensor.stop > size), "none")
        raise UserError(
            f"{path} was cut short or is damaged: {size} bytes, its header promises {end} (first tensor beyond the end: {cut}). "
            f"{COPY_AGAIN}."
        )
    try:
        with safe_open(path, "numpy"):  # the library's own checks of sizes and offsets
            return tensors
    except SafetensorError as error:
        raise UserError(f"{path} has a damaged safetensors header ({error}). {COPY_AGAIN}.") from error


def read_metadata(path: Path) -> dict[str, Any]:
    """Read the free text, by its keys, that a safetensors file holds beside its tensors; empty if it holds none.

    Raises:
        UserError: see `read_header`.
    """
    metadata = _read_header(path)[0].get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def stated_prediction(path: Path) -> dict[str, Any]:
    """The prediction that a weight file states it was trained for, as settings of a scheduler; empty where it states none, or epsilon.

    Kohya's scripts write `modelspec.prediction_type` beside the tensors, "v" or "epsilon". Other checkpoints, such as NoobAI's, have empty
    tensors called `v_pred` and `ztsnr`, after which ComfyUI goes too (comfy/supported_models.py).

    Raises:
        UserError: see `read_header`.
    """
    names = read_header(path)
    if "v_pred" not in names and read_metadata(path).get("modelspec.prediction_type") not in ("v", "v_prediction"):
        return {}
    return {"prediction_type": "v_prediction"} | ({"rescale_betas_zero_snr": True} if "ztsnr" in names else {})


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and the offset of the tensors behind it."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if length <= min(path.stat().st_size - 8, _MAX_HEADER_BYTES) else None
    except OSError as error:
        raise UserError(f"cannot read weights {path}: {error.strerror}. {COPY_AGAIN}.") from error
    except (ValueError, RecursionError):  # the latter of deep nesting
        header = None
    if not isinstance(header, dict):
        raise UserError(
            f"{path} is not a safetensors file ({_describe_content(path)}), or was cut short. {COPY_AGAIN}; "
            "with git-lfs, `git lfs pull` it."
        )
    return header, 8 + length


def _tensor(path: Path, offset: int, entry: Any) -> Tensor:
    try:
        start, stop = entry["data_offsets"]
        return Tensor(entry["dtype"], tuple(entry["shape"]), path, offset + start, offset + stop)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has a damaged safetensors header. {COPY_AGAIN}.") from error


def _describe_content(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(60)
    return "a git-lfs pointer" if start.startswith(b"version https://git-lfs") else f"{path.stat().st_size} bytes"


def read_model_json(path: Path) -> dict[str, Any]:
    """Read a JSON object in the folder of a model.

    Raises:
        UserError: the file is missing or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # the last of deep nesting
        raise UserError(f"cannot read {path}: {error}. A model's folder in diffusers layout needs it.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} does not hold a JSON object, found {type(content).__name__}")
    return content


def read_config(path: Path) -> dict[str, Any]:
    """Read the configuration of a part of a pipeline.

    A part is built before its tensors are compared with those of its files. Its widths then take no memory, but its layers do, as do the
    lengths of tokenizers and schedulers.

    Raises:
        UserError: see `read_model_json`; or a number is larger than in any pipeline.
    """
    config = read_model_json(path)
    for key, number in _integers(config):
        if number > (limit := MAX_LAYERS if "layers" in key else MAX_NUMBER):
            raise UserError(f"{path}: {key!r} is {number}, expected at most {limit:,}. {COPY_AGAIN}.")
    return config


def _integers(content: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """All integers in JSON content, each with the innermost key that it is under."""
    match content:
        case dict():
            for name, item in content.items():
                yield from _integers(item, name)
        case list():
            for item in content:
                yield from _integers(item, key)
        case int():
            yield key, content


@dataclass(frozen=True)
class WeightFiles:
    """The copy of a part's weights to take: its `variant` in diffusers' terms ("fp16" or None), and its file names."""

    variant: str | None
    names: tuple[str, ...]


def choose_weight_files(names: Iterable[str], stem: str, *, sixteen_bit: bool) -> WeightFiles | None:
    """The weight files to take from one folder: for 16-bit runs the 16-bit copy, if there is one; None if there are none.

    Of a file and shards, the one that its library loads: diffusers takes the shards, transformers the file.

    Args:
        names: file names in the folder of one part.
        stem: beginning of the names of its weight files.
    """
    present = set(names)
    for variant in ("fp16", None) if sixteen_bit else (None, "fp16"):
        single, index = _single_name(stem, variant), _index_name(stem, variant)
        both = (index, single) if stem == STEMS["unet"] else (single, index)
        if chosen := next((name for name in both if name in present), None):
            shard = re.compile(rf"{re.escape(single.removesuffix('.safetensors'))}-\d+-of-\d+\.safetensors")
            return WeightFiles(variant, (chosen, *(sorted(filter(shard.fullmatch, present)) if chosen == index else ())))
    return None


def choose_lora_file(names: Iterable[str]) -> str | None:
    """The LoRA among the file names of one folder: diffusers' own name for one, or the only .safetensors file; None if neither is there."""
    files = [name for name in names if name.endswith(".safetensors")]
    return LORA_FILE if LORA_FILE in files else files[0] if len(files) == 1 else None


def weight_files(folder: Path, part: str, *, sixteen_bit: bool) -> tuple[str | None, list[Path]]:
    """The variant and the safetensors files of a part ("unet", "vae", "text_encoder", "text_encoder_2") in its folder.

    Raises:
        UserError: there is no such folder; it holds none, a second copy or an adapter, so that other weights would be loaded than are
            checked; or the index is damaged or names a shard that is missing.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}, which should hold the weights of the {part}; copy it from the base pipeline")
    names = [path.name for path in folder.glob("*")]
    choice = choose_weight_files(names, STEMS[part], sixteen_bit=sixteen_bit)
    if choice is None:
        pickled = [name for name in names if name.endswith((".bin", ".ckpt", ".pt"))]
        found = f"only pickled weights ({pickled[0]}), which can run code" if pickled else ", ".join(sorted(names)) or "nothing"
        raise UserError(
            f"{folder} has no weights of the {part}: expected {STEMS[part]}.safetensors, found {found}. Save it with "
            "`save_pretrained(..., safe_serialization=True)`."
        )
    if part.startswith("text") and ADAPTER in names:
        raise UserError(
            f"{folder} holds {ADAPTER}, whose adapter would change the weights of the {part}; merge it into them, or remove it."
        )
    single = _single_name(STEMS[part], choice.variant)
    index = next((name for name in names if _is_index(name, STEMS[part], choice.variant)), None)
    if single in names and index:
        raise UserError(
            f"{folder} holds two copies of the weights of the {part}, {single} and the shards that {index} names; remove one of them."
        )
    if choice.names[0] == single:
        return choice.variant, [folder / single]
    shard_of = read_model_json(folder / choice.names[0]).get("weight_map")
    promised = sorted({str(name) for name in shard_of.values()}) if isinstance(shard_of, dict) else []
    missing = [name for name in promised if name not in names]
    if missing or not promised:
        shards = f"{len(promised)} shards, but {missing[0]} is missing" if missing else "no shards"
        raise UserError(f"{folder / choice.names[0]} names {shards}. {COPY_AGAIN}.")
    return choice.variant, [folder / name for name in promised]


def _single_name(stem: str, variant: str | None) -> str:
    return f"{stem}{f'.{variant}' if variant else ''}.safetensors"


def _index_name(stem: str, variant: str | None) -> str:
    return f"{stem}.safetensors.index{f'.{variant}' if variant else ''}.json"


def _is_index(name: str, stem: str, variant: str | None) -> bool:
    """Whether diffusers may take a file as the index of a copy's shards; the old names of those of variants depend on the folder's path."""
    words = name.split(".")
    return name == _index_name(stem, variant) or (words[0] == stem and {variant, "safetensors", "index"} <= {*words})


def part_files(folder: Path, part: str) -> list[Path]:
    """The files of a pipeline's part in its folder: configuration, and one copy of the weights, float32 if there is one.

    Raises:
        UserError: see `weight_files`.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    if part not in STEMS:
        return files
    variant, weights = weight_files(folder, part, sixteen_bit=False)
    index = _index_name(STEMS[part], variant)
    return [path for path in files if path in weights or path.name == index or (path.suffix == ".json" and ".index." not in path.name)]


def read_headers(files: Iterable[Path]) -> dict[str, Tensor]:
    """Read the headers of several safetensors files and return all their tensors by name.

    Raises:
        UserError: see `read_header`.
    """
    return {name: tensor for path in files for name, tensor in read_header(path).items()}


def checkpoint_kind(path: Path, tensors: dict[str, Tensor]) -> Literal["unet", "checkpoint"]:
    """The kind of a weight file: "unet" (diffusers' tensor names) or "checkpoint" (a whole SDXL pipeline with the original LDM names).

    Raises:
        UserError: the file holds neither, or a checkpoint of EDM's kind, whose noise and latents are not those of its base.
    """
    if edm := next((name for name in _EDM_TENSORS if name in tensors), None):
        raise UserError(
            f"{path} is a checkpoint of EDM's kind (tensor {edm!r}), of which a base pipeline has neither the scheduler nor the VAE's "
            "settings. Name a folder in diffusers layout, or the Hub's repository of one, that has its own, such as "
            "playgroundai/playground-v2.5-1024px-aesthetic"
        )
    if all(any(key.startswith(prefix) for key in tensors) for prefix in LDM_PREFIXES.values()):
        return "checkpoint"
    inner = strip_prefixes(tensors)
    if "conv_in.weight" in inner and any(key.startswith("down_blocks.") for key in inner):
        return "unet"
    if tensors and all(key.startswith(LDM_PREFIXES["unet"]) for key in tensors):
        raise UserError(
            f"{path} is a UNet alone in the original (LDM) names. Save it as a folder, with a pipeline of its architecture as config, and "
            "name that: "
            f'python -c "from diffusers import UNet2DConditionModel as UNet; UNet.from_single_file({str(path)!r}, '
            f"config='stabilityai/stable-diffusion-xl-base-1.0', subfolder='unet').save_pretrained({path.stem!r})\""
        )
    missing = [f"{part} ({prefix}*)" for part, prefix in LDM_PREFIXES.items() if not any(key.startswith(prefix) for key in tensors)]
    if len(missing) < len(LDM_PREFIXES):
        raise UserError(
            f"{path} is only part of an SDXL checkpoint in the original (LDM) names; it has no {' and no '.join(missing)}. "
            "Name a file of the whole checkpoint, or export one that includes them."
        )
    example = next(iter(tensors), "no tensor")
    if any("lora" in key.lower() for key in tensors):
        raise UserError(
            f"{path} is a LoRA (tensor {next(key for key in tensors if 'lora' in key.lower())!r}), not a model. Name the model it belongs "
            "to, and this file with --lora."
        )
    raise UserError(
        f"{path} is neither a UNet in diffusers' names (conv_in.weight, down_blocks.*) nor a whole SDXL checkpoint "
        f"({', '.join(f'{prefix}*' for prefix in LDM_PREFIXES.values())}): found {len(tensors)} tensors such as {example!r}. Save the UNet "
        "with `save_pretrained`, and name that folder."
    )


def strip_prefixes(tensors: Mapping[str, T]) -> dict[str, T]:
    """A UNet's tensors without the prefixes that training puts before all names: `unet.`, `module.`, `_orig_mod.`."""
    stripped = dict(tensors)
    while prefix := next((each for each in _WRAPPERS if stripped and all(key.startswith(each) for key in stripped)), None):
        stripped = {key.removeprefix(prefix): tensor for key, tensor in stripped.items()}
    return stripped
