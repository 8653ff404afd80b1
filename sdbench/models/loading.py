"""Loads models as stock `StableDiffusionXLPipeline`s, checked tensor by tensor. Reads only the disk; never runs remote code."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTokenizer
from transformers.initialization import no_init_weights

from sdbench.errors import UserError, describe_error
from sdbench.models import lora
from sdbench.models.architectures import TOPOLOGIES, Config, depths, depths_of_keys
from sdbench.models.checks import Shapes, check_checkpoint, check_finite, check_tensors
from sdbench.models.files import SHARED_PARTS, read_config, read_model_json, read_part_config, strip_prefixes, weight_files
from sdbench.models.headers import read_header, read_headers
from sdbench.models.locate import ModelPaths, locate
from sdbench.models.random_weights import random_pipeline
from sdbench.models.spec import ModelSpec
from sdbench.models.stock import CLASSES, PIPELINE, silence_libraries

_UNUSED_PARTS: dict[str, Any] = {"image_encoder": None, "feature_extractor": None}  # only for prompts that are images; never read


def load(spec: ModelSpec, *, dtype: str, device: str) -> Any:
    """Load a model as a stock `StableDiffusionXLPipeline`, ready to generate: no watermark, no progress bar, LoRA fused.

    Args:
        spec: the model; one on the Hub must be downloaded already (see `sdbench.assets.pipelines.fetch`).
        dtype: the dtype of all weights: "float32", "bfloat16" or "float16".

    Raises:
        UserError: there is no such device, the spec is of images without a model, files are missing or damaged, or tensors do not fit
            their configuration or are not finite.
        RuntimeError: see `activation_scale.calibrate`, for random weights.
    """
    if spec.source == "rendered":
        raise UserError(f"{spec.name!r} is images without a model: there is nothing to load")
    place, number_type = _available_device(device), getattr(torch, dtype)
    silence_libraries()
    pipeline = random_pipeline(spec, number_type, place) if spec.source == "random" else _read_pipeline(spec, number_type).to(place)
    pipeline.set_progress_bar_config(disable=True)
    for part in CLASSES:
        getattr(pipeline, part).eval().requires_grad_(requires_grad=False)
    return pipeline


def load_unet(pipeline: Path, *, dtype: str, device: str) -> Any:
    """Load only the UNet of a pipeline in diffusers layout, frozen; it prefers the 32-bit copy, whatever the dtype.

    On the CPU and in the dtype that it is stored in, its tensors stay memory-mapped: whatever their size, they take none
    of the process's own memory.

    Args:
        pipeline: folder with `model_index.json`.
        dtype: the dtype of all weights: "float32", "bfloat16" or "float16".

    Raises:
        UserError: there is no such device, files are missing or damaged, or tensors do not fit their configuration or are not finite.
    """
    place = _available_device(device)
    silence_libraries()
    unet = read_part("unet", pipeline / "unet", getattr(torch, dtype), sixteen_bit=False)
    check_finite(unet, "unet", pipeline)
    return unet.to(place).eval().requires_grad_(requires_grad=False)


def check_headers(spec: ModelSpec, *, dtype: str) -> None:
    """Check everything that `load` checks except the values of weights; reads configurations, headers, tokenizers and the LoRA.

    Raises:
        UserError: files are missing or damaged, tensors do not fit their configuration, a tokenizer does not fit its text encoder, or the
            LoRA does not fit the model.
    """
    if spec.source in ("random", "rendered"):
        return
    silence_libraries()
    paths = locate(spec)
    configs = _check_files(paths, sixteen_bit=dtype != "float32")
    with _explained(paths.pipeline):
        tokenizers = {
            part: CLIPTokenizer.from_pretrained(paths.pipeline / part, local_files_only=True) for part in ("tokenizer", "tokenizer_2")
        }
    parts = {part: build_on_meta(part, config) for part, config in configs.items() if part.startswith("text") or paths.lora}
    _check_tokens(parts | tokenizers, paths.pipeline)
    build_scheduler(paths.pipeline)
    if paths.lora:
        lora.check(parts, paths.lora)


def _check_files(paths: ModelPaths, *, sixteen_bit: bool) -> dict[str, Config]:
    """Check that the headers of a pipeline's files fit its networks, and return the configurations of these."""
    if paths.checkpoint:
        configs = {part: _read_config(part, paths.pipeline / part) for part in CLASSES}
        shapes = {part: tensor_shapes(part, config) for part, config in configs.items()}
        check_checkpoint(shapes, read_header(paths.checkpoint), paths.checkpoint)
        return configs
    folders = {part: paths.pipeline / part for part in SHARED_PARTS} | ({} if paths.unet.is_file() else {"unet": paths.unet})
    configs = {part: check_part(part, folder, sixteen_bit=sixteen_bit) for part, folder in folders.items()}
    return configs if "unet" in configs else {"unet": _check_unet_file(paths), **configs}


