import subprocess
import sys

ASK = "from sdbench.probes.meters import peak_rss_mib as peak; "


def ask(code: str) -> float:
    return float(subprocess.run([sys.executable, "-c", ASK + code], capture_output=True, text=True, check=True).stdout)


def test_the_peak_is_of_this_process_and_stays_when_memory_is_given_back() -> None:
    ballast = b"\1" * 2**30  # a peak of the process that starts the others, which `ru_maxrss` would pass on
    own = ask("print(peak())")
    assert len(ballast) / 2**20 > own
    assert ask("x = b'1' * 2**29; del x; print(peak())") - own > 2**8
