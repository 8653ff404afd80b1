"""What holds the time of a stage: PyTorch's profiler over one warm call, as a table beside the rounds."""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from sdbench.probes import meters
from sdbench.probes.request import VARIABLE

ROWS = 30


def write(call: Callable[[], object], stage: str, device: str) -> Path:
    """The operators and kernels that took longest, by their own time => `<request>.profile-<stage>.txt`."""
    on_cuda = device.startswith("cuda")
    for _ in range(2):  # cold, and compiled
        call()
    meters.synchronised()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as seen:
        call()
        meters.synchronised()
    sort_by = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    table = seen.key_averages().table(sort_by=sort_by, row_limit=ROWS, max_name_column_width=90)
    path = Path(os.environ[VARIABLE]).with_suffix(f".profile-{stage}.txt")
    path.write_text(f"{stage}, torch {torch.__version__}\n{table}\n")
    return path
