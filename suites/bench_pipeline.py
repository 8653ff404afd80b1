"""Latency and memory of one model in one setting: one round of `sdbench.probes.driver`, which starts this file with a request.

By hand: SDBENCH_PROBE_REQUEST=<request.json, as left in the run folder> pytest -p sdbench.probes.plugin suites/bench_pipeline.py
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
from sdbench.probes.monitor import Watch, used_mib
from sdbench.probes.request import CEILINGS, STAGES, VARIABLE, Request
from sdbench.probes.stages import Call, Stages


@dataclass
class Running:
    request: Request
    stages: Stages
    info: dict[str, Any]
    of_pipeline: dict[str, Any] = field(default_factory=dict)  # what is noted of it, as soon as it was timed on a card


@pytest.fixture(scope="module")
def running() -> Running:
    request = Request.from_environment()
    if request is None:
        pytest.skip(f"no request: {VARIABLE} names no file; `sdbench run` starts this file with one")
    used_before_mib = used_mib(request.device)  # before this process has a context there
    try:
        stages, load_s = setup.load(request)
    except RuntimeError as error:
        pytest.fail(f"{meters.OUT_OF_MEMORY} while the model was loaded: no batch fits. {out_of_memory(error)}")
    return Running(request, stages, {**setup.described(stages.pipe), "load_s": load_s, "used_before_mib": used_before_mib})


@pytest.mark.benchmark(timer=meters.synchronised)
@pytest.mark.parametrize("stage", STAGES)
def test_stage(stage: str, running: Running, benchmark: Any) -> None:
    request = running.request
    if request.profile:
        table = Path(os.environ[VARIABLE]).with_suffix(f".profile-{stage}.txt")
        # Every step runs the kernels of one, and of 25 the profiler would have some 200,000 events to add up.
        profiling.write(running.stages.prepare("short" if stage == "pipeline" else stage), request.device, table)
        return
    benchmark.extra_info.update(running.info)
    try:
        call, warmup = running.stages.prepare(stage), request.warmup
        if stage == "pipeline":
            benchmark.extra_info.update(cold(call, compiling=request.setting.compile is not None))
            warmup = max(0, warmup - 1)
        watch = Watch(request.device)
        meters.start_peaks(request.device)
        benchmark.pedantic(call, rounds=request.calls, warmup_rounds=warmup)
    except RuntimeError as error:
        said = out_of_memory(error)
    else:
        benchmark.extra_info.update({"memory_mib": meters.peak_memory_mib(request.device), "watch": watch.noted()})
        if stage == "pipeline" and request.device.startswith("cuda"):
            process, grown = watch.process_mib(), watch.grown_mib(running.info["used_before_mib"])
            held = grown if process is None else process
            benchmark.extra_info.update({"process_mib": process, "context_mib": capacity.context_mib(request.device, held)})
            running.of_pipeline = benchmark.extra_info
        if stage == "unet_step" and request.device.startswith("cuda"):
            benchmark.extra_info["returns_s"] = median(returns_s(call) for _ in range(request.calls))
        return
    # Here, not where it was caught: the error holds on to what was being computed.
    torch.cuda.empty_cache()
    running.stages.restore()
    fits = capacity.largest_batch(running.stages)
    pytest.fail(f"{meters.OUT_OF_MEMORY} at batch {request.setting.batch}; the largest batch that fits is {fits}. {said}")


def out_of_memory(error: RuntimeError) -> str:
    """What it says of that, without the allocator's advice; any other error goes on."""
    if not is_out_of_memory(error):
        raise error
    return str(error).partition(". Of the allocated memory")[0]


def cold(call: Call, *, compiling: bool) -> dict[str, Any]:
    """The first call; `compiled_anew` where the compiler found nothing on disk."""
    anew = compiling and not meters.has_compiled()
    start = time.perf_counter()
    call()
    return {"first_call_s": meters.synchronised() - start, "compiled_anew": anew}


def returns_s(call: Call) -> float:
    """Seconds until a call returns: the host's share, for the card may still be at work."""
    start = meters.synchronised()
    call()
    return time.perf_counter() - start


@pytest.mark.benchmark(timer=meters.synchronised)
@pytest.mark.parametrize("stage", CEILINGS)
def test_ceiling(stage: str, running: Running, benchmark: Any) -> None:
    request = running.request
    if request.profile:
        pytest.skip("only what is profiled")
    call = ceilings.prepare(stage, request.device, request.dtype)
    benchmark.extra_info["amount"] = {stage: ceilings.amount(stage, request.device)}
    benchmark.pedantic(call, rounds=5, warmup_rounds=2)


def test_smallest_card(running: Running) -> None:
    """Last: where memory was short once, cuDNN keeps slower algorithms for as long as the process lives."""
    noted, device = running.of_pipeline, running.request.device
    if not noted:
        pytest.skip("no card, or nothing was timed on it")
    try:
        noted["smallest_card_gb"] = capacity.smallest_card(running.stages, device, noted["context_mib"])
    except Exception as error:  # noqa: BLE001  # all calls are timed: what is tried after them must not lose them
        noted["smallest_card_failed"] = f"{type(error).__name__}: {error}"
