"""The machine's peak rates in the operations that networks need: the product of two large matrices, and the copy of a large array."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from sdbench.probes.meters import synchronised_clock
from sdbench.settings import Dtype

MATMUL_SIDE = {"cuda": 8192, "cpu": 512}  # in float16, a CPU without support for it takes half a second
COPY_BYTES = {"cuda": 2**30, "cpu": 2**27}  # far more than the caches of a card hold, and those of most CPUs


def prepare(name: str, device: str, dtype: Dtype) -> Callable[[], object]:
    """A function that runs "matmul" or "copy" once in a dtype, with its arrays already allocated."""
    kind, like = torch.device(device).type, {"device": device, "dtype": getattr(torch, dtype)}
    if name == "copy":
        source: Any = torch.zeros(COPY_BYTES[kind] // torch.empty(0, **like).element_size(), **like)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)
    side = MATMUL_SIDE[kind]
    a, b = (torch.randn(side, side, **like) for _ in range(2))  # random, since zeros draw less power and run faster
    product = torch.empty_like(a)
    return lambda: torch.matmul(a, b, out=product)


def work_per_call(name: str, device: str) -> float:
    """The work of one call: FLOPs of "matmul" (two for each multiply-accumulate), bytes read and written by "copy"."""
    kind = torch.device(device).type
    return float(2 * MATMUL_SIDE[kind] ** 3 if name == "matmul" else 2 * COPY_BYTES[kind])


def measure(name: str, device: str, dtype: Dtype) -> float:
    """The work per second of the fastest of ten calls, in the units of `work_per_call`."""
    call = prepare(name, device, dtype)
    marks = [(call(), synchronised_clock())[1] for _ in range(11)]
    return work_per_call(name, device) / min(end - start for start, end in pairwise(marks))