def _available_device(name: str) -> torch.device:
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"no device {name!r} here: torch {torch.__version__} sees no CUDA device; use --device cpu")
    return device


def _read_pipeline(spec: ModelSpec, dtype: torch.dtype) -> Any:
    paths = locate(spec)
    pipeline = _read_checkpoint(paths, dtype) if paths.checkpoint else _read_folders(paths, dtype)
    _check_tokens(pipeline.components, paths.pipeline)
    if paths.lora:
        lora.fuse(pipeline, paths.lora)
    for part in CLASSES:
        check_finite(getattr(pipeline, part), part, Path(spec.location))
    return pipeline


def _check_tokens(parts: Mapping[str, Any], folder: Path) -> None:
    """Check that the text encoders know the tokens around each prompt: an unknown one would end the first call, or on a GPU the process."""
    for suffix in ("", "_2"):
        tokenizer, encoder = parts[f"tokenizer{suffix}"], parts[f"text_encoder{suffix}"]
        known = encoder.get_input_embeddings().num_embeddings
        for token in filter(None, (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token)):
            if tokenizer.convert_tokens_to_ids(token) >= known:
                raise UserError(
                    f"{folder / f'tokenizer{suffix}'} puts the token {token!r} into each prompt, which is not among the {known} of "
                    f"text_encoder{suffix}; copy the tokenizer from the base pipeline"
                )


def _read_folders(paths: ModelPaths, dtype: torch.dtype) -> Any:
    parts = {part: read_part(part, paths.pipeline / part, dtype) for part in SHARED_PARTS}
    unet = _read_unet_file(paths, dtype) if paths.unet.is_file() else read_part("unet", paths.unet, dtype)
    with _explained(paths.pipeline):
        return PIPELINE.from_pretrained(
            paths.pipeline, unet=unet, **parts, **_UNUSED_PARTS, use_safetensors=True, local_files_only=True, add_watermarker=False
        )


@contextlib.contextmanager
def _explained(where: Path, advice: str = "copy its tokenizers and scheduler from the base pipeline") -> Iterator[None]:
    """Name the file in errors of the libraries that build tokenizers and schedulers or convert tensors, which raise all kinds."""
    try:
        yield
    except Exception as error:
        raise UserError(f"{where} cannot be loaded ({describe_error(error)}); {advice}") from error


def build_on_meta(part: str, config: Config) -> Any:
    """Build a part of a pipeline on the meta device, which allocates no memory for its weights and initialises none."""
    with torch.device("meta"), no_init_weights():  # initialising nothing took as long as all the rest
        return CLASSES[part](CLIPTextConfig.from_dict(dict(config))) if part.startswith("text") else CLASSES[part].from_config(dict(config))


def config_key(config: Config) -> str:
    """The config of a network as JSON, for caches of what depends on it: without the folder that it was loaded from."""
    return json.dumps({name: value for name, value in config.items() if name != "_name_or_path"}, sort_keys=True)


def tensor_shapes(part: str, config: Config) -> Shapes:
    """The shapes, by name, of the tensors that a part with this configuration consists of."""
    return _tensor_shapes(part, config_key(config))


