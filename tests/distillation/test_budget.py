"""The cut within a budget is the best there is, can be said in a config, and counts what the pruned network has."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distillation.budget import TWIN, Cost, least_loss, parameters, removed
from distillation.derive import in_stages, recipe_of, write
from distillation.plan import MIDDLE, Plan
from distillation.prune import on_meta, prune, student_config
from distillation.recipe import read
from distillation.sensitivity import F64, WHOLE
from sdbench.errors import UserError
from sdbench.models.architectures import depths, unet_config

CONFIG = unet_config("sdxl", "scenes")
COUNTS = parameters(CONFIG)
OTHER = "up_blocks.0.attentions.0"
SMALL = {TWIN: 3, OTHER: 2, MIDDLE: 3}


def some_losses(seed: int) -> dict[str, F64]:
    random = np.random.default_rng(seed)
    losses = {path: random.exponential(size=depth) for path, depth in depths(CONFIG).items()}
    return losses | {WHOLE: random.exponential(size=1) * 5}


def every_plan() -> list[Plan]:
    """All plans of the small network that a config can say."""

    def kept(path: str) -> list[tuple[int, ...]]:
        return [blocks for k in range(1, SMALL[path] + 1) for blocks in itertools.combinations(range(SMALL[path]), k)]

    plans = []
    for twin, other in itertools.product(kept(TWIN), kept(OTHER)):
        plans.append(Plan({TWIN: twin, OTHER: other}, 0))
        plans += [Plan({TWIN: twin, OTHER: other, MIDDLE: middle}, 0) for middle in kept(MIDDLE) if len(middle) == len(twin)]
    return plans


@pytest.mark.parametrize("seed", range(6))
def test_no_plan_within_the_budget_costs_less(seed: int) -> None:
    random = np.random.default_rng(seed)
    losses = {path: random.exponential(size=depth) for path, depth in SMALL.items()}
    losses[WHOLE] = np.array([losses[MIDDLE].sum() * random.uniform(0.2, 2)])
    parts = {path: random.integers(1, 9, depth) for path, depth in SMALL.items()}
    parts[WHOLE] = np.array([parts[MIDDLE].sum() + 3])
    cost = Cost(100, parts, "parameters")
    for limit in range(cost.least, cost.total + 1, 3):
        found = least_loss(losses, cost, limit)
        assert cost.of(found) <= limit
        best = min(removed(losses, plan) for plan in every_plan() if cost.of(plan) <= limit)
        assert removed(losses, found) == pytest.approx(best, rel=1e-5)


def test_less_than_the_smallest_network_is_refused() -> None:
    with pytest.raises(UserError, match=r"no plan comes down to .* parameters .* the smallest, with one block in each attention"):
        least_loss(some_losses(0), COUNTS, COUNTS.least - 1)
    assert COUNTS.of(least_loss(some_losses(0), COUNTS, COUNTS.least)) == COUNTS.least


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.3, 0.75), st.integers(1, 3))  # at 0.84 the middle and one more part may do, too few for 3 stages
def test_plans_can_be_built_and_have_the_parameters_that_are_said(seed: int, share: float, stages: int) -> None:
    losses, limit = some_losses(seed), int(share * COUNTS.total)
    plan = least_loss(losses, COUNTS, limit)
    assert removed(losses, least_loss(losses, COUNTS, (limit + COUNTS.total) // 2)) <= removed(losses, plan) + 1e-9
    plans = in_stages(losses, COUNTS, plan, stages)
    assert plans[-1].blocks == plan.blocks
    for stage in plans:
        student = prune(on_meta(CONFIG), stage)
        assert depths(student_config(CONFIG, stage)) == stage.depths
        assert sum(parameter.numel() for parameter in student.parameters()) == COUNTS.of(stage)


def test_a_derived_recipe_is_one_that_can_be_read(tmp_path: Path) -> None:
    losses = some_losses(3)
    plans = in_stages(losses, COUNTS, least_loss(losses, COUNTS, COUNTS.total // 3), 2)
    write(recipe_of(plans, "sdxl", "mine", read("vega")), tmp_path / "mine.toml", "a note")
    again = read(tmp_path / "mine.toml")
    assert again.student is None
    assert [plan.blocks for plan in again.plans] == [plan.blocks for plan in plans]
    assert (again.taps, again.loss, again.sdxl) == (read("vega").taps, read("vega").loss, read("vega").sdxl)
