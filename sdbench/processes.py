"""The processes of a distributed run, as `torchrun` starts them: what one does for all. Without such a run, this one is the main one, alone."""

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import distributed

Made = TypeVar("Made")


def from_main(make: Callable[[], Made]) -> Made:
    """What the main process makes, told to all; each of them has to call it, and the main one makes it once all have come."""
    if not distributed.is_initialized():
        return make()
    distributed.barrier(device_ids=[torch.cuda.current_device()] if distributed.get_backend() == "nccl" else None)
    told = [make() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(told)
    (made,) = told
    return made  # type: ignore[return-value]  # the main process's


def sharing() -> tuple[int, int]:
    """Number of this process, and of how many on the main one's machine: numbers beyond are on others, which may not see what it maps into memory."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), int(os.environ.get("LOCAL_WORLD_SIZE", distributed.get_world_size()))
