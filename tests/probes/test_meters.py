import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from sdbench.probes import meters

IMPORT_PEAK = "from sdbench.probes.meters import peak_rss_mib as peak; "


def run_code(code: str) -> float:
    return float(subprocess.run([sys.executable, "-c", IMPORT_PEAK + code], capture_output=True, encoding="utf-8", check=True).stdout)


def test_peak_memory_is_per_process_and_remains_after_freeing() -> None:
    ballast = b"\1" * 2**28  # raises this process's peak, which `ru_maxrss` would pass on to its children
    own = run_code("print(peak())")
    assert len(ballast) / 2**20 > own
    assert run_code("x = b'1' * 2**27; del x; print(peak())") - own > 2**6


@pytest.mark.parametrize(
    ("status", "platform", "mib"),
    [("Name:\tpython\nVmHWM:\t    2048 kB\n", "linux", 2), ("Name:\tpython\n", "linux", 3 * 1024), (None, "darwin", 3)],
)
def test_peak_memory_is_read_in_the_unit_of_its_source(
    status: str | None, platform: str, mib: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "status"
    if status is not None:
        file.write_text(status, encoding="utf-8")
    monkeypatch.setattr(meters, "Path", lambda _: file)
    monkeypatch.setattr(resource, "getrusage", lambda _: SimpleNamespace(ru_maxrss=3 * 2**20))  # KiB on Linux, bytes on a Mac
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(meters, "HOST_PEAKS", ("peak_rss",))
    assert meters.peak_memory_mib("cpu") == {"peak_rss": mib}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_of_data_counts_what_a_library_holds_of_its_own_but_not_its_pages(tmp_path: Path) -> None:
    """A mapped file of 256 MiB: as a library it does not count, except the pages that were written to; as weights it does."""
    code = """
import mmap, sys
from sdbench.probes.meters import peak_memory_mib
before = peak_memory_mib("cpu")["peak_data"]
with open(sys.argv[1], "r+b") as file:
    area = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
pages = sum(area[::4096])
for start in range(0, 64 * 2**20, 4096):
    area[start] = 1
print(peak_memory_mib("cpu")["peak_data"] - before)
"""
    grown = {}
    for name in ("libkernels.so.12", "unet.safetensors"):
        (tmp_path / name).write_bytes(bytes(2**28))
        command = [sys.executable, "-c", code, str(tmp_path / name)]
        grown[name] = float(subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout)
    assert grown == {"libkernels.so.12": pytest.approx(64, abs=8), "unet.safetensors": pytest.approx(256, abs=8)}


def test_peak_memory_on_windows_needs_no_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(peak_wset=3 * 2**20))
    assert meters.peak_rss_mib() == 3


def test_peaks_of_a_card_are_its_allocators_since_they_were_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []
    for name in ("empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *device, name=name: calls.append((name, *device)))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {"cuda:1": 3 * 2**20}.__getitem__)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", {"cuda:1": 5 * 2**20}.__getitem__)
    meters.reset_peak_memory("cuda:1")
    assert calls == [("empty_cache",), ("reset_peak_memory_stats", "cuda:1")], "in this order: what is cached counts as reserved"
    peaks = meters.peak_memory_mib("cuda:1")
    assert {name: peaks[name] for name in peaks if name not in meters.HOST_PEAKS} == {"peak_allocated": 3, "peak_reserved": 5}
