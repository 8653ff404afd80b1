"""How much fits: a batch that a card takes, and the smallest card that takes a batch."""

from collections.abc import Callable

import torch

from sdbench.models.out_of_memory import is_out_of_memory
from sdbench.probes.meters import MIB
from sdbench.probes.stages import Stages

CARDS_GB = (8, 10, 11, 12, 16, 20, 24, 32, 40, 48, 80)  # in units of 2**30 bytes, as cards are sold
GIB = 2**30
# Of its size that a card shows: 0.97 to 0.98 (RTX 3060, 3070, 5090), with error correction 0.91 to 0.94 (T4, L4, L40), as users report.
LEAST_SHARE = 0.9


def fitting_batch(stages: Stages) -> int:
    """The first batch that fits, halving that of `stages`, which does not; 0 where not even one image fits."""
    batch = stages.batch // 2
    while batch and not _fits(stages, batch):
        batch //= 2
    return batch


def smallest_card(stages: Stages, device: str, context_mib: float) -> int | None:
    """Memory in GB, one of `CARDS_GB`, of the smallest cards that all run the pipeline; None if it is none of those that this card covers.

    This is tried, not computed: the pipeline runs while PyTorch's allocator may take no more than the card that shows least of its size
    would have left besides the CUDA context.
    """
    total, index = torch.cuda.get_device_properties(device).total_memory, torch.device(device).index  # None is the current one
    try:
        for card in (card for card in CARDS_GB if LEAST_SHARE * card * GIB <= total):
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(max(0.0, LEAST_SHARE * card * GIB - context_mib * MIB) / total, index)
            if _fits(stages, stages.batch):
                return card
        return None
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)


def context_mib(device: str, process_mib: float | None) -> float:
    """Memory of the card, in MiB, that a process holds besides PyTorch's allocator: the CUDA context and its libraries.

    Args:
        process_mib: what the process holds, from NVML; where that is None, the use of the whole card is taken, which is the same if
            the process is alone on it.
    """
    if process_mib is None:
        free, total = torch.cuda.mem_get_info(device)
        process_mib = (total - free) / MIB
    return max(0.0, process_mib - torch.cuda.memory_reserved(device) / MIB)


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
