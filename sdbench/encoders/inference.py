"""How encoders run: on the device of the run, by batches, in full float32, and unloaded at its end.

So numbers are the same in a training loop, which may have set a lower precision, as from the command line, and the loop gets its memory
back: the evaluators of full size take some 17 GB together.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import _lru_cache_wrapper, cache
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from sdbench import __version__
from sdbench.arrays import F32, U8
from sdbench.disk import digest
from sdbench.machine import version
from sdbench.models.precision import full_float32
from sdbench.records import ENCODING_PACKAGES

T = TypeVar("T")
BLOCK = 64  # images in memory at a time, a multiple of every encoder's batch
_DEVICE: ContextVar[torch.device | None] = ContextVar("_DEVICE", default=None)  # set by `evaluators_on`
_EVALUATORS: "list[_lru_cache_wrapper[Any]]" = []  # the functions that load those of full size


def evaluator(load: Callable[..., T]) -> "_lru_cache_wrapper[T]":
    """Decorate the function that loads a network of full size: it is kept in memory until evaluators are released."""
    _EVALUATORS.append(cached := cache(load))
    return cached


@contextmanager
def evaluators_on(device: str) -> Iterator[None]:
    """Run full-size encoders on this device, and build all in float32, inside the block; free their memory at its end.

    Args:
        device: "cuda", "cuda:<index>", or anything else for the CPU.
    """
    release_evaluators()  # loaded ones may be on another device
    token = _DEVICE.set(torch.device(device if device.startswith("cuda") else "cpu"))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # a training loop may have set a lower one, for networks and for the constants of their inputs
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        _DEVICE.reset(token)
        release_evaluators()


def release_evaluators() -> None:
    """Unload the networks of full size, so that the GPU has room for another metric or a training loop; the next use loads them again."""
    for load in _EVALUATORS:
        load.cache_clear()
    free_memory()


def free_memory() -> None:
    """Free what nothing refers to any more, on the GPU too."""
    gc.collect()
    with suppress(torch.AcceleratorError):  # of a GPU that has failed; whoever met that raises an error already
        torch.cuda.empty_cache()


def device() -> torch.device:
    """The device that encoders run on: that of the run, or outside a run the GPU if there is one."""
    return _DEVICE.get() or torch.device("cuda" if torch.cuda.is_available() else "cpu")


def computed_by() -> str:
    """A digest of what features depend on besides images and encoder, at least in their last digits: versions, and the kind of device."""
    return digest([__version__, device().type, *map(version, ENCODING_PACKAGES)])[:8]


def encode(given: U8 | Tensor, encoder: Callable[[Any], Tensor], batch: int) -> F32:
    """Encode images, N x H x W x 3 uint8 RGB, or token ids of N texts, by batches; returns N x d float32 (float64 if the network is)."""
    with exact_inference():
        return np.concatenate([encoder(given[start : start + batch]).cpu().numpy() for start in range(0, len(given), batch)])


@contextmanager
def exact_inference() -> Iterator[None]:
    """Run encoders in inference mode and full float32."""
    with full_float32(), torch.inference_mode():
        yield
