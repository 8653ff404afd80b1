"""How much fits: the largest batch that a card takes, and the smallest card that takes a batch."""

from collections.abc import Callable

import torch

from sdbench.probes.meters import MIB
from sdbench.probes.stages import Stages

CARDS_GB = (8, 12, 16, 24, 32, 40, 48, 80)  # of 2**30 bytes, as cards are sold
GIB = 2**30
# cuDNN's, cuBLAS's, the driver's, and the allocator's where a compiler has wrapped its exception in one of its own.
_NO_ROOM = ("unable to find an engine", "ALLOC_FAILED", "ALLOCATION_FAILED", "CUDA error: out of memory", "CUDA out of memory")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a call failed for want of memory: PyTorch's allocator says so by an exception of its own, the libraries below it in words.

    cuDNN tries one algorithm after another, and where each of them runs out of memory it has found none.
    """
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_ROOM)


def largest_batch(stages: Stages) -> int:
    """The largest halving of the batch for which the pipeline runs; 0 where not even one picture fits."""
    batch = stages.batch // 2
    while batch and not _fits(stages, batch):
        batch //= 2
    return batch


def smallest_card(stages: Stages, device: str, context_mib: float) -> int | None:
    """Memory in GB of the smallest card on which the pipeline runs; None where it needs more than any of `CARDS_GB`, or than this card.

    Tried, not reckoned: the pipeline runs while PyTorch's allocator may take no more than such a card has left beside the
    CUDA context.
    """
    total, index = torch.cuda.get_device_properties(device).total_memory, torch.device(device).index  # None is the current one
    try:
        for card in (card for card in CARDS_GB if card * GIB <= total * 1.02):  # a card of 24 GB has a little less to give
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, card * GIB - context_mib * MIB) / total), index)
            if _fits(stages, stages.batch):
                return card
        return None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)


def context_mib(device: str, held_mib: float | None) -> float:
    """What a process holds of the card beside PyTorch's allocator: the CUDA context and its libraries.

    Args:
        held_mib: by the process, as NVML says; where it does not, the whole card's use stands for it, which is the same if it is alone.
    """
    if held_mib is None:
        free, total = torch.cuda.mem_get_info(device)
        held_mib = (total - free) / MIB
    return max(0.0, held_mib - torch.cuda.memory_reserved(device) / MIB)


def _fits(stages: Stages, batch: int) -> bool:
    call: Callable[[], object] = torch.no_grad()(stages.short(batch))
    fits = True
    try:
        call()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fits = False
    stages.restore()
    return fits
