"""The processes of a distributed run, as `torchrun` starts them: what one does for all. Without such a run, this one is the main one, alone."""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TypeVar

from torch import distributed

Made = TypeVar("Made")
PATIENCE = timedelta(days=1)  # one hashes and draws for all, and their shares of encoding end apart


def from_main(make: Callable[[], Made]) -> Made:
    """What the main process makes, told to all; each of them has to call it, and the main one makes it once all have come.

    They wait for each other up to a day, while those that train together give up as soon as the process group's own timeout says.
    """
    if not distributed.is_initialized():
        return make()
    patient = _patient(distributed.group.WORLD)
    distributed.barrier(patient)
    told = [make() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(told, group=patient)
    (made,) = told
    return made  # type: ignore[return-value]  # the main process's


@cache
def _patient(_world: distributed.ProcessGroup | None) -> distributed.ProcessGroup:
    """All of a run's processes again, in a group that waits on the CPU, whatever they train on."""
    return distributed.new_group(timeout=PATIENCE, backend="gloo")  # type: ignore[return-value]  # each process is of it


def sharing() -> tuple[int, int]:
    """Number of this process, and of how many on the main one's machine: numbers beyond are on others, which may not see what it maps into memory."""
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), int(os.environ.get("LOCAL_WORLD_SIZE", distributed.get_world_size()))
