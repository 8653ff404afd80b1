"""The files of a model, read without torch: configurations, which files of a folder to take, and what kind each weight file is."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from sdbench.errors import UserError
from sdbench.models.headers import COPY_AGAIN, Tensor

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
PICKLES = (".ckpt", ".pt", ".pth", ".bin")  # endings of weights that can run code
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
MAX_LAYERS, MAX_NUMBER = 1000, 1_000_000  # in configurations; far beyond any pipeline, and still built in seconds and megabytes


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


def read_part_config(folder: Path) -> dict[str, Any]:
    """Read the configuration in the folder of a part with weights, which are to be read as they are stored there.

    Raises:
        UserError: see `read_config`; or the weights are quantised, or in a file of another name.
    """
    config = read_config(folder / "config.json")
    if config.get("quantization_config") is not None:
        raise UserError(
            f"{folder} is quantised (quantization_config in its config.json); such weights are not read from files. Load the pipeline with "
            "diffusers and call sdbench.evaluate(pipeline), or save it dequantised"
        )
    if (named := config.get("transformers_weights")) is not None:
        raise UserError(
            f"{folder / 'config.json'} names {named!r} as 'transformers_weights', which transformers would load in place of the weights "
            "that are checked; remove the key, and keep only the weights that the model should have"
        )
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


def unet_folder(folder: Path) -> Path:
    """The folder of the UNet in a repository of a UNet alone: its root, or `unet` where that has no configuration."""
    return folder if (folder / "config.json").is_file() else folder / "unet"


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
        pickled = [name for name in names if name.endswith(PICKLES)]
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
