"""Clock and memory of the measuring process."""

import resource
import sys
import time
from pathlib import Path

import torch

MIB = 2**20


def synchronised() -> float:
    """Seconds on the monotonic clock once the GPU has done all it was given; plain `perf_counter` where there is none."""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory_mib(device: str) -> dict[str, float]:
    """Most memory that this process has held so far, in MiB, by name of the value.

    On CUDA by PyTorch's allocator: `peak_allocated` in tensors, `peak_reserved` with its cache; the CUDA context comes on top.
    """
    if device.startswith("cuda"):
        return {
            "peak_allocated": torch.cuda.max_memory_allocated(device) / MIB,
            "peak_reserved": torch.cuda.max_memory_reserved(device) / MIB,
        }
    return {"peak_rss": peak_rss_mib()}


def peak_rss_mib() -> float:
    """Peak resident memory of this process in MiB.

    On Linux from `VmHWM`, not `ru_maxrss`: the latter starts from the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    if marks := [line for line in lines if line.startswith("VmHWM:")]:
        return int(marks[0].split()[1]) / 1024  # VmHWM: <n> kB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
