"""Float32 that is float32, for numbers that are to come out the same in a training loop as from the command line."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch

_ALL, _CUDNN, _MKLDNN = (cast("Any", kind) for kind in (torch.backends, torch.backends.cudnn, torch.backends.mkldnn))  # of few types
# torch has two sets of settings, and raises where the older is asked after the newer has said otherwise: both are set here.
_NEWER = (torch.backends.cuda.matmul, _CUDNN.conv, _CUDNN.rnn, _MKLDNN.matmul, _MKLDNN.conv)
_OLDER: tuple[tuple[Callable[[], Any], Callable[[Any], None], Any], ...] = (  # how it is asked, how told, and what full float32 is
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
    (lambda: _CUDNN.allow_tf32, lambda allowed: setattr(_CUDNN, "allow_tf32", allowed), False),
)


@contextmanager
def full_float32() -> Iterator[None]:
    """Float32 is float32 inside, and other dtypes are what tensors say, whatever the caller's training loop has set.

    TF32, torch's default for convolutions on Ampere and later, keeps 10 of 23 bits; autocast, 10 or 7. With cuDNN's benchmark on,
    the last digits depend on which of its algorithms was the faster just now.
    """
    newer, older, benchmark = [kind.fp32_precision for kind in _NEWER], [_asked(ask) for ask, _, _ in _OLDER], _CUDNN.benchmark
    try:
        for _, tell, full in _OLDER:
            tell(full)
        for kind in _NEWER:
            kind.fp32_precision = "ieee"
        _CUDNN.benchmark = False
        with torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        _CUDNN.benchmark = benchmark
        for (_, tell, _), setting in zip(_OLDER, older, strict=True):
            if setting is not None:
                tell(setting)
        for kind, precision in zip(_NEWER, newer, strict=True):
            kind.fp32_precision = "none" if precision == _ALL.fp32_precision else precision  # what follows the setting of all goes on so


def _asked(ask: Callable[[], Any]) -> Any:
    """An older setting; None where the newer ones say otherwise."""
    try:
        return ask()
    except RuntimeError:
        return None
