"""The machine's peak rates in the operations that networks need: the product of two large matrices, and the copy of a large array."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from sdbench.machine import is_slow
from sdbench.probes.meters import synchronised_clock
from sdbench.settings import Dtype

MATMUL_SIDE = {"cuda": 8192, "cpu": 2048}
SLOW_SIDE = 512  # a CPU without instructions for a dtype of 16 bits takes 0.2 to 2 s even for that
COPY_BYTES = {"cuda": 2**30, "cpu": 2**27}  # far more than the caches of a card hold, and those of most CPUs
REPEATS = {"cuda": 8, "cpu": 1}  # in each call: a card copies that in 0.5 ms, and to wait for it takes the host some 20 µs


def prepare(name: str, device: str, dtype: Dtype) -> Callable[[], object]:
    """A function that runs "matmul" or "copy" in a dtype as often as `REPEATS` says, with its arrays already allocated."""
    like: dict[str, Any] = {"device": device, "dtype": getattr(torch, dtype)}
    if name == "copy":
        source = torch.zeros(_copy_bytes(device) // torch.empty(0, **like).element_size(), **like)
        target = torch.empty_like(source)
        return _repeated(lambda: target.copy_(source), device)
    side = _matmul_side(device, dtype)
    a, b = (torch.randn(side, side, **like) for _ in range(2))  # random, since zeros draw less power and run faster
    product = torch.empty_like(a)
    return _repeated(lambda: torch.matmul(a, b, out=product), device)


def _repeated(once: Callable[[], object], device: str) -> Callable[[], object]:
    def call() -> None:
        for _ in range(REPEATS[torch.device(device).type]):
            once()

    return call


def work_per_call(name: str, device: str, dtype: Dtype) -> float:
    """The work of one call: FLOPs of "matmul" (two for each multiply-accumulate), bytes read and written by "copy"."""
    once = 2 * _matmul_side(device, dtype) ** 3 if name == "matmul" else 2 * _copy_bytes(device)
    return float(once * REPEATS[torch.device(device).type])


def measure(name: str, device: str, dtype: Dtype) -> float:
    """The work per second of the fastest of five calls, in the units of `work_per_call`."""
    call, card = prepare(name, device, dtype), device if device.startswith("cuda") else None
    marks = [(call(), synchronised_clock(card))[1] for _ in range(6)]
    return work_per_call(name, device, dtype) / min(end - start for start, end in pairwise(marks))


def _matmul_side(device: str, dtype: Dtype) -> int:
    is_unsupported = (device, dtype) == ("cpu", "float16") or is_slow(dtype, device)
    return SLOW_SIDE if is_unsupported else MATMUL_SIDE[torch.device(device).type]


def _copy_bytes(device: str) -> int:
    return COPY_BYTES[torch.device(device).type]
