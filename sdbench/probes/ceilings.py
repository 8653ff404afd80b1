"""What this machine can do at best, in the way that networks ask for it: multiply two large matrices, copy a large array."""

from collections.abc import Callable
from typing import Any

import torch

from sdbench.settings import Dtype

MATMUL_SIDE = {"cuda": 8192, "cpu": 512}  # a CPU without float16 takes half a second for that
COPY_BYTES = {"cuda": 2**30, "cpu": 2**27}  # well above what caches hold on a card, and most of them on a CPU


def prepare(name: str, device: str, dtype: Dtype) -> Callable[[], object]:
    """The call of "matmul" or "copy" in a dtype."""
    kind, like = torch.device(device).type, {"device": device, "dtype": getattr(torch, dtype)}
    if name == "copy":
        source: Any = torch.zeros(COPY_BYTES[kind] // torch.empty(0, **like).element_size(), **like)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)
    side = MATMUL_SIDE[kind]
    a, b = (torch.randn(side, side, **like) for _ in range(2))  # random: zeros draw less power and run faster
    product = torch.empty_like(a)
    return lambda: torch.matmul(a, b, out=product)


def amount(name: str, device: str) -> float:
    """What a call does: FLOPs (two for each multiply-accumulate) of "matmul", bytes read and written of "copy"."""
    kind = torch.device(device).type
    return float(2 * MATMUL_SIDE[kind] ** 3 if name == "matmul" else 2 * COPY_BYTES[kind])
