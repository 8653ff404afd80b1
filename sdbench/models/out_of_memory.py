"""Recognise errors that mean a device has too little memory, and say what helps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from sdbench.errors import UserError

# What cuDNN, cuBLAS, the driver, compiled kernels and NCCL say, PyTorch's allocator where a compiler has wrapped its exception, and the
# CPU's.
_MESSAGES = (
    "unable to find an engine",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "CUDA error: out of memory",
    "CUDA out of memory",
    "CUDA driver error: out of memory",
    "Triton Error [CUDA]: out of memory",
    "Failed to CUDA calloc",
    "Failed to CUDA malloc",
    "'out of memory'",
    "can't allocate memory",
)


class TooLittleMemoryError(UserError):
    """A device has too little memory."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a call failed for lack of memory.

    PyTorch's allocator raises an exception of its own. The libraries below it only say so in words: cuDNN, for one, tries one
    algorithm after another, and reports that it found none if each of them ran out of memory.
    """
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in _MESSAGES)


@contextmanager
def explain_out_of_memory(device: str, what: str, ways: Sequence[str] = ()) -> Iterator[None]:
    """While open, turn an out-of-memory error into one that says what did not fit, and what helps.

    Args:
        what: was being done, beginning with "to".
        ways: to need less memory.

    Raises:
        TooLittleMemoryError: the device had too little memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        advice = ", or ".join([*ways, "use a device with more"])
        raise TooLittleMemoryError(f"too little memory on {device} {what} ({str(error).splitlines()[0]}); {advice}") from error
