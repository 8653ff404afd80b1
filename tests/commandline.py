"""Commands as a user runs them: in this process or in one of their own."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdbench import cli

ROOT = Path(__file__).parents[1]
SLOW = {"torch", "diffusers", "transformers", "open_clip", "torchvision", "datasets"}


def run_in_process(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    return subprocess.run([sys.executable, "-c", path + code], cwd=folder, capture_output=True, encoding="utf-8", check=False)


def git(folder: Path, *words: str) -> str:
    """Run git in a folder, as someone whom neither this machine nor its user has configured; returns what it printed."""
    alone = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    words = ("-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org", *words)
    return subprocess.run(["git", *words], env=alone, capture_output=True, encoding="utf-8", check=True).stdout.strip()


def forbid(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a folder not be listed, as without permission; to root, who may run the tests, permissions mean nothing."""

    def refusing(call: Callable[..., Any]) -> Callable[..., Any]:
        def refuse(path: Any = ".", *arguments: Any) -> Any:
            if not isinstance(path, int) and Path(path) == folder:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *arguments)

        return refuse

    for name in ("listdir", "scandir"):  # the second for `Path.glob`
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))


def error_message(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command that must fail with exit code 2 and at most a screen of text on stderr; returns that text."""
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("sdbench: ")
    assert "Traceback" not in err
    assert len(err) < 24 * 80
    return err
