import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from sdbench.probes import meters

IMPORT_PEAK = "from sdbench.probes.meters import peak_rss_mib as peak; "


def run_code(code: str) -> float:
    return float(subprocess.run([sys.executable, "-c", IMPORT_PEAK + code], capture_output=True, encoding="utf-8", check=True).stdout)


def test_peak_memory_is_per_process_and_remains_after_freeing() -> None:
    ballast = b"\1" * 2**30  # raises this process's peak, which `ru_maxrss` would pass on to its children
    own = run_code("print(peak())")
    assert len(ballast) / 2**20 > own
    assert run_code("x = b'1' * 2**29; del x; print(peak())") - own > 2**8


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
    assert meters.peak_memory_mib("cpu") == {"peak_rss": mib}


def test_peak_memory_on_windows_needs_no_resource_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _: SimpleNamespace(peak_wset=3 * 2**20))
    assert meters.peak_rss_mib() == 3
