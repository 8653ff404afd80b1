"""The anonymous memory of a `distillation` command, watched from outside its process: no lock in there can hide a peak."""

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


def added_anonymous(first: list[str], then: list[str]) -> int:
    """Bytes that command `then` adds at its peak to what command `first`, which warms the process up, has left."""
    words = [sys.executable, "-c", CHILD, json.dumps([first, then])]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as child:
        assert child.stdin
        assert child.stdout
        _until_ready(child.pid, child.stdout)
        before = anonymous(child.pid)
        child.stdin.write(b"\n")
        peak = _until_ready(child.pid, child.stdout)
        child.stdin.write(b"\n")
    assert child.returncode == 0
    return peak - before


def _until_ready(pid: int, output: IO[bytes]) -> int:
    peak = 0
    while True:
        peak = max(peak, anonymous(pid))
        if select.select([output], [], [], 0.002)[0]:
            line = output.readline()
            assert line, "the command failed"
            if line == b"READY\n":
                return peak


def anonymous(pid: int) -> int:
    """Bytes of a process's own memory now; one that is ending has none."""
    found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0
