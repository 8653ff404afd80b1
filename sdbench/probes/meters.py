"""Clock and memory of the measuring process."""

import os
import sys
import time
from pathlib import Path

import psutil

MIB = 2**20
HOST_PEAKS = ("peak_rss", "peak_data") if sys.platform == "linux" else ("peak_rss",)
OUT_OF_MEMORY, NOT_COMPILED = "out of memory", "not compiled"  # how reasons of failures begin that another try would not avoid
COMPILER_CACHE = "TORCHINDUCTOR_CACHE_DIR"  # the driver sets a folder for each model and setting, so that the first round compiles anew


def synchronised_clock(device: str | None = None) -> float:
    """Seconds on the monotonic clock, read after the GPU has finished all its work; plain `perf_counter` without a GPU.

    Args:
        device: the CUDA device to wait for; by default the current one.
    """
    import torch

    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
    return time.perf_counter()


def has_compiled_code() -> bool:
    """Whether the compiler's cache on disk holds anything."""
    folder = os.environ.get(COMPILER_CACHE)
    return bool(folder) and any(Path(str(folder)).glob("*"))


def reset_peak_memory(device: str) -> None:
    """Forget the peaks of loading and compiling."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()  # what the allocator still holds would count as reserved
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mib(device: str) -> dict[str, float]:
    """Peak memory of this process in MiB, by name of the value.

    `peak_rss` is the host's, since the process began. On CUDA there are two of PyTorch's allocator, since `reset_peak_memory`:
    `peak_allocated` in tensors, and `peak_reserved` with its cache; the CUDA context comes on top. Elsewhere, on Linux, there is
    `peak_data`, which is `peak_rss` without the pages of libraries.
    """
    peaks = {"peak_rss": peak_rss_mib()}
    if device.startswith("cuda"):
        import torch

        peaks["peak_allocated"] = torch.cuda.max_memory_allocated(device) / MIB
        peaks["peak_reserved"] = torch.cuda.max_memory_reserved(device) / MIB
    elif "peak_data" in HOST_PEAKS:
        peaks["peak_data"] = peaks["peak_rss"] - _library_pages_mib()
    return peaks


def _library_pages_mib() -> float:
    """Resident pages of shared libraries that this process has not written to, in MiB.

    A fault maps whatever the page cache holds near it, so their number is of the host's past, not of the model: for PyTorch and
    diffusers alone 331 MiB, or 461 MiB after a fresh install (results/findings.md, 2026-11-30).
    """
    maps = psutil.Process().memory_maps()  # files of weights, mapped as well, stay in
    return sum(area.rss - area.anonymous for area in maps if ".so" in Path(area.path).suffixes) / MIB


def peak_rss_mib() -> float:
    """Peak resident memory of this process in MiB.

    On Linux it is read from `VmHWM`: `ru_maxrss` starts from the peak of the parent process.
    """
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / MIB
    import resource  # Windows has none

    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.exists() else []
    if marks := [line for line in lines if line.startswith("VmHWM:")]:
        return int(marks[0].split()[1]) / 1024  # VmHWM: <n> kB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
