"""Weights => a stock `StableDiffusionXLPipeline`, checked tensor by tensor. Reads the disk only; never runs remote code."""

from pathlib import Path
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig

from sdbench.errors import UserError
from sdbench.models.architectures import TOPOLOGIES, depths, depths_of_keys
from sdbench.models.checks import check_checkpoint, check_finite, check_tensors
from sdbench.models.files import STEMS, bare, read_header, read_headers, read_json, weight_files
from sdbench.models.locate import Layout, locate
from sdbench.models.random_weights import random_pipeline
from sdbench.models.spec import ModelSpec
from sdbench.models.stock import CLASSES, PIPELINE, quiet
from sdbench.models.text_encoders import PREFIX


def load(spec: ModelSpec, *, dtype: torch.dtype | str, device: torch.device | str) -> Any:
    """Load a model => a stock `StableDiffusionXLPipeline`, ready to generate: no watermark, no progress bar, LoRA fused.

    Args:
        spec: the model; one of the Hub must have been fetched (`sdbench.assets.pipelines.fetch`).
        dtype: of every weight: "float32", "bfloat16" or "float16".
        device: where the pipeline goes.

    Raises:
        UserError: files are missing or damaged, tensors do not fit their configuration or are not finite.
    """
    if spec.source == "rendered":
        raise UserError(f"{spec.name!r} is pictures without a model: there is nothing to load")
    to, kind = _device(device), getattr(torch, dtype) if isinstance(dtype, str) else dtype
    quiet()
    pipeline = random_pipeline(spec, kind, to) if spec.source == "random" else _read(spec, kind).to(to)
    pipeline.set_progress_bar_config(disable=True)
    for part in CLASSES:
        getattr(pipeline, part).eval().requires_grad_(requires_grad=False)
    return pipeline


def load_unet(pipeline: Path, *, dtype: str, device: torch.device | str) -> Any:
    """Load the UNet of a whole pipeline in diffusers layout, frozen, and nothing else; of two copies that of 32 bits, in any dtype.

    On the CPU and in the dtype that it is stored in, its tensors stay mapped from their files: whatever its size, they
    take none of the process's own memory.

    Args:
        pipeline: folder with `model_index.json`.
        dtype: of every weight: "float32", "bfloat16" or "float16".
        device: where the UNet goes.

    Raises:
        UserError: files are missing or damaged, tensors do not fit their configuration or are not finite.
    """
    to = _device(device)
    quiet()
    unet = read_part("unet", pipeline / "unet", getattr(torch, dtype), sixteen_bit=False)
    check_finite(unet, "unet", pipeline)
    return unet.to(to).eval().requires_grad_(requires_grad=False)


def _device(device: torch.device | str) -> torch.device:
    found = torch.device(device)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device {str(device)!r} is not there: torch {torch.__version__} sees no CUDA device; use --device cpu")
    return found


def _read(spec: ModelSpec, dtype: torch.dtype) -> Any:
    layout = locate(spec)
    pipeline = _read_checkpoint(layout, layout.checkpoint, dtype) if layout.checkpoint else _read_folders(layout, dtype)
    if layout.lora:
        _fuse(pipeline, layout.lora)
    for part in CLASSES:
        check_finite(getattr(pipeline, part), part, Path(spec.location))
    return pipeline


def _read_folders(layout: Layout, dtype: torch.dtype) -> Any:
    parts = {part: read_part(part, layout.pipeline / part, dtype) for part in STEMS if part != "unet"}
    unet = _read_unet_file(layout, dtype) if layout.unet.is_file() else read_part("unet", layout.unet, dtype)
    return PIPELINE.from_pretrained(layout.pipeline, unet=unet, **parts, use_safetensors=True, local_files_only=True, add_watermarker=False)


def on_meta(part: str, config: dict[str, Any]) -> nn.Module:
    """A part of a pipeline without memory for its weights."""
    with torch.device("meta"):
        model: nn.Module = CLASSES[part](CLIPTextConfig.from_dict(config)) if part.startswith("text") else CLASSES[part].from_config(config)
    return model


