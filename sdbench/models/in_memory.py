"""Describe, digest, and sample from, without side effects, the pipelines that a training loop or a notebook holds in memory."""

import copy
import hashlib
import io
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from sdbench.errors import UserError
from sdbench.models.architectures import architecture_of, family_of
from sdbench.models.spec import ModelSpec, with_name
from sdbench.models.stock import CLASSES, PIPELINE

_IGNORED_KEYS = frozenset({"transformers_version", "dtype", "torch_dtype"})  # of configurations; the tensors tell the dtype
_FLOATS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


def describe(pipeline: Any, name: str) -> ModelSpec:
    """The spec of a pipeline; its `location` is `digest(pipeline)`.

    Raises:
        UserError: it is not a whole SDXL pipeline with its weights in memory, or the name is invalid.
    """
    if not isinstance(pipeline, PIPELINE):
        raise UserError(
            f"{type(pipeline).__name__} is not a {PIPELINE.__name__}; evaluate takes one, or the path or name of a model (a UNet alone: "
            "put it into its pipeline)"
        )
    missing = [part for part in CLASSES if not isinstance(getattr(pipeline, part, None), nn.Module)]
    missing += [part for part in ("tokenizer", "tokenizer_2", "scheduler") if getattr(pipeline, part, None) is None]
    if missing:
        raise UserError(f"the pipeline has no {', '.join(missing)}; evaluate needs a complete one")
    for part in CLASSES:
        _check_network(part, getattr(pipeline, part))
    config = dict(pipeline.unet.config)
    return with_name(ModelSpec(name, family_of(config), architecture_of(config), "memory", digest(pipeline)), name)


def device(pipeline: Any) -> str:
    """The device that the pipeline computes on, also where its networks wait elsewhere for their turn (model offloading)."""
    return str(pipeline._execution_device)  # noqa: SLF001  # diffusers has no other way to ask


def digest(pipeline: Any) -> str:
    """The SHA-256 (hex) over all that decides the images: tensors, configurations, tokenizers, and settings of modules.

    The last are LoRA's, and what is set on modules of the pipeline at hand and on itself: FreeU's factors, tiling, attention processors,
    hooks, other classes, functions that replace `forward`. Classes, functions and objects count by name alone, so two patches of one name
    need two pipelines. The same pipeline in a folder has a different digest, that of its files.
    """
    sha256 = hashlib.sha256()
    for part in CLASSES:
        model = getattr(pipeline, part)
        _update(sha256, part, _canonical(dict(model.config) if part in ("unet", "vae") else model.config.to_dict()))
        for name, tensor in sorted(model.state_dict().items()):
            _add_tensor(sha256, name, tensor)
        for name, layer in model.named_modules():
            _update(sha256, name, type(layer).__qualname__, _canonical(_settings(layer)), *_hooks(layer))
            if isinstance(layer, BaseTunerLayer):  # whether a LoRA is active
                _update(sha256, name, repr((layer.active_adapters, layer.disable_adapters)))
    for part in ("tokenizer", "tokenizer_2"):
        tokenizer = getattr(pipeline, part)
        _update(sha256, part, _canonical(tokenizer.get_vocab()), _canonical(tokenizer.special_tokens_map), str(tokenizer.model_max_length))
    _update(sha256, type(pipeline.scheduler).__name__, _canonical(dict(pipeline.scheduler.config)))
    _update(sha256, type(pipeline).__qualname__, _canonical(_settings(pipeline) | {"watermark": None}))
    _update(sha256, "pipeline", _canonical({key: value for key, value in pipeline.config.items() if not isinstance(value, list | tuple)}))
    return sha256.hexdigest()


def _check_network(part: str, network: nn.Module) -> None:
    if not hasattr(network, "config"):
        raise UserError(
            f"the pipeline's {part} is a {type(network).__name__} without a configuration; if it wraps the network, put the network itself "
            f"there: pipeline.{part} = pipeline.{part}.module"
        )
    if any(tensor.is_meta for tensor in network.parameters()):
        raise UserError(
            f"the weights of the pipeline's {part} are not in memory, as with enable_sequential_cpu_offload; evaluate it without "
            "offloading, or with enable_model_cpu_offload"
        )


