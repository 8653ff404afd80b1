"""Processes and their locks for tests; forked, as importing torch again would take longer than the test."""

import os
import socket
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from filelock import FileLock, Timeout

LIMIT_S = 300

# At its first backward pass autograd starts a thread for each GPU, also for the fake one of `distillation.estimate`, and cannot be forked
# any more. This pass comes before any test.
torch.autograd.backward(torch.zeros((), requires_grad=True))


def is_locked(path: Path) -> bool:
    """Whether anyone holds this lock file, this process included."""
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def by_one(work: Callable[..., object], *arguments: Any) -> int | None:
    """Call a function in its own process; returns its exit code, negative if a signal ended it."""
    (code,) = _exit_codes(work, [arguments])
    return code


def by_two(work: Callable[..., object], *arguments: Any) -> list[int | None]:
    """Call a function in two processes, as `torchrun` would start them on one machine; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return _exit_codes(_run_rank, [(rank, port, work, arguments) for rank in range(2)])


def _exit_codes(work: Callable[..., object], calls: Sequence[tuple[Any, ...]]) -> list[int | None]:
    # with a GPU, autograd has threads, which a fork does not inherit
    context = get_context("spawn") if torch.cuda.is_available() else get_context("fork")
    processes = [context.Process(target=work, args=arguments) for arguments in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT_S)
    return [process.exitcode for process in processes]


def _run_rank(rank: int, port: int, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    AcceleratorState._reset_state(reset_partial_state=True)  # inherited from the parent process
    work(*arguments)
