"""Communication between the processes of a distributed run, as started by `torchrun`; a process alone is the main process."""

import os
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import TypeVar

from torch import distributed

Result = TypeVar("Result")
# The main process hashes and draws for all, and processes finish their shares of encoding at different times.
WAIT_TIMEOUT = timedelta(days=1)


def broadcast_from_main(compute: Callable[[], Result]) -> Result:
    """Run `compute` in the main process once all processes have called this, and return its result in every process.

    They wait for each other up to a day; in training itself, the timeout of the process group applies.
    """
    if not distributed.is_initialized():
        return compute()
    group = _cpu_group(distributed.group.WORLD)
    distributed.barrier(group)
    results = [compute() if distributed.get_rank() == 0 else None]
    distributed.broadcast_object_list(results, group=group)
    (result,) = results
    return result  # type: ignore[return-value]  # of the main process


@cache
def _cpu_group(_world: distributed.ProcessGroup | None) -> distributed.ProcessGroup:
    """Create a group of all processes that waits on the CPU, whatever device they train on."""
    return distributed.new_group(timeout=WAIT_TIMEOUT, backend="gloo")  # type: ignore[return-value]  # every process is a member


def rank_and_local_size() -> tuple[int, int]:
    """The rank of this process, and the number of processes on its machine, which is taken to be the same on all machines.

    Processes with a rank from that number on run on other machines, which may not see what the main process maps into memory.
    """
    if not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), int(os.environ.get("LOCAL_WORLD_SIZE", distributed.get_world_size()))
