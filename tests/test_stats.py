import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from sdbench import stats
from sdbench.stats import Bounds

F64 = npt.NDArray[np.float64]


# Mean


def test_mean_interval_equals_the_textbook_example() -> None:
    found = stats.mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])  # t(0.975, 4) = 2.776, sd = sqrt(2.5)
    half = 2.7764451 * math.sqrt(2.5 / 5)
    assert (found.value, found.n, found.enough) == (3, 5, True)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))


def test_mean_interval_covers_skewed_scores() -> None:
    draws = np.random.default_rng(0).beta(5, 1, size=(400, 64))
    covered = sum(interval.low <= 5 / 6 <= interval.high for interval in map(stats.mean_interval, draws))
    assert 0.92 <= covered / 400 <= 0.98


def test_one_value_has_no_interval() -> None:
    assert stats.mean_interval([7.0]) == stats.Estimate(7.0, 7.0, 7.0, 1, enough=False)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0]]])
def test_bad_columns_are_refused(values: list[float]) -> None:
    for function in (stats.mean_interval, stats.paired_mean_bounds):
        with pytest.raises(ValueError, match="finite numbers, found shape"):
            function(values)


# Shares and wins


@pytest.mark.parametrize("successes", [0, 1, 13, 39, 40])
def test_proportion_interval_equals_scipys_wilson(successes: int) -> None:
    theirs = scipy_stats.binomtest(successes, 40).proportion_ci(method="wilson")
    ours = stats.proportion_interval(successes, 40)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_covers_by_exact_sums() -> None:
    n, shares = 50, np.linspace(0.02, 0.98, 49)
    intervals = [stats.proportion_interval(successes, n) for successes in range(n + 1)]
    mass = scipy_stats.binom.pmf(np.arange(n + 1)[:, None], n, shares)
    inside = np.array([[interval.low <= share <= interval.high for share in shares] for interval in intervals])
    coverage = (mass * inside).sum(axis=0)
    assert coverage.min() > 0.9
    assert coverage.mean() == pytest.approx(0.95, abs=0.01)


@given(n=st.integers(1, 500), share=st.floats(0, 1))
@settings(deadline=None)
def test_proportion_interval_holds_the_share_and_stays_in_range(n: int, share: float) -> None:
    found = stats.proportion_interval(share * n, n)
    assert -1e-12 <= found.low <= found.value <= found.high <= 1 + 1e-12


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5), (math.nan, 5)])
def test_impossible_shares_are_refused(successes: float, n: int) -> None:
    with pytest.raises(ValueError, match="successes"):
        stats.proportion_interval(successes, n)


def test_wins_count_the_candidate_and_half_the_ties() -> None:
    found = stats.wins_interval([3.0, 2.0, 1.0, 5.0], [1.0, 2.0, 2.0, 4.0])
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert (found.estimate.value, found.estimate.n) == (2.5 / 4, 4)


def test_without_ties_a_win_rate_has_wilsons_interval() -> None:
    assert stats.wins_interval([3.0, 2.0, 1.0, 5.0], [1.0, 3.0, 2.0, 4.0]).estimate == stats.proportion_interval(2, 4)


def test_ties_narrow_the_interval_of_a_win_rate_but_never_close_it() -> None:
    def width(ties: int) -> float:
        found = stats.wins_interval([1.0] * 20 + [0.0] * (20 + ties), [0.0] * 20 + [1.0] * 20 + [0.0] * ties).estimate
        assert found.value == pytest.approx(0.5)
        return (found.high - found.low) * math.sqrt(found.n)

    assert width(0) > width(20) > width(200) > 0
    all_tied = stats.wins_interval(np.zeros(40), np.zeros(40)).estimate
    assert 0.4 < all_tied.low < 0.5 < all_tied.high < 0.6


def test_wins_of_unpaired_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="one length, found 2 and 1"):
        stats.wins_interval([1.0, 2.0], [1.0])


# Influence


def test_standard_error_interval() -> None:
    found = stats.standard_error_interval(5.0, [-1.0, 1.0, -1.0, 1.0])
    half = 3.1824463 * math.sqrt(4 / 3) / 2  # t(0.975, 3)
    assert (found.low, found.value, found.high) == pytest.approx((5 - half, 5, 5 + half))
    wider = stats.standard_error_interval(5.0, [-1.0, 1.0, -1.0, 1.0], systematic=0.25)
    assert (wider.low, wider.high) == pytest.approx((5 - half - 0.25, 5 + half + 0.25))


