"""Pipelines that a training loop or a notebook holds in memory: describes them, digests them, and samples from them without side effects."""

import copy
import hashlib
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


def describe(pipeline: Any, name: str) -> ModelSpec:
    """The spec of a pipeline; its `location` is `digest(pipeline)`.

    Raises:
        UserError: it is not a whole SDXL pipeline, or the name is invalid.
    """
    if not isinstance(pipeline, PIPELINE):
        raise UserError(
            f"{type(pipeline).__name__} is not a {PIPELINE.__name__}; evaluate takes one, or the path or name of a model (a UNet alone: put it into its pipeline)"
        )
    others = ("tokenizer", "tokenizer_2", "scheduler")
    missing = [part for part in CLASSES if not isinstance(getattr(pipeline, part, None), nn.Module)]
    if missing := [*missing, *(part for part in others if getattr(pipeline, part, None) is None)]:
        raise UserError(f"the pipeline has no {', '.join(missing)}; evaluate needs a complete one")
    config = dict(pipeline.unet.config)
    return with_name(ModelSpec(name, family_of(config), architecture_of(config), "memory", digest(pipeline)), name)


def digest(pipeline: Any) -> str:
    """The SHA-256 (hex) over tensors, configurations, vocabularies and LoRA settings: equal digests, equal images.

    The same pipeline in a folder has a different digest, that of its files.
    """
    sha256 = hashlib.sha256()
    for part in CLASSES:
        model = getattr(pipeline, part)
        _update(sha256, part, _canonical(dict(model.config) if part in ("unet", "vae") else model.config.to_dict()))
        for name, tensor in sorted(model.state_dict().items()):
            _update(sha256, name, f"{tensor.dtype} {tuple(tensor.shape)}")
            sha256.update(_bytes(tensor))
        for name, layer in model.named_modules():
            if isinstance(layer, BaseTunerLayer):  # the scale of a LoRA, and whether it is active, are not among the tensors
                _update(sha256, name, repr((layer.active_adapters, layer.disable_adapters, getattr(layer, "scaling", None))))
    for part in ("tokenizer", "tokenizer_2"):
        _update(sha256, part, _canonical(getattr(pipeline, part).get_vocab()))
    _update(sha256, type(pipeline.scheduler).__name__, _canonical(dict(pipeline.scheduler.config)))
    _update(sha256, "pipeline", _canonical({key: value for key, value in pipeline.config.items() if not isinstance(value, list | tuple)}))
    return sha256.hexdigest()


def _update(sha256: "hashlib._Hash", *words: str) -> None:
    sha256.update("\0".join((*words, "")).encode())


def _canonical(config: dict[str, Any]) -> str:
    return json.dumps(
        {key: value for key, value in config.items() if key not in _IGNORED_KEYS and not key.startswith("_")}, sort_keys=True, default=str
    )


_IGNORED_KEYS = frozenset({"transformers_version", "dtype", "torch_dtype"})  # of configurations; the tensors tell the dtype


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


@contextmanager
def sampling_copy(pipeline: Any, dtype: torch.dtype) -> Iterator[Any]:
    """Yield a pipeline that samples from the same networks, and leaves the original as it was.

    Networks of another dtype are copied, since casting them back and forth would round. The scheduler is copied too.
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
    has_dtype = all(tensor.dtype == dtype for tensor in model.parameters())
    return model if has_dtype else copy.deepcopy(model).to(dtype)
