"""pytest plugin of a measuring process: adds the machine to pytest-benchmark's file, and writes why stages failed beside it."""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from sdbench.errors import describe_error
from sdbench.probes import meters
from sdbench.probes.request import Request

FAILURES = pytest.StashKey[dict[str, str]]()
FAILURES_SUFFIX = ".failures.json"
GPU_FAILED = "the GPU fails"  # how the reason of a failure begins that the rounds of all models would meet
DRIVER_VARIABLE = "SDBENCH_PROBE_DRIVER"  # id of the process that asked for the round
_PR_SET_PDEATHSIG = 1


def pytest_configure(config: pytest.Config) -> None:
    """Start with no failures, and end with the process that asked for the round: killed, it could not end this one.

    Beside the round that the same command then starts again, this one would fill the card and slow the other down.
    """
    config.stash[FAILURES] = {}
    if sys.platform == "linux" and (driver := os.environ.get(DRIVER_VARIABLE)):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(driver):  # it ended before
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Note the first failure of a stage in one line; what cannot be compiled ends the round, since each stage would take minutes to try."""
    if call.excinfo and not call.excinfo.errisinstance(pytest.skip.Exception):
        error = call.excinfo.value
        kind = "" if call.excinfo.errisinstance(pytest.fail.Exception) else f"{type(error).__name__}: "
        message = " ".join(str(error).split())
        if kind and call.when == "setup" and (failure := _gpu_failure()):
            kind, message = f"{GPU_FAILED}: ", failure
        stage = item.callspec.params["stage"] if hasattr(item, "callspec") else item.name
        item.config.stash[FAILURES].setdefault(stage, f"{kind}{message}"[:500])
        if message.startswith(meters.NOT_COMPILED):
            item.session.shouldfail = meters.NOT_COMPILED
    return (yield)


def _gpu_failure() -> str:
    """The error of a GPU that fails although this process has computed nothing on it yet; "" where it works, or none is asked for."""
    request = Request.from_environment()
    if request and request.device.startswith("cuda"):
        import torch

        try:
            torch.cuda.synchronize(request.device)
        except RuntimeError as error:
            return describe_error(error)
    return ""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the failures beside the benchmark's own file."""
    if target := session.config.getoption("benchmark_json"):
        Path(str(target) + FAILURES_SUFFIX).write_text(json.dumps(session.config.stash[FAILURES]), encoding="utf-8")


def pytest_benchmark_generate_machine_info(config: pytest.Config) -> dict[str, Any]:
    """The record's own description of the machine; pytest-benchmark's takes a second to make."""
    del config
    request = Request.from_environment()
    return request.machine.model_dump() if request else {}


def pytest_benchmark_generate_commit_info(config: pytest.Config) -> dict[str, Any]:
    """Nothing: the record's environment has the commit."""
    del config
    return {}