@pytest.mark.parametrize(("value", "influence"), [(math.nan, [0.0, 1.0]), (1.0, [0.0])])
def test_standard_error_of_nothing_is_refused(value: float, influence: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        stats.standard_error_interval(value, influence)


# Quantiles


def coverage_of_ranks(lower: int, upper: int, n: int, q: Fraction) -> Fraction:
    """P(l <= B < u), exactly."""
    return sum((math.comb(n, k) * q**k * (1 - q) ** (n - k) for k in range(lower, upper)), Fraction(0))


@pytest.mark.parametrize(("n", "q"), [(6, Fraction(1, 2)), (25, Fraction(1, 2)), (60, Fraction(9, 10)), (400, Fraction(99, 100))])
def test_quantile_covers_exactly_and_no_wider_than_needed(n: int, q: Fraction) -> None:
    found = stats.quantile(np.arange(1, n + 1)[::-1], float(q))  # a value is its own rank
    lower, upper = int(found.low), int(found.high)
    assert found.enough
    assert coverage_of_ranks(lower, upper, n, q) >= Fraction(95, 100)
    assert coverage_of_ranks(0, lower + 1, n, q) > Fraction(25, 1000)  # the next rank up would be too high
    assert coverage_of_ranks(upper - 1, n + 1, n, q) > Fraction(25, 1000)  # the next rank down too low


@pytest.mark.parametrize(("q", "smallest"), [(0.5, 6), (0.9, 36), (0.99, 368)])
def test_quantile_says_when_n_is_too_small(q: float, smallest: int) -> None:
    assert stats.quantile(np.arange(smallest), q).enough
    few = stats.quantile(np.arange(smallest - 1), q)
    assert (few.enough, few.low, few.high) == (False, 0, smallest - 2)


@given(samples=st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=80), q=st.sampled_from([0.5, 0.9, 0.99]))
@settings(deadline=None)
def test_quantile_lies_in_its_interval(samples: list[float], q: float) -> None:
    found = stats.quantile(samples, q)
    assert min(samples) <= found.low <= found.value <= found.high <= max(samples)


def test_quantile_outside_the_open_unit_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="between 0 and 1, found 99"):
        stats.quantile([1.0], 99)


# Paired bounds


