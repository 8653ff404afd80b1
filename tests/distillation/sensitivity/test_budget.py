"""The cut within a budget is optimal, to the parameter, for losses as wide as a real teacher's; times come from a fake clock."""

import itertools

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_batch, tiny_unet
from torch import nn

from distillation.cut import MIDDLE_ATTENTION, Cut
from distillation.recipe import load_recipe
from distillation.sensitivity import budget
from distillation.sensitivity.budget import TIED_TO_MIDDLE, Cost, find_best_cut, measure_time_cost, parameter_cost, sum_removed
from distillation.sensitivity.removal import WHOLE_MIDDLE
from sdbench.arrays import F64
from sdbench.errors import UserError
from sdbench.models.architectures import unet_config

SDXL = parameter_cost(unet_config("sdxl"))
OTHER = "up_blocks.0.attentions.0"
SMALL = {TIED_TO_MIDDLE: 3, OTHER: 2, MIDDLE_ATTENTION: 3}


def every_cut() -> list[Cut]:
    """All cuts of the small network that a config can express."""

    def kept(path: str) -> list[tuple[int, ...]]:
        return [blocks for k in range(1, SMALL[path] + 1) for blocks in itertools.combinations(range(SMALL[path]), k)]

    cuts = []
    for twin, other in itertools.product(kept(TIED_TO_MIDDLE), kept(OTHER)):
        cuts.append(Cut({TIED_TO_MIDDLE: twin, OTHER: other}, 0))
        cuts += [
            Cut({TIED_TO_MIDDLE: twin, OTHER: other, MIDDLE_ATTENTION: middle}, 0)
            for middle in kept(MIDDLE_ATTENTION)
            if len(middle) == len(twin)
        ]
    return cuts


@pytest.mark.parametrize("seed", range(6))
def test_no_cut_within_the_budget_costs_less(seed: int) -> None:
    random = np.random.default_rng(seed)
    losses = {path: random.exponential(size=depth) for path, depth in SMALL.items()}
    losses[WHOLE_MIDDLE] = np.array([losses[MIDDLE_ATTENTION].sum() * random.uniform(0.2, 2)])
    parts = {path: random.integers(1, 9, depth) for path, depth in SMALL.items()}
    parts[WHOLE_MIDDLE] = np.array([parts[MIDDLE_ATTENTION].sum() + 3])
    cost = Cost(100, parts, "parameters")
    for limit in range(cost.minimum, cost.total + 1, 3):
        found = find_best_cut(losses, cost, limit)
        assert cost.remaining(found) <= limit
        best = min(sum_removed(losses, cut) for cut in every_cut() if cost.remaining(cut) <= limit)
        assert sum_removed(losses, found) == pytest.approx(best, rel=1e-5)


def random_sdxl_losses(seed: int) -> dict[str, F64]:
    """Losses of SDXL's parts, over eight orders of magnitude."""
    chance = np.random.default_rng(seed)
    return {path: 10 ** chance.uniform(-9, -1, len(row)) for path, row in SDXL.parts.items()}


def test_less_than_the_smallest_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"no cut comes down to .* parameters .* the smallest student, with one block in each attention"):
        find_best_cut(random_sdxl_losses(0), SDXL, SDXL.minimum - 1)
    assert SDXL.remaining(find_best_cut(random_sdxl_losses(0), SDXL, SDXL.minimum)) == SDXL.minimum


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_budget_never_costs_more(seed: int, one: float, other: float) -> None:
    losses = random_sdxl_losses(seed)
    limits = sorted(round(SDXL.minimum + share * (SDXL.total - SDXL.minimum)) for share in (one, other))
    cuts = [find_best_cut(losses, SDXL, limit) for limit in limits]
    assert sum_removed(losses, cuts[1]) <= sum_removed(losses, cuts[0]) * (1 + 1e-9)
    assert all(SDXL.remaining(cut) <= limit for cut, limit in zip(cuts, limits, strict=True))


def test_the_budget_is_exact_to_one_parameter() -> None:
    losses = random_sdxl_losses(0)
    left = SDXL.remaining(find_best_cut(losses, SDXL, SDXL.total // 2))
    assert SDXL.remaining(find_best_cut(losses, SDXL, left)) == left
    assert SDXL.remaining(find_best_cut(losses, SDXL, left - 1)) < left


@pytest.mark.parametrize(("name", "expected"), [("ssd-1b", 1_331_334_404), ("vega", 745_225_604)])
def test_parameters_are_those_of_the_released_students(name: str, expected: int) -> None:
    assert SDXL.total == 2_567_463_684
    assert SDXL.remaining(load_recipe(name).cuts[-1]) == expected


class FakeGPU:
    """Stand-in for torch.cuda: events read its clock and can only be queried after synchronising; `stream` records the calls."""

    def __init__(self) -> None:
        self.stream: list[str] = []
        self.ticks = itertools.count()

    def patch(self, monkeypatch: pytest.MonkeyPatch, unet: nn.Module) -> None:
        gpu = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                gpu.stream.append("event")
                self.s = next(gpu.ticks)

            def elapsed_time(self, end: "Event") -> float:
                assert gpu.stream[-1] == "synchronised_clock"
                return 1000.0 * (end.s - self.s)

        monkeypatch.setattr(type(unet), "device", torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda _: self.stream.append("sleep"))
        monkeypatch.setattr(budget, "synchronised_clock", lambda: self.stream.append("synchronised_clock"))


@pytest.mark.parametrize("on_gpu", [False, True])
def test_times_are_taken_around_each_part(on_gpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, gpu = tiny_unet("sdxl").eval(), FakeGPU()
    if on_gpu:
        gpu.patch(monkeypatch, unet)
    else:
        monkeypatch.setattr(budget, "perf_counter", lambda: float(next(gpu.ticks)))
    cost = measure_time_cost(unet, tiny_batch(0), DDIMScheduler())
    assert cost.total == 1e9 * (2 * (70 + 2) + 1)  # two timestamps per block, and for the middle's attention and its second resnet
    assert cost.parts[WHOLE_MIDDLE].tolist() == [1e9 * (2 * 10 + 1 + 1)]
    assert all(row.tolist() == [1e9] * len(row) for path, row in cost.parts.items() if path != WHOLE_MIDDLE)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
    if on_gpu:  # the host runs ahead in each call, and one synchronisation
        calls = "".join("s" if what == "sleep" else "." for what in gpu.stream[:-1]).split("s")
        assert [len(events) for events in calls] == [0] + [2 * (70 + 2 + 1)] * (budget.WARMUP_CALLS + budget.TIMED_CALLS)
        assert gpu.stream.count("synchronised_clock") == 1