@cache  # each file is checked several times: before a run, before its weights are read, and as the teacher's of several students
def _tensor_shapes(part: str, config_json: str) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in build_on_meta(part, json.loads(config_json)).state_dict().items()}


def count_parameters(network: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def read_part(part: str, folder: Path, dtype: torch.dtype, *, sixteen_bit: bool | None = None) -> nn.Module:
    """Load a part of a pipeline from its folder, on the CPU.

    Args:
        part: "unet", "vae", "text_encoder" or "text_encoder_2".
        folder: holds `config.json` and the weights.
        sixteen_bit: take the 16-bit copy of the weights if there is one; by default for 16-bit dtypes.

    Raises:
        UserError: files are missing or damaged, or tensors do not fit their configuration.
    """
    prefer_16_bit = dtype != torch.float32 if sixteen_bit is None else sixteen_bit
    check_part(part, folder, sixteen_bit=prefer_16_bit)
    variant, _ = weight_files(folder, part, sixteen_bit=prefer_16_bit)
    model: nn.Module = CLASSES[part].from_pretrained(folder, dtype=dtype, use_safetensors=True, local_files_only=True, variant=variant)
    return model


def check_part(part: str, folder: Path, *, sixteen_bit: bool) -> Config:
    """Check that the headers of a part's files fit its configuration, and return that.

    Raises:
        UserError: see `read_part`.
    """
    config = _read_config(part, folder)
    found = read_headers(weight_files(folder, part, sixteen_bit=sixteen_bit)[1])
    check_tensors(tensor_shapes(part, config), part, found, folder)
    return config


def build_scheduler(pipeline: Path) -> Any:
    """Build the scheduler of a pipeline in its folder.

    Raises:
        UserError: its files are missing or damaged.
    """
    _, name = read_model_json(pipeline / "model_index.json")["scheduler"]
    config = read_config(pipeline / "scheduler" / "scheduler_config.json")
    with _explained(pipeline):
        return getattr(diffusers, name).from_config(config)


def _read_config(part: str, folder: Path) -> Config:
    """The configuration of a part in its folder, checked: a network can be built from it."""
    config = read_part_config(folder)
    try:
        tensor_shapes(part, config)
    except Exception as error:  # any line of the libraries' constructors may meet what does not fit
        raise UserError(
            f"{folder / 'config.json'} does not describe a {CLASSES[part].__name__}: {error}. Use the one that the weights were saved with."
        ) from error
    return config


def _read_unet_file(paths: ModelPaths, dtype: torch.dtype) -> nn.Module:
    model: nn.Module = build_on_meta("unet", _check_unet_file(paths))
    model.load_state_dict({name: tensor.to(dtype) for name, tensor in strip_prefixes(load_file(paths.unet)).items()}, assign=True)
    return model


def _check_unet_file(paths: ModelPaths) -> Config:
    """Check a UNet without a configuration, and return the one that it has: the base's widths, and the known topology of its tensors."""
    base = read_config(paths.pipeline / "unet" / "config.json")
    tensors = strip_prefixes(read_header(paths.unet))
    candidates = (base, *({**base, **topology} for topology in TOPOLOGIES.values()))
    config = next((candidate for candidate in candidates if depths(candidate) == depths_of_keys(tensors)), None)
    if config is None:
        raise UserError(
            f"{paths.unet}: its transformer blocks {depths_of_keys(tensors)} fit no known architecture; save the UNet as a folder with "
            "its config.json"
        )
    check_tensors(tensor_shapes("unet", config), "unet", tensors, paths.unet)
    return config


def _read_checkpoint(paths: ModelPaths, dtype: torch.dtype) -> Any:
    _check_files(paths, sixteen_bit=False)
    assert paths.checkpoint is not None
    with _explained(paths.checkpoint, f"export it again, or name with --base another pipeline than {paths.pipeline}"):
        return PIPELINE.from_single_file(
            str(paths.checkpoint), config=str(paths.pipeline), **_UNUSED_PARTS, dtype=dtype, local_files_only=True, add_watermarker=False
        )
