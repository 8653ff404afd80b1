"""Clock and memory of the measuring process."""

import os
import resource
import sys
import time
from pathlib import Path

MIB = 2**20
OUT_OF_MEMORY = "out of memory"  # how the reason of a failure begins that another try would not mend
COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"  # the driver names a folder for each model and setting: its first round compiles anew


def synchronised() -> float:
    """Seconds on the monotonic clock once the GPU has done all it was given; plain `perf_counter` where there is none."""
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
    return time.perf_counter()


def has_compiled() -> bool:
    """Whether anything is in the compiler's cache on disk."""
    folder = os.environ.get(COMPILER_CACHE)
    return bool(folder) and any(Path(str(folder)).glob("*"))


def start_peaks(device: str) -> None:
    """Forget the peaks of what came before, loading and compiling."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()  # what the allocator keeps for itself would count as reserved since
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: str) -> dict[str, float]:
    """Most memory that this process has held, in MiB, by name of the value.

    `peak_rss` of the host, since the process began. On CUDA, since `start_peaks`, by PyTorch's allocator: `peak_allocated`
    in tensors, `peak_reserved` with its cache; the CUDA context comes on top.
    """
    found = {"peak_rss": peak_rss_mib()}
    if device.startswith("cuda"):
        import torch

        found["peak_allocated"] = torch.cuda.max_memory_allocated(device) / MIB
        found["peak_reserved"] = torch.cuda.max_memory_reserved(device) / MIB
    return found


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
