"""Repeated looks keep the error rate of a single one: published bounds, and random walks."""

import math
from statistics import NormalDist

import numpy as np
import pytest

from sdbench.stats.decisions import Bounds
from sdbench.stats.sequential import is_undecidable, nominal_levels, spent_error

EIGHTHS = tuple(look / 8 for look in range(1, 9))


def z_values(shares: tuple[float, ...], alpha: float) -> list[float]:
    return [-NormalDist().inv_cdf(level) for level in nominal_levels(shares, alpha)]


def test_levels_match_the_published_bounds() -> None:
    # O'Brien-Fleming spending function of Lan and DeMets, one-sided 0.025, five equal looks.
    assert z_values((0.2, 0.4, 0.6, 0.8, 1.0), 0.025) == pytest.approx([4.877, 3.357, 2.680, 2.290, 2.031], abs=5e-4)


def test_single_look_at_all_data_spends_all_of_alpha() -> None:
    assert nominal_levels((1.0,), 0.05)[0] == pytest.approx(0.05, abs=1e-9)
    assert spent_error(1.0, 0.05) == pytest.approx(0.05)


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 6])
def test_random_walk_without_drift_crosses_with_probability_alpha(alpha: float) -> None:
    walks = np.cumsum(np.random.default_rng(0).standard_normal((400_000, 8)), axis=1) / np.sqrt(np.arange(1, 9))
    crossed = (walks > z_values(EIGHTHS, alpha)).any(axis=1).mean()
    assert crossed == pytest.approx(alpha, abs=4 * np.sqrt(alpha / 400_000))


def test_early_levels_do_not_depend_on_later_looks() -> None:
    assert nominal_levels(EIGHTHS[:3], 0.05) == pytest.approx(nominal_levels(EIGHTHS, 0.05)[:3])


@pytest.mark.parametrize("alpha", [0.03, 0.01, 1e-4])
def test_first_look_spends_little_but_not_zero(alpha: float) -> None:
    sixteenths = tuple(look / 16 for look in range(1, 17))
    first, *_, last = nominal_levels(sixteenths, alpha)
    assert 0 < first < 1e-15
    assert first == pytest.approx(spent_error(1 / 16, alpha), rel=1e-6)
    assert 0.6 * alpha < last < alpha


@pytest.mark.parametrize("shares", [(), (0.0, 1.0), (0.5, 0.5), (0.6, 0.4), (0.5, 1.1)])
def test_shares_must_increase(shares: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must grow"):
        nominal_levels(shares, 0.05)


def bounds(difference: float, error: float = 0.1) -> Bounds:
    return Bounds(difference - error, difference + error, difference, error, 100)


def test_metric_on_its_margin_is_undecidable_late_but_not_early() -> None:
    on_the_margin = [(bounds(-1.0), 1.0), (bounds(0.0), 1.0)]
    assert not is_undecidable(on_the_margin, 0.125, 0.05)
    assert is_undecidable(on_the_margin, 0.75, 0.05)
    assert is_undecidable([(bounds(-1.0, 0.0), 1.0)], 0.125, 0.05)  # no spread will ever move it off


def test_metric_close_to_a_verdict_is_not_undecidable() -> None:
    assert not is_undecidable([(bounds(0.0), 1.0)], 0.75, 0.05)
    assert not is_undecidable([(bounds(-1.0), 1.0), (bounds(-2.0), 1.0)], 0.75, 0.05)
    assert not is_undecidable([(bounds(0.0, 0.0), 1.0)], 0.75, 0.05)


def test_metric_near_a_pass_is_undecidable_if_a_pass_is_impossible() -> None:
    assert is_undecidable([(bounds(0.0), 1.0)], 0.75, 0.05, passable=False)


@pytest.mark.parametrize("n_metrics", [1, 6])
@pytest.mark.parametrize("side", ["pass", "regressed"])
def test_a_pass_is_tested_at_alpha_and_a_regression_at_alpha_over_the_number_of_metrics(n_metrics: int, side: str) -> None:
    """All metrics must pass, but any of them may regress (Holm 1979, first step); `least` is in standard errors beyond the margin."""
    level = 0.05 if side == "pass" else 0.05 / n_metrics
    least = NormalDist().inv_cdf(1 - level) * math.sqrt(0.75) + NormalDist().inv_cdf(0.1) * math.sqrt(0.25)
    for beyond in (least - 0.01, least + 0.01):
        one = bounds(-1.0 + 0.1 * (beyond if side == "pass" else -beyond)), 1.0
        measured = [one, *[(bounds(0.0), 1.0)] * (n_metrics - 1)]
        assert is_undecidable(measured, 0.75, 0.05, passable=side == "pass") == (beyond < least)
