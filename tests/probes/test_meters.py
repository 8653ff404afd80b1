import subprocess
import sys

IMPORT_PEAK = "from sdbench.probes.meters import peak_rss_mib as peak; "


def run_code(code: str) -> float:
    return float(subprocess.run([sys.executable, "-c", IMPORT_PEAK + code], capture_output=True, text=True, check=True).stdout)


def test_peak_memory_is_per_process_and_remains_after_freeing() -> None:
    ballast = b"\1" * 2**30  # raises this process's peak, which `ru_maxrss` would pass on to its children
    own = run_code("print(peak())")
    assert len(ballast) / 2**20 > own
    assert run_code("x = b'1' * 2**29; del x; print(peak())") - own > 2**8
