"""The overhead of the harness over a bare `pipeline(...)` call; `nox -s speed` prints it as `ratio_to_hand` (1.02 = 2 % slower).

Calls timed by the harness and calls timed by hand take turns in the same process, so that changes of the machine affect both;
the ratio is that of the medians. On a card the calls by hand are timed by a pair of CUDA events, and memory is compared too.
The model is the embedded teacher, on the GPU where there is one.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch

from sdbench import suites
from sdbench.generate import call_arguments
from sdbench.machine import this_machine
from sdbench.models.resolve import resolve
from sdbench.probes import meters, setup
from sdbench.probes.request import Request
from sdbench.scenes.grammar import EXAMPLE
from sdbench.settings import Setting

ROUNDS = 30
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def hand_s(call: Callable[[], object]) -> float:
    if DEVICE == "cpu":
        began = time.perf_counter()
        call()
        return time.perf_counter() - began
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1000


@pytest.mark.benchmark(group=f"an image on {DEVICE}", timer=meters.synchronised_clock)
def test_harness(benchmark: Any) -> None:
    sampling = suites.load("quality").sampling
    setting = Setting()
    request = Request(
        spec=resolve("scenes-teacher"),
        sampling=sampling,
        setting=setting,
        calls=ROUNDS,
        warmup=1,
        device=DEVICE,
        machine=this_machine(DEVICE),
    )
    stages, _ = setup.load(request)
    arguments = call_arguments(sampling, [EXAMPLE])
    by_hand: list[float] = []

    def bare() -> None:
        by_hand.append(hand_s(lambda: stages.pipe(**arguments, generator=torch.Generator().manual_seed(0))))

    meters.reset_peak_memory(DEVICE)
    benchmark.pedantic(stages.prepare("pipeline"), setup=bare, rounds=ROUNDS, warmup_rounds=2)
    benchmark.extra_info["ratio_to_hand"] = benchmark.stats.stats.median / median(by_hand[2:])
    benchmark.extra_info["by_hand_s"] = by_hand[2:]
    if DEVICE == "cuda":
        harness_mib = meters.peak_memory_mib(DEVICE)["peak_allocated"]
        torch.cuda.reset_peak_memory_stats()
        bare()
        benchmark.extra_info["memory_ratio_to_hand"] = harness_mib * 2**20 / torch.cuda.max_memory_allocated()
    print({name: ratio for name, ratio in benchmark.extra_info.items() if "ratio" in name})  # noqa: T201  # the result
