"""Full float32, whatever precision a training loop has set."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

_BACKENDS, _CUDNN, _MKLDNN = (cast("Any", kind) for kind in (torch.backends, torch.backends.cudnn, torch.backends.mkldnn))  # sparsely typed
# torch has two sets of settings, and raises if an older one is read after a newer one was set to something else: both are set here.
_NEWER = (torch.backends.cuda.matmul, _CUDNN.conv, _CUDNN.rnn, _MKLDNN.matmul, _MKLDNN.conv)
_OLDER: tuple[tuple[Callable[[], Any], Callable[[Any], None], Any], ...] = (  # getter, setter, and the value for full float32
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    (lambda: _CUDNN.allow_tf32, lambda allowed: setattr(_CUDNN, "allow_tf32", allowed), False),
)


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
