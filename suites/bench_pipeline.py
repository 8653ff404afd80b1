"""One round of latency and memory of a model in one setting; `sdbench.probes.process` starts this file with a request.

By hand: SDBENCH_PROBE_REQUEST=<a .request file of the run folder> pytest -p sdbench.probes.plugin suites/bench_pipeline.py
"""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from sdbench.models.out_of_memory import is_out_of_memory
from sdbench.probes import capacity, ceilings, meters, profiling, setup
from sdbench.probes.monitor import Monitor, used_mib
from sdbench.probes.request import CEILINGS, REQUEST_VARIABLE, Request
from sdbench.probes.stages import Call, Stages
from sdbench.records.names import STAGES


@dataclass
class Running:
    request: Request
    stages: Stages
    info: dict[str, Any]
    pipeline_info: dict[str, Any] = field(default_factory=dict)  # the extra information of its benchmark, once timed on a card


@pytest.fixture(scope="module")
def running() -> Running:
    request = Request.from_environment()
    if request is None:
        pytest.skip(f"no request: {REQUEST_VARIABLE} names no file; `sdbench run` starts this file with one")
    used_before_mib = used_mib(request.device)  # before this process has a CUDA context
    try:
        stages, load_s = setup.load(request)
    except RuntimeError as error:
        pytest.fail(f"{meters.OUT_OF_MEMORY} while the model was loaded: no batch fits. {out_of_memory_message(error)}")
    return Running(request, stages, {**setup.describe(stages.pipe), "load_s": load_s, "used_before_mib": used_before_mib})


@pytest.mark.benchmark(timer=meters.synchronised_clock)
@pytest.mark.parametrize("stage", STAGES)
def test_stage(stage: str, running: Running, benchmark: Any) -> None:
    request = running.request
    if request.profile:
        table = Path(os.environ[REQUEST_VARIABLE]).with_suffix(f".profile-{stage}.txt")
        # A single step: all steps run the same kernels, and 25 of them would give the profiler some 200,000 events to add up.
        profiling.write(running.stages.prepare("short" if stage == "pipeline" else stage), request.device, table)
        return
    benchmark.extra_info.update(running.info)
    try:
        call, warmup = running.stages.prepare(stage), request.warmup
        if stage == "pipeline":
            benchmark.extra_info.update(time_first_call(call, compiling=request.setting.compile is not None))
            # on a card one more, since the reset below empties the allocator's cache, and to fill it again takes time
            warmup = max(int(request.device.startswith("cuda")), warmup - 1)
        monitor = Monitor(request.device)
        meters.reset_peak_memory(request.device)
        benchmark.pedantic(call, rounds=request.calls, warmup_rounds=warmup)
    except RuntimeError as error:
        message = out_of_memory_message(error)
    else:
        watch = monitor.report()  # first: what holds back the card's clock is told only while it still does
        benchmark.extra_info.update({"memory_mib": meters.peak_memory_mib(request.device), "watch": watch})
        if stage == "pipeline" and request.device.startswith("cuda"):
            process_mib, growth_mib = monitor.process_mib(), monitor.growth_mib(running.info["used_before_mib"])
            held_mib = growth_mib if process_mib is None else process_mib
            benchmark.extra_info.update({"process_mib": process_mib, "context_mib": capacity.context_mib(request.device, held_mib)})
            running.pipeline_info = benchmark.extra_info
        if stage == "unet_step" and request.device.startswith("cuda"):
            benchmark.extra_info["returns_s"] = median(seconds_until_return(call) for _ in range(request.calls))
        return
    # Not in the except clause: there the error would keep alive what was being computed.
    torch.cuda.empty_cache()
    running.stages.restore()
    batch = capacity.fitting_batch(running.stages)
    fits = f"batch {batch} fits" if batch else "no batch fits"
    pytest.fail(f"{meters.OUT_OF_MEMORY} at batch {request.setting.batch}; {fits}. {message}")


def out_of_memory_message(error: RuntimeError) -> str:
    """The message of an out-of-memory error, without the allocator's advice; any other error is raised again, or fails as not compiled."""
    if is_out_of_memory(error):
        return str(error).partition(". Of the allocated memory")[0]
    from torch._dynamo.exc import TorchDynamoException  # takes a second

    if isinstance(error, TorchDynamoException):  # such as that there is no C compiler
        pytest.fail(f"{meters.NOT_COMPILED}: {type(error).__name__}: {error}")
    raise error


def time_first_call(call: Call, *, compiling: bool) -> dict[str, Any]:
    """Seconds of the first call, and whether it `compiled_anew`: nothing was in the compiler's cache."""
    compiled_anew = compiling and not meters.has_compiled_code()
    start = time.perf_counter()
    call()
    return {"first_call_s": meters.synchronised_clock() - start, "compiled_anew": compiled_anew}


def seconds_until_return(call: Call) -> float:
    """Seconds until a call returns, while the card may still be at work: the host's share of the time."""
    start = meters.synchronised_clock()
    call()
    return time.perf_counter() - start


@pytest.mark.benchmark(timer=meters.synchronised_clock)
@pytest.mark.parametrize("stage", CEILINGS)
def test_ceiling(stage: str, running: Running, benchmark: Any) -> None:
    request = running.request
    if request.profile:
        pytest.skip("ceilings are not profiled")
    call = ceilings.prepare(stage, request.device, request.dtype)
    benchmark.extra_info["amount"] = {stage: ceilings.work_per_call(stage, request.device, request.dtype)}
    benchmark.pedantic(call, rounds=5, warmup_rounds=2)


def test_smallest_card(running: Running) -> None:
    """Last, because cuDNN keeps slower algorithms for the rest of the process once memory was short."""
    info, device = running.pipeline_info, running.request.device
    if not info:
        pytest.skip("no card, or nothing was timed on it")
    try:
        info["smallest_card_gb"] = capacity.smallest_card(running.stages, device, info["context_mib"])
    except Exception as error:  # noqa: BLE001  # all calls have been timed, and this must not lose them
        info["smallest_card_failed"] = f"{type(error).__name__}: {error}"
