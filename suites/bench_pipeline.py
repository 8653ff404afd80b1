"""Latency and memory of one model: one round of `sdbench.probes.driver`, which starts this file with a request.

By hand: SDBENCH_PROBE_REQUEST=<request.json, as left in the run folder> pytest -p sdbench.probes.plugin suites/bench_pipeline.py
"""

import time
from dataclasses import dataclass
from typing import Any

import pytest

from sdbench.probes import flops, meters, stages
from sdbench.probes.request import STAGES, VARIABLE, Request


@dataclass
class Running:
    request: Request
    stages: stages.Stages
    info: dict[str, Any]


@pytest.fixture(scope="module")
def running() -> Running:
    request = Request.from_environment()
    if request is None:
        pytest.skip(f"no request: {VARIABLE} names no file; `sdbench run` starts this file with one")
    loaded, load_s = stages.load(request)
    unet_input = flops.unet_input(loaded.pipe, request.sampling.size_px)
    return Running(request, loaded, {"parameters": stages.parameters(loaded.pipe), "unet_input": unet_input, "load_s": load_s})


@pytest.mark.benchmark(timer=meters.synchronised)
@pytest.mark.parametrize("stage", STAGES)
def test_stage(stage: str, running: Running, benchmark: Any) -> None:
    call, warmup = running.stages.prepare(stage), running.request.warmup
    benchmark.extra_info.update(running.info)
    if stage == "pipeline":
        start = time.perf_counter()
        call()
        benchmark.extra_info["first_call_s"] = meters.synchronised() - start
        warmup = max(0, warmup - 1)
    benchmark.pedantic(call, rounds=running.request.calls, warmup_rounds=warmup)
    benchmark.extra_info["memory_mib"] = meters.peak_memory_mib(running.request.device)
