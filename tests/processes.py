"""Processes of tests, forked: torch, imported anew, would take longer than what they do."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.state import AcceleratorState

LIMIT_S = 300


def by_one(work: Callable[..., object], *arguments: Any) -> int | None:
    """Call a function in a process of its own => its exit code, negative where a signal ended it."""
    (code,) = _ended(work, [arguments])
    return code


def by_two(work: Callable[..., object], *arguments: Any) -> list[int | None]:
    """Call a function in two processes, as `torchrun` starts them on one machine => their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return _ended(_ranked, [(rank, port, work, arguments) for rank in range(2)])


def _ended(work: Callable[..., object], calls: Sequence[tuple[Any, ...]]) -> list[int | None]:
    # where there is a GPU, autograd keeps threads, which a fork does not have
    context = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "fork")
    processes = [context.Process(target=work, args=arguments) for arguments in calls]
    for process in processes:
        process.start()
    for process in processes:
        process.join(LIMIT_S)
    return [process.exitcode for process in processes]


def _ranked(rank: int, port: int, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    AcceleratorState._reset_state(reset_partial_state=True)  # of the process that this one is forked from
    work(*arguments)
