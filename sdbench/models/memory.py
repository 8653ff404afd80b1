"""Pipelines that somebody else holds in memory, a training loop or a notebook: named, digested, and lent unchanged."""

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
from sdbench.models.spec import ModelSpec, named
from sdbench.models.stock import CLASSES, PIPELINE


def describe(pipeline: Any, name: str) -> ModelSpec:
    """What a pipeline is; its location is the digest of what it would draw.

    Raises:
        UserError: it is no whole SDXL pipeline, or the name cannot be given.
    """
    if not isinstance(pipeline, PIPELINE):
        raise UserError(
            f"{type(pipeline).__name__} is no {PIPELINE.__name__}; evaluate takes one, or the path or name of a model (a UNet alone: put it into its pipeline)"
        )
    if lacking := [part for part in CLASSES if not isinstance(getattr(pipeline, part, None), nn.Module)]:
        raise UserError(f"the pipeline has no {', '.join(lacking)}; evaluate needs a whole one")
    config = dict(pipeline.unet.config)
    return named(ModelSpec(name, family_of(config), architecture_of(config), "memory", digest(pipeline)), name)


def digest(pipeline: Any) -> str:
    """SHA-256 (hex) over tensors, configurations, vocabularies and LoRA settings: equal digests, equal pictures.

    It is not that of the same pipeline in a folder, which is over files.
    """
    whole = hashlib.sha256()
    for part in CLASSES:
        model = getattr(pipeline, part)
        _add(whole, part, _content(dict(model.config) if part in ("unet", "vae") else model.config.to_dict()))
        for name, tensor in sorted(model.state_dict().items()):
            _add(whole, name, f"{tensor.dtype} {tuple(tensor.shape)}")
            whole.update(_bytes(tensor))
        for name, layer in model.named_modules():
            if isinstance(layer, BaseTunerLayer):  # a LoRA's factor and whether it is switched on are not among the tensors
                _add(whole, name, repr((layer.active_adapters, layer.disable_adapters, getattr(layer, "scaling", None))))
    for part in ("tokenizer", "tokenizer_2"):
        _add(whole, part, _content(getattr(pipeline, part).get_vocab()))
    _add(whole, type(pipeline.scheduler).__name__, _content(dict(pipeline.scheduler.config)))
    _add(whole, "pipeline", _content({key: value for key, value in pipeline.config.items() if not isinstance(value, list | tuple)}))
    return whole.hexdigest()


def _add(whole: "hashlib._Hash", *words: str) -> None:
    whole.update("\0".join((*words, "")).encode())


def _content(config: dict[str, Any]) -> str:
    return json.dumps(
        {key: value for key, value in config.items() if key not in _NOTES and not key.startswith("_")}, sort_keys=True, default=str
    )


_NOTES = frozenset({"transformers_version", "dtype", "torch_dtype"})  # say nothing that the tensors do not


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


@contextmanager
def lent(pipeline: Any, dtype: torch.dtype) -> Iterator[Any]:
    """A pipeline over the same networks to sample with; when it is given back, all is as it was.

    Networks of another dtype are copied, since casting there and back would round. The scheduler is a copy too, and
    train and eval mode of every module and the state of every random generator are put back.
    """
    guest = copy.copy(pipeline)
    guest.scheduler, guest.watermark = copy.deepcopy(pipeline.scheduler), None
    guest.set_progress_bar_config(disable=True)
    for part in CLASSES:
        setattr(guest, part, _in_dtype(getattr(pipeline, part), dtype))
    modes = [(module, module.training) for part in CLASSES for module in getattr(guest, part).modules()]
    numbers, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002  # the state is kept, not used
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count())):
            for part in CLASSES:
                getattr(guest, part).eval()
            yield guest
    finally:
        random.setstate(numbers)
        np.random.set_state(arrays)  # noqa: NPY002
        for module, mode in modes:
            module.training = mode


def _in_dtype(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    fits = all(tensor.dtype == dtype for tensor in model.parameters())
    return model if fits else copy.deepcopy(model).to(dtype)
