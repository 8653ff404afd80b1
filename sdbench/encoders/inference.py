"""How encoders run: on the device of the run, by batches, in full float32.

So numbers are the same in a training loop, which may have set a lower precision, as from the command line.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import _lru_cache_wrapper, cache
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from sdbench import __version__
from sdbench.arrays import F32, U8
from sdbench.disk import digest
from sdbench.machine import version
from sdbench.records import ENCODING_PACKAGES

T = TypeVar("T")
BLOCK = 64  # images in memory at a time, a multiple of every encoder's batch
RUN_DEVICE: ContextVar[torch.device | None] = ContextVar("RUN_DEVICE", default=None)  # set by `memory.evaluators_on`
_BACKENDS, _CUDNN, _MKLDNN = (cast("Any", kind) for kind in (torch.backends, torch.backends.cudnn, torch.backends.mkldnn))  # sparsely typed
# torch has two sets of settings, and raises if an older one is read after a newer one was set to something else: both are set here.
_NEWER = (torch.backends.cuda.matmul, _CUDNN.conv, _CUDNN.rnn, _MKLDNN.matmul, _MKLDNN.conv)
_OLDER: tuple[tuple[Callable[[], Any], Callable[[Any], None], Any], ...] = (  # getter, setter, and the value for full float32
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    (lambda: _CUDNN.allow_tf32, lambda allowed: setattr(_CUDNN, "allow_tf32", allowed), False),
)


LOADERS: "list[_lru_cache_wrapper[Any]]" = []  # of evaluators, which `memory.release_evaluators` unloads


def evaluator(load: Callable[..., T]) -> "_lru_cache_wrapper[T]":
    """Decorate the function that loads a network of full size: it is kept in memory until evaluators are released."""
    LOADERS.append(cached := cache(load))
    return cached


def device() -> torch.device:
    """The device that encoders run on: that of the run, or outside a run the GPU if there is one."""
    return RUN_DEVICE.get() or torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


@contextmanager
def full_float32() -> Iterator[None]:
    """Inside the block, compute float32 tensors in full float32 and others in their own dtype, whatever the caller has set.

    TF32, torch's default for convolutions on Ampere and later, keeps 10 of 23 mantissa bits; autocast keeps 10 or 7. With cuDNN's benchmark
    on, the last digits depend on which algorithm happened to be the fastest.
    """
    newer, older, benchmark = [kind.fp32_precision for kind in _NEWER], [_read_setting(get) for get, _, _ in _OLDER], _CUDNN.benchmark
    try:
        for _, set_to, full in _OLDER:
            set_to(full)
        for kind in _NEWER:
            kind.fp32_precision = "ieee"
        _CUDNN.benchmark = False
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        _CUDNN.benchmark = benchmark
        for (_, set_to, _), setting in zip(_OLDER, older, strict=True):
            if setting is not None:
                set_to(setting)
        for kind, precision in zip(_NEWER, newer, strict=True):
            # "none" goes on following the global setting.
            kind.fp32_precision = "none" if precision == _BACKENDS.fp32_precision else precision


def _read_setting(get: Callable[[], Any]) -> Any:
    """An older setting; None if it contradicts the newer ones."""
    try:
        return get()
    except RuntimeError:
        return None