def read_part(part: str, folder: Path, dtype: torch.dtype, *, sixteen_bit: bool | None = None) -> nn.Module:
    """A part of a pipeline ("unet", "vae", "text_encoder", "text_encoder_2") from its folder, on the CPU.

    Args:
        part: its name.
        folder: where it lies.
        dtype: of every weight.
        sixteen_bit: of two copies take that of 16 bits; where not given, for 16-bit dtypes.

    Raises:
        UserError: files are missing or damaged, or tensors do not fit the configuration.
    """
    config = read_json(folder / "config.json")
    lower = dtype != torch.float32 if sixteen_bit is None else sixteen_bit
    variant, files = weight_files(folder, part, sixteen_bit=lower)
    check_tensors(_described(part, config, folder), part, read_headers(files), folder)
    model: nn.Module = CLASSES[part].from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True, variant=variant)
    return model


def _described(part: str, config: dict[str, Any], where: Path) -> nn.Module:
    try:
        return on_meta(part, config)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise UserError(
            f"{where / 'config.json'} describes no {CLASSES[part].__name__}: {error}. Take the one that the weights were saved with."
        ) from error


def _read_unet_file(layout: Layout, dtype: torch.dtype) -> nn.Module:
    """A UNet without configuration: the base's widths, and of the known topologies the one that its tensors show."""
    base = read_json(layout.pipeline / "unet" / "config.json")
    tensors = bare(read_header(layout.unet))
    config = next(
        (known for known in (base, *({**base, **known} for known in TOPOLOGIES.values())) if depths(known) == depths_of_keys(tensors)), None
    )
    if config is None:
        raise UserError(
            f"{layout.unet}: its transformer blocks {depths_of_keys(tensors)} are those of no known architecture; save the UNet as a folder with its config.json"
        )
    model = on_meta("unet", config)
    check_tensors(model, "unet", tensors, layout.unet)
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in bare(load_file(layout.unet)).items()}, assign=True)
    return model


def _read_checkpoint(layout: Layout, checkpoint: Path, dtype: torch.dtype) -> Any:
    described = {part: _described(part, read_json(layout.pipeline / part / "config.json"), layout.pipeline / part) for part in CLASSES}
    check_checkpoint(described, read_header(checkpoint), checkpoint)
    return PIPELINE.from_single_file(
        str(checkpoint), config=str(layout.pipeline), dtype=dtype, local_files_only=True, add_watermarker=False
    )


def _fuse(pipeline: Any, file: Path) -> None:
    """Add a LoRA to the weights, having seen that each of its layers has a place: diffusers leaves out those that have none."""
    if any("dora_scale" in name for name in read_header(file)):
        raise UserError(
            f"LoRA {file} is a DoRA, of which diffusers leaves out the magnitudes; merge it where it was trained, and name the result"
        )
    try:
        state, _ = pipeline.lora_state_dict(
            str(file.parent), weight_name=file.name, unet_config=pipeline.unet.config, local_files_only=True
        )
        layers = _layers(pipeline, state)
    except ValueError as error:
        raise UserError(
            f"LoRA {file} is of a kind that diffusers does not read ({str(error)[:100].strip()}); save it in the names of diffusers or of Kohya's scripts"
        ) from error
    modules = {f"{part}.{name}" for part in _WITH_LORA for name, _ in getattr(pipeline, part).named_modules()}
    if homeless := sorted(layers - modules):
        raise UserError(
            f"LoRA {file} has {len(homeless)} layers that the model lacks, such as {homeless[0]!r}; it was made for another architecture"
        )
    try:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name, local_files_only=True)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"LoRA {file} does not fit the model: {str(error).splitlines()[-1].strip()}; it was made for another width"
        ) from error
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()


_WITH_LORA = ("unet", "text_encoder", "text_encoder_2")  # parts that diffusers loads LoRAs into


def _layers(pipeline: Any, state: dict[str, Any]) -> set[str]:
    """The modules that a LoRA's tensors are for, in the names that diffusers turns theirs into once more as it loads them."""
    layers = {name.split(".lora")[0] for name in state if not name.startswith(tuple(f"{part}." for part in _WITH_LORA))}
    for part in _WITH_LORA:
        own = {name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(f"{part}.")}
        if part == "unet":
            own = convert_unet_state_dict_to_peft(own)
        elif own:
            own = convert_state_dict_to_peft(convert_state_dict_to_diffusers(own))
        prefix = "" if part == "unet" or hasattr(getattr(pipeline, part), "text_model") else PREFIX
        layers |= {f"{part}.{name.removeprefix(prefix).split('.lora')[0]}" for name in own}
    return layers
