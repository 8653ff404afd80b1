"""A table of where a warm call spends its time, by PyTorch's profiler."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from sdbench.probes import meters

ROWS = 30


def write(call: Callable[[], object], device: str, path: Path) -> None:
    """Write a table of the operators and kernels that took longest, by their own time."""
    on_cuda = device.startswith("cuda")
    for _ in range(2):  # the first call is cold, the second may still compile
        call()
    meters.synchronised_clock()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as profiler:
        call()
        meters.synchronised_clock()
    sort_by = "self_device_time_total" if on_cuda else "self_cpu_time_total"
    table = profiler.key_averages().table(sort_by=sort_by, row_limit=ROWS, max_name_column_width=90)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{path.stem}, torch {torch.__version__}\n{table}\n", encoding="utf-8")
