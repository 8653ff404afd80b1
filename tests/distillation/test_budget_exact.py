"""Budgets over the range of losses that a real teacher has, to the parameter; times by a clock that counts."""

from itertools import count

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sensitivity import batch
from tiny import tiny_unet
from torch import nn

from distillation import budget
from distillation.budget import least_loss, parameters, removed, times
from distillation.prune import student_config
from distillation.recipe import read
from distillation.sensitivity import F64, WHOLE
from sdbench.models.architectures import depths, unet_config

SDXL = parameters(unet_config("sdxl"))


def wide_losses(seed: int) -> dict[str, F64]:
    """Of SDXL's parts, over eight orders of magnitude."""
    chance = np.random.default_rng(seed)
    return {path: 10 ** chance.uniform(-9, -1, len(row)) for path, row in SDXL.parts.items()}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_plans_of_sdxl_have_a_config_and_a_larger_budget_never_costs_more(seed: int, one: float, other: float) -> None:
    losses = wide_losses(seed)
    limits = sorted(round(SDXL.least + share * (SDXL.total - SDXL.least)) for share in (one, other))
    plans = [least_loss(losses, SDXL, limit) for limit in limits]
    assert removed(losses, plans[1]) <= removed(losses, plans[0]) * (1 + 1e-9)
    for plan, limit in zip(plans, limits, strict=True):
        assert SDXL.of(plan) <= limit
        assert depths(student_config(unet_config("sdxl"), plan)) == plan.depths


def test_one_parameter_too_many_is_too_many() -> None:
    losses = wide_losses(0)
    left = SDXL.of(least_loss(losses, SDXL, SDXL.total // 2))
    assert SDXL.of(least_loss(losses, SDXL, left)) == left
    assert SDXL.of(least_loss(losses, SDXL, left - 1)) < left


@pytest.mark.parametrize(("name", "expected"), [("ssd-1b", 1_331_334_404), ("vega", 745_225_604)])
def test_parameters_are_those_of_the_released_students(name: str, expected: int) -> None:
    assert SDXL.total == 2_567_463_684
    assert SDXL.of(read(name).plans[-1]) == expected


class Card:
    """A stand-in: events that read its clock and can be asked once it was waited for; what was put into its stream, in order."""

    def __init__(self) -> None:
        self.stream: list[str] = []
        self.ticks = count()

    def patch(self, monkeypatch: pytest.MonkeyPatch, unet: nn.Module) -> None:
        card = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self) -> None:
                card.stream.append("event")
                self.s = next(card.ticks)

            def elapsed_time(self, end: "Event") -> float:
                assert card.stream[-1] == "waited for"
                return 1000.0 * (end.s - self.s)

        monkeypatch.setattr(type(unet), "device", torch.device("cuda"))
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "_sleep", lambda _: self.stream.append("sleep"))
        monkeypatch.setattr(budget, "synchronised", lambda: self.stream.append("waited for"))


@pytest.mark.parametrize("on_card", [False, True])
def test_times_are_taken_around_each_part(on_card: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    unet, card = tiny_unet("sdxl").eval(), Card()
    if on_card:
        card.patch(monkeypatch, unet)
    else:
        monkeypatch.setattr(budget, "perf_counter", lambda: float(next(card.ticks)))
    cost = times(unet, batch(0), DDIMScheduler())
    assert cost.total == 1e9 * (2 * (70 + 2) + 1)  # two readings a block, and for the middle's attention and its second resnet
    assert cost.parts[WHOLE].tolist() == [1e9 * (2 * 10 + 1 + 1)]
    assert all(row.tolist() == [1e9] * len(row) for path, row in cost.parts.items() if path != WHOLE)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in unet.modules())
    if on_card:  # the host ahead in each call, and waited for once
        calls = "".join("s" if what == "sleep" else "." for what in card.stream[:-1]).split("s")
        assert [len(events) for events in calls] == [0] + [2 * (70 + 2 + 1)] * (budget.WARMUP + budget.CALLS)
        assert card.stream.count("waited for") == 1