def _add_tensor(sha256: "hashlib._Hash", name: str, tensor: Any) -> None:
    """Add an entry of a state dict; those of quantised layers may be subclasses of tensors, or tuples of them and their scales."""
    if type(tensor) is Tensor:
        _update(sha256, name, f"{tensor.dtype} {tuple(tensor.shape)}")
        sha256.update(_bytes(tensor))
    else:
        saved = io.BytesIO()
        torch.save(tensor, saved)
        _update(sha256, name, type(tensor).__qualname__)
        sha256.update(saved.getbuffer())


def _settings(owner: Any) -> dict[str, Any]:
    """The public attributes of a module, beside its parts and tensors, or of a pipeline: plain values, and the names of all others."""
    return {
        name: _plain(value)
        for name, value in vars(owner).items()
        if not name.startswith("_") and name not in ("training", "gradient_checkpointing", "name_or_path")
    }


def _hooks(module: nn.Module) -> list[str]:
    """The names of a module's forward hooks, except those with which transformers keeps hidden states once a text encoder has run."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]  # noqa: SLF001  # there is no other way to them
    return [_name(hook) for hook in hooks if not getattr(hook, "__module__", "").startswith("transformers.")]


def _plain(value: Any) -> Any:
    match value:
        case bool() | int() | float() | str() | None:
            return value
        case list() | tuple():
            return [_plain(item) for item in value]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case _:
            return _name(value)


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _update(sha256: "hashlib._Hash", *words: str) -> None:
    sha256.update("\0".join((*words, "")).encode())


def _canonical(config: dict[str, Any]) -> str:
    return json.dumps(
        {key: value for key, value in config.items() if key not in _IGNORED_KEYS and not key.startswith("_")}, sort_keys=True, default=str
    )


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def check_dtype(pipeline: Any, dtype: str) -> None:
    """Check that a pipeline can compute in a dtype: a quantised network cannot be cast, so its other layers must have that dtype already.

    Args:
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        UserError: they have another.
    """
    for part in CLASSES:
        present = {tensor.dtype for tensor in getattr(pipeline, part).parameters()}
        others = present & _FLOATS
        if present != others and others and getattr(torch, dtype) not in others:
            found = sorted(str(other).removeprefix("torch.") for other in others)
            raise UserError(
                f"the pipeline's {part} is quantised, and its other layers are {' and '.join(found)}, but the suite computes in {dtype}, "
                f"to which it cannot be cast. Evaluate it in its own dtype: Overrides(dtype={found[0]!r}).apply(suite)"
            )


@contextmanager
def sampling_copy(pipeline: Any, dtype: torch.dtype) -> Iterator[Any]:
    """Yield a pipeline that samples from the same networks, and leaves the original as it was.

    Networks of another dtype are copied, since casting them back and forth would round; quantised ones, see `check_dtype`, are taken as
    they are. The scheduler is copied too.
    At exit, the train or eval mode of every module and the state of every random generator are restored.
    """
    sampler = copy.copy(pipeline)
    sampler.scheduler, sampler.watermark = copy.deepcopy(pipeline.scheduler), None
    sampler.set_progress_bar_config(disable=True)
    for part in CLASSES:
        setattr(sampler, part, _in_dtype(getattr(pipeline, part), dtype))
    modes = [(module, module.training) for part in CLASSES for module in getattr(sampler, part).modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  # only saved, not drawn from
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            for part in CLASSES:
                getattr(sampler, part).eval()
            yield sampler
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        for module, mode in modes:
            module.training = mode


def _in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network, or a copy where it is of another dtype; a quantised one keeps its own."""
    present = {tensor.dtype for tensor in model.parameters()}
    return model if present <= {dtype} or not present <= _FLOATS else copy.deepcopy(model).to(dtype)
