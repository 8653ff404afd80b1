"""The anonymous memory of a `distillation` command, measured from outside its process, where no lock can hide a peak."""

import json
import re
import select
import subprocess
import sys
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
CHILD = """
import json, sys
from distillation.cli import main
for words in json.loads(sys.argv[1]):
    if main(words):
        sys.exit(1)
    print("READY", flush=True)
    sys.stdin.readline()
"""


def peak_increase_bytes(first: list[str], then: list[str]) -> int:
    """Peak memory of command `then`, in bytes above the memory after command `first`, which warms the process up."""
    words = [sys.executable, "-c", CHILD, json.dumps([first, then])]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as child:
        assert child.stdin
        assert child.stdout
        _until_ready(child.pid, child.stdout)
        before = anonymous_bytes(child.pid)
        child.stdin.write(b"\n")
        peak = _until_ready(child.pid, child.stdout)
        child.stdin.write(b"\n")
    assert child.returncode == 0
    return peak - before


def _until_ready(pid: int, output: IO[bytes]) -> int:
    peak = 0
    while True:
        peak = max(peak, anonymous_bytes(pid))
        if select.select([output], [], [], 0.002)[0]:
            line = output.readline()
            assert line, "the command failed"
            if line == b"READY\n":
                return peak


def anonymous_bytes(pid: int) -> int:
    """Anonymous memory of a process in bytes; 0 for one that is ending."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="utf-8"), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
