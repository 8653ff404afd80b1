"""Recognise errors that mean a device has too little memory."""

import torch

# What cuDNN, cuBLAS and the driver say, PyTorch's allocator where a compiler has wrapped its exception, and that of the CPU.
_MESSAGES = (
    "unable to find an engine",
    "ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "CUDA error: out of memory",
    "CUDA out of memory",
    "can't allocate memory",
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a call failed for lack of memory.

    PyTorch's allocator raises an exception of its own. The libraries below it only say so in words: cuDNN, for one, tries one
    algorithm after another, and reports that it found none if each of them ran out of memory.
    """
    return isinstance(error, torch.OutOfMemoryError) or any(message in str(error) for message in _MESSAGES)