def test_paired_bounds_are_the_ends_of_a_two_sided_90_percent_interval() -> None:
    difference = np.random.default_rng(0).normal(0.3, 1, 30)
    found = stats.paired_mean_bounds(difference)
    theirs = scipy_stats.ttest_1samp(difference, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert found.standard_error == pytest.approx(scipy_stats.sem(difference))
    assert found.n == 30


def test_paired_bounds_cover_on_either_side() -> None:
    found = [stats.paired_mean_bounds(draw) for draw in np.random.default_rng(1).normal(size=(1000, 12))]
    assert np.mean([bounds.low > 0 for bounds in found]) == pytest.approx(0.05, abs=0.02)
    assert np.mean([bounds.high < 0 for bounds in found]) == pytest.approx(0.05, abs=0.02)


def test_a_single_pair_knows_nothing_unless_nothing_changed() -> None:
    assert stats.paired_mean_bounds([0.5]) == Bounds(-math.inf, math.inf, 0.5, math.inf, 1)
    assert stats.paired_mean_bounds([0.0]) == Bounds(0, 0, 0, 0, 1)


def test_negated_bounds_are_those_of_the_negated_difference() -> None:
    difference = np.array([0.1, 0.5, -0.2, 0.9])
    assert -stats.paired_mean_bounds(difference) == stats.paired_mean_bounds(-difference)


# Latency ratios


def rounds(slowdown: float, seed: int, n_rounds: int = 6) -> F64:
    random = np.random.default_rng(seed)
    return slowdown * np.exp(random.normal(0, 0.02, (n_rounds, 1)) + random.normal(0, 0.01, (n_rounds, 8)))


def test_ratio_is_plus_for_a_slower_candidate() -> None:
    found = stats.ratio_bounds(rounds(1.5, seed=1), rounds(1.0, seed=2))
    assert found.low < math.log(1.5) < found.high
    assert found.low > 0.2
    assert found.difference == pytest.approx(math.log(1.5), abs=0.03)
    assert found.n == 6


def test_ratio_bounds_are_deterministic_unitless_and_turn_with_the_roles() -> None:
    slow, fast = rounds(1.5, seed=1), rounds(1.0, seed=2)
    found, again, turned = stats.ratio_bounds(slow, fast), stats.ratio_bounds(slow * 1000, fast * 1000), -stats.ratio_bounds(fast, slow)
    assert stats.ratio_bounds(slow, fast) == found
    assert (again.low, again.high) == pytest.approx((found.low, found.high))
    assert (turned.low, turned.high) == pytest.approx((found.low, found.high), abs=0.01)


def test_rounds_that_differ_widen_the_bounds_more_than_their_calls_say() -> None:
    by_round = rounds(1.0, seed=1)
    pooled = by_round.reshape(1, -1)
    wide, narrow = stats.ratio_bounds(by_round, by_round), stats.ratio_bounds(pooled, pooled)
    assert narrow.n == 48
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_ratio_bounds_cover_with_few_rounds() -> None:
    found = [stats.ratio_bounds(rounds(1.0, seed, 4), rounds(1.0, seed + 1000, 4)) for seed in range(150)]
    assert np.mean([bounds.low <= 0 for bounds in found]) >= 0.92
    assert np.mean([bounds.high >= 0 for bounds in found]) >= 0.92


def test_a_single_call_knows_nothing() -> None:
    assert stats.ratio_bounds([[2.0]], [[1.0]]) == Bounds(-math.inf, math.inf, math.log(2), math.inf, 1)


@pytest.mark.parametrize("bad", [[[1.0, 0.0]], [[1.0, math.nan]], [1.0, 2.0], [[1.0], [1.0, 2.0]], []])
def test_bad_rounds_are_refused(bad: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"rounds must be rounds x calls|inhomogeneous"):
        stats.ratio_bounds([[1.0]], bad)


# Verdicts


@pytest.mark.parametrize(
    ("low", "high", "margin", "verdict"),
    [
        (-0.5, 2.0, 1.0, "pass"),
        (0.5, 2.0, 0.0, "pass"),
        (-0.9, -0.1, 1.0, "pass"),  # worse, but surely by less than the margin
        (-3.0, -1.5, 1.0, "regressed"),
        (-3.0, 0.5, 1.0, "inconclusive"),
        (-1.0, 2.0, 1.0, "inconclusive"),  # a bound on the margin proves nothing
        (-2.0, -1.0, 1.0, "inconclusive"),
        (-math.inf, math.inf, 1.0, "inconclusive"),
        (0.0, 0.0, 0.0, "pass"),
        (0.0, 1.0, 0.0, "inconclusive"),
    ],
)
def test_verdicts(low: float, high: float, margin: float, verdict: str) -> None:
    assert stats.decide(Bounds(low, high, (low + high) / 2, 1.0, 10), margin) == verdict


def test_unchanged_scores_pass_at_margin_zero() -> None:
    assert stats.decide(stats.paired_mean_bounds(np.zeros(5)), margin=0.0) == "pass"


@pytest.mark.parametrize(("low", "margin"), [(0.0, -1.0), (0.0, math.nan), (math.nan, 1.0)])
def test_verdict_of_no_number_is_refused(low: float, margin: float) -> None:
    with pytest.raises(ValueError, match="a verdict needs"):
        stats.decide(Bounds(low, 1.0, 0.5, 1.0, 10), margin)


@given(shift=st.floats(-2, 2), margin=st.floats(0, 2))
@settings(deadline=None, max_examples=60)
def test_p_below_5_percent_means_regressed(shift: float, margin: float) -> None:
    bounds = stats.paired_mean_bounds(np.random.default_rng(0).normal(shift, 1, 20))
    assert (stats.regression_p(bounds, margin) < 0.05) == (stats.decide(bounds, margin) == "regressed")


def test_p_without_spread() -> None:
    assert stats.regression_p(stats.paired_mean_bounds([0.0, 0.0]), 0.0) == 1
    assert stats.regression_p(stats.paired_mean_bounds([-1.0, -1.0]), 0.5) == 0
    assert stats.regression_p(stats.paired_mean_bounds([-1.0]), 0.5) == 0.5


def test_holm_by_hand() -> None:
    assert stats.holm([0.03, 0.01, 0.04, 0.005]) == (False, True, False, True)  # 0.03 > 0.05 / 2 stops it
    assert stats.holm([0.03, 0.01]) == (True, True)
    assert stats.holm([0.0125, 0.2, 0.3, 0.4]) == (True, False, False, False)
    assert stats.holm([]) == ()


def test_holm_keeps_the_family_error() -> None:
    families = np.random.default_rng(0).uniform(size=(2000, 5))
    assert np.mean([any(stats.holm(list(family))) for family in families]) == pytest.approx(0.05, abs=0.015)


def test_holm_refuses_what_is_no_p_value() -> None:
    with pytest.raises(ValueError, match="found nan"):
        stats.holm([0.1, math.nan])


# Needed n


@pytest.mark.parametrize("mean", [-1.2, -0.4, 0.0, 0.3])
def test_needed_n_is_the_first_that_decides(mean: float) -> None:
    n, spread, margin = 10, 2.0, 0.5

    def bounds_at(k: int) -> Bounds:
        error = spread / math.sqrt(k)
        half = scipy_stats.t.ppf(0.95, k - 1) * error
        return Bounds(mean - half, mean + half, mean, error, k)

    needed = stats.needed_n(bounds_at(n), margin)
    assert needed is not None
    assert stats.decide(bounds_at(needed), margin) == ("regressed" if mean < -margin else "pass")
    assert stats.decide(bounds_at(needed - 1), margin) == "inconclusive"


def test_needed_n_may_not_exist() -> None:
    assert stats.needed_n(Bounds(-1.0, 0.0, -0.5, 0.3, 10), margin=0.5) is None
    assert stats.needed_n(stats.paired_mean_bounds([0.7]), margin=0.5) is None


def test_needed_n_is_two_without_spread_and_large_near_the_margin() -> None:
    assert stats.needed_n(stats.paired_mean_bounds([0.2, 0.2, 0.2]), margin=0.0) == 2
    far = stats.needed_n(Bounds(-1.0, 0.0, -0.5 + 1e-7, 1.0, 100), margin=0.5)
    assert far == pytest.approx((1.644854 * 10 / 1e-7) ** 2, rel=1e-3)
