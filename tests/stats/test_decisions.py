import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from sdbench.arrays import F64
from sdbench.stats import decisions
from sdbench.stats.decisions import BetweenRuns, Bounds

# Paired bounds


def test_paired_bounds_are_the_ends_of_a_two_sided_90_percent_interval() -> None:
    half = np.random.default_rng(0).normal(0.3, 1, 15)
    difference = np.concatenate([half, 0.6 - half])  # symmetric, so the bounds are Student's
    found = decisions.paired_mean_bounds(difference)
    expected = scipy_stats.ttest_1samp(difference, 0).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.standard_error == pytest.approx(scipy_stats.sem(difference))
    assert found.n == 30


def test_paired_bounds_cover_on_both_sides() -> None:
    found = [decisions.paired_mean_bounds(draw) for draw in np.random.default_rng(1).normal(size=(1000, 12))]
    assert np.mean([bounds.low > 0 for bounds in found]) == pytest.approx(0.05, abs=0.02)
    assert np.mean([bounds.high < 0 for bounds in found]) == pytest.approx(0.05, abs=0.02)


def test_bounds_of_a_single_pair_are_infinite_unless_it_is_unchanged() -> None:
    assert decisions.paired_mean_bounds([0.5]) == Bounds(-math.inf, math.inf, 0.5, math.inf, 1)
    assert decisions.paired_mean_bounds([0.0]) == Bounds(0, 0, 0, 0, 1)


def test_bounds_at_a_level_without_a_quantile_are_infinite_unless_nothing_changed() -> None:
    found = decisions.paired_mean_bounds([0.5, 0.7], 1 - 1e-17)
    assert (found.low, found.high) == (-math.inf, math.inf)
    assert found.standard_error == pytest.approx(0.1)
    assert decisions.paired_mean_bounds([0.5, 0.5], 1 - 1e-17).low == -math.inf
    assert decisions.paired_mean_bounds([0.0, 0.0], 1 - 1e-17).high == 0


def test_negated_bounds_equal_bounds_of_the_negated_difference() -> None:
    difference = np.array([0.1, 0.5, -0.2, 0.9])
    assert -decisions.paired_mean_bounds(difference) == decisions.paired_mean_bounds(-difference)


@pytest.mark.parametrize(("n", "most", "level", "at_most"), [(64, 20, 0.95, 0.051), (512, 60, 0.95, 0.051), (2048, 60, 0.99, 0.0101)])
def test_loss_of_the_margin_on_few_prompts_passes_no_more_often_than_the_level_allows(
    n: int, most: int, level: float, at_most: float
) -> None:
    """Exact probabilities, for at least 5 expected faults, at the worst rates: those just above where a number of faults passes."""
    faults = np.arange(1, most)
    lows = [decisions.paired_mean_bounds(np.repeat([-1.0, 0.0], [each, n - each]), level).low for each in faults]
    chances = np.asarray(scipy_stats.binom.cdf(faults, n, np.negative(lows)))[(np.negative(lows) * n > 5) & (np.negative(lows) * n < most)]
    assert len(chances) > 10
    assert 0.9 * (1 - level) < chances.max() < at_most


@pytest.mark.parametrize(("faults", "n", "errors"), [(25, 20_000, 5e-4), (50, 100_000, 2e-4)])
def test_bound_of_rare_faults_is_the_exact_limit_of_their_share(faults: int, n: int, errors: float) -> None:
    """To a part of the standard error that is smaller than any change of a coefficient of the second order makes."""
    bounds = decisions.paired_mean_bounds(np.repeat([-1.0, 0.0], [faults, n - faults]))
    exact = scipy_stats.beta.ppf(0.95, faults + 1, n - faults)  # Clopper and Pearson
    assert -bounds.low == pytest.approx(exact, abs=errors * bounds.standard_error)


@pytest.mark.parametrize("rate", [10 / 512, 1 / 40, 50 / 512])
@pytest.mark.parametrize("level", [0.05, 0.0125])
def test_loss_of_the_margin_on_most_prompts_is_rejected_no_more_often_than_the_level_allows(rate: float, level: float) -> None:
    """Exact probabilities, also at one of Holm's levels for four metrics; Student's t test would reject up to 9.4 %."""
    chances = scipy_stats.binom.pmf(np.arange(513), 512, rate)
    likely = np.flatnonzero(chances > 1e-6)
    found = [decisions.paired_mean_bounds(np.repeat([1 / rate - 2, -2.0], [each, 512 - each])) for each in likely]
    assert chances[likely][[decisions.regression_p_value(bounds, 1.0) <= level for bounds in found]].sum() < 1.01 * level


def test_unchanged_prompts_bound_a_change_on_unseen_prompts() -> None:
    found = decisions.paired_mean_bounds(np.zeros(4), unseen=1.0)
    assert (1 - found.high) ** 4 == pytest.approx(0.05)
    assert (found.low, found.difference, found.standard_error) == (-found.high, 0, 0.25)
    assert decisions.decide(found, 0.084) == "inconclusive"
    assert decisions.decide(decisions.paired_mean_bounds(np.zeros(512), unseen=1.0), 0.006) == "pass"
    needed = decisions.needed_n(found, 0.084)
    assert needed
    assert decisions.decide(decisions.paired_mean_bounds(np.zeros(needed), unseen=1.0), 0.084) == "pass"


def test_prompts_that_all_change_alike_bound_the_rest() -> None:
    """Two lost prompts of two are no certainty: a model that loses a third of all would do that in one of nine draws."""
    two, many = (decisions.paired_mean_bounds(np.full(n, -1.0), unseen=1.0) for n in (2, 512))
    others = (two.high - two.difference) / 2  # a prompt that wins lies 2 away
    assert (1 - others) ** 2 == pytest.approx(0.05)
    assert decisions.decide(two, 0.05) == "inconclusive"
    assert decisions.regression_p_value(two, 0.05) > 0.05
    assert decisions.decide(many, 0.9) == "regressed"
    assert decisions.regression_p_value(many, 0.9) < 1e-3


# Latency ratios


def rounds(slowdown: float, seed: int, n_rounds: int = 6) -> F64:
    random = np.random.default_rng(seed)
    return slowdown * np.exp(random.normal(0, 0.02, (n_rounds, 1)) + random.normal(0, 0.01, (n_rounds, 8)))


def test_ratio_is_positive_for_a_slower_candidate() -> None:
    found = decisions.ratio_bounds(rounds(1.5, seed=1), rounds(1.0, seed=2))
    assert found.low < math.log(1.5) < found.high
    assert found.low > 0.2
    assert found.difference == pytest.approx(math.log(1.5), abs=0.03)
    assert found.n == 6


def test_ratio_bounds_are_those_of_all_resamples_expanded_to_the_quantiles_of_t() -> None:
    times = np.linspace(1.0, 1.5, 6)
    medians = np.log(np.median(np.stack(np.meshgrid(*[times] * 6), -1).reshape(-1, 6), axis=1))
    found, expansion = decisions.ratio_bounds(times[:, None], np.ones((6, 1))), math.sqrt(6 / 5)
    tail = float(scipy_stats.norm.cdf(-expansion * scipy_stats.t.ppf(0.95, 5)))
    assert [found.low, found.high] == pytest.approx(np.quantile(medians, [tail, 1 - tail]).tolist())
    assert found.standard_error == pytest.approx(expansion * medians.std(), rel=0.03)


def test_ratio_bounds_are_deterministic_unitless_and_antisymmetric() -> None:
    slow, fast = rounds(1.5, seed=1), rounds(1.0, seed=2)
    found, rescaled, swapped = (
        decisions.ratio_bounds(slow, fast),
        decisions.ratio_bounds(slow * 1000, fast * 1000),
        -decisions.ratio_bounds(fast, slow),
    )
    assert decisions.ratio_bounds(slow, fast) == found
    assert (rescaled.low, rescaled.high) == pytest.approx((found.low, found.high))
    assert (swapped.low, swapped.high) == pytest.approx((found.low, found.high), abs=0.01)


def test_bounds_of_a_single_round_are_infinite_whatever_its_calls() -> None:
    many, one = rounds(1.0, seed=1), rounds(1.0, seed=2, n_rounds=1)
    for found in (
        *(decisions.ratio_bounds(*pair) for pair in ((one, many), (many, one), (one, one))),
        decisions.paired_ratio_bounds(one, one),
    ):
        assert (found.low, found.high, found.standard_error, found.n) == (-math.inf, math.inf, math.inf, 1)
    for bounds in (decisions.ratio_bounds, decisions.paired_ratio_bounds):
        assert bounds([[2.0]], [[1.0]]).difference == math.log(2)


@pytest.mark.parametrize("n_rounds", [2, 5, 9])
def test_ratio_of_few_rounds_in_turns_has_students_bounds(n_rounds: int) -> None:
    slow, fast = rounds(1.5, 1, n_rounds), rounds(1.0, 2, n_rounds)
    logs = np.log(np.median(slow, axis=1) / np.median(fast, axis=1))
    found, reference = decisions.paired_ratio_bounds(slow, fast), scipy_stats.ttest_1samp(logs, 0.0)
    assert (found.low, found.high) == pytest.approx(tuple(reference.confidence_interval(0.9)))
    assert found.difference == pytest.approx(logs.mean())
    assert found.n == n_rounds
    assert decisions.regression_p_value(-found, 0.0) == pytest.approx(scipy_stats.ttest_1samp(logs, 0.0, alternative="greater").pvalue)


@pytest.mark.parametrize(("n_rounds", "cut"), [(10, 1), (19, 1), (20, 2)])
def test_ratio_of_many_rounds_in_turns_has_the_bounds_of_a_trimmed_mean(n_rounds: int, cut: int) -> None:
    slow, fast = rounds(1.02, 1, n_rounds), rounds(1.0, 2, n_rounds)
    logs = np.log(np.median(slow, axis=1) / np.median(fast, axis=1))
    share = cut / n_rounds
    found, reference = decisions.paired_ratio_bounds(slow, fast), scipy_stats.mstats.trimmed_mean_ci(logs, (share, share), alpha=0.1)
    assert (found.low, found.high) == pytest.approx(tuple(reference))
    assert found.difference == pytest.approx(scipy_stats.trim_mean(logs, share))
    level = 1 - decisions.regression_p_value(-found, 0.0)
    assert decisions.paired_ratio_bounds(slow, fast, level).low == pytest.approx(0, abs=1e-9)
    outlier = slow * np.where(np.arange(n_rounds) == 0, 10.0, 1.0)[:, None]
    assert decisions.paired_ratio_bounds(outlier, fast).difference == pytest.approx(found.difference, abs=0.02)


def test_drift_that_meets_both_cancels_in_turns() -> None:
    drift = np.linspace(1, 3, 6)[:, None]
    slow, fast = rounds(1.5, seed=1), rounds(1.0, seed=2)
    alone, drifting = decisions.paired_ratio_bounds(slow, fast), decisions.paired_ratio_bounds(drift * slow, drift * fast)
    assert (drifting.low, drifting.difference, drifting.high) == pytest.approx((alone.low, alone.difference, alone.high))
    swapped = -decisions.paired_ratio_bounds(fast, slow)
    assert (swapped.low, swapped.difference, swapped.high) == pytest.approx((alone.low, alone.difference, alone.high))
    assert decisions.paired_ratio_bounds(2 * slow, slow).high == pytest.approx(math.log(2))
    separate = decisions.ratio_bounds(drift * slow, drift * fast)
    assert separate.high - separate.low > 5 * (drifting.high - drifting.low)


@pytest.mark.parametrize("n_rounds", [3, 5, 10, 20])
def test_ratio_bounds_of_rounds_in_turns_cover_under_drift_with_single_slow_rounds(n_rounds: int) -> None:
    random = np.random.default_rng(n_rounds)
    missed = np.zeros(2)
    for _ in range(1000):
        drift = np.cumsum(random.normal(0, 0.06, (n_rounds, 2)).ravel()).reshape(n_rounds, 2)
        slow = random.uniform(0.2, 0.7, (n_rounds, 2)) * (random.random((n_rounds, 2)) < 0.1)
        times = np.exp(drift + slow + random.normal(0, 0.03, (n_rounds, 2)))
        found = decisions.paired_ratio_bounds(times[:, :1], times[:, 1:])
        missed += found.low > 0, found.high < 0
    assert (missed / 1000 < 0.07).all(), missed


def test_rounds_in_turns_come_in_pairs() -> None:
    with pytest.raises(ValueError, match="come in pairs, found 6 of the candidate and 5 of the baseline"):
        decisions.paired_ratio_bounds(rounds(1.0, 1), rounds(1.0, 2, n_rounds=5))


def test_unequal_spreads_use_welchs_degrees_of_freedom() -> None:
    stable, noisy = np.exp(0.001 * rounds(1.0, seed=1, n_rounds=4)), rounds(1.0, seed=2, n_rounds=4)
    found = decisions.ratio_bounds(noisy, stable)
    medians = [np.log(np.median(each, axis=1)) for each in (noisy, stable)]
    welch = scipy_stats.ttest_ind(*medians, equal_var=False)
    assert welch.df == pytest.approx(3, abs=0.1)
    half = scipy_stats.t.ppf(0.95, math.floor(welch.df)) * welch._standard_error
    assert found.high - found.difference >= half * (1 - 1e-9)
    assert found.difference - found.low >= half * (1 - 1e-9)


def test_ratio_bounds_cover_with_few_rounds() -> None:
    found = [decisions.ratio_bounds(rounds(1.0, seed, 4), rounds(1.0, seed + 1000, 4)) for seed in range(150)]
    assert np.mean([bounds.low <= 0 for bounds in found]) >= 0.92
    assert np.mean([bounds.high >= 0 for bounds in found]) >= 0.92


@pytest.mark.parametrize("bad", [[[1.0, 0.0]], [[1.0, math.nan]], [1.0, 2.0], [[1.0], [1.0, 2.0]], []])
def test_invalid_rounds_are_rejected(bad: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"rounds must be rounds x calls|inhomogeneous"):
        decisions.ratio_bounds([[1.0]], bad)


# Noise between runs


def test_noise_of_few_runs_uses_the_t_quantile_of_their_number() -> None:
    exact = Bounds(0.2, 0.2, 0.2, 0.0, 1)
    for runs in (2, 4):
        found = decisions.widen(exact, BetweenRuns(0.1, runs))
        half = scipy_stats.t.ppf(0.95, runs - 1) * 0.1
        assert (found.low, found.high) == pytest.approx((0.2 - half, 0.2 + half))
        assert (-found).between == found.between


def test_bounds_with_a_noise_floor_of_four_runs_cover() -> None:
    random, missed = np.random.default_rng(0), 0
    for _ in range(2000):
        floor = BetweenRuns(float(random.normal(0, 1, 4).std(ddof=1)), 4)
        one = random.normal()
        missed += decisions.widen(Bounds(one, one, one, 0.0, 1), floor).low > 0
    assert missed / 2000 == pytest.approx(0.05, abs=0.015)


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
    assert decisions.decide(Bounds(low, high, (low + high) / 2, 1.0, 10), margin) == verdict


@pytest.mark.parametrize(("low", "margin"), [(0.0, -1.0), (0.0, math.nan), (math.nan, 1.0)])
def test_verdict_without_valid_numbers_is_rejected(low: float, margin: float) -> None:
    with pytest.raises(ValueError, match="a verdict needs"):
        decisions.decide(Bounds(low, 1.0, 0.5, 1.0, 10), margin)


@given(shift=st.floats(-2, 2), margin=st.floats(0, 2), skewed=st.sampled_from([-1.0, 0.0, 1.0]), level=st.sampled_from([0.95, 0.9875]))
@settings(deadline=None, max_examples=60)
def test_p_below_the_level_means_regressed(shift: float, margin: float, skewed: float, level: float) -> None:
    noise = np.random.default_rng(0).normal(0, 1, 20)
    bounds = decisions.paired_mean_bounds(shift + noise + skewed * np.exp(noise), level)
    assert (decisions.regression_p_value(bounds, margin) < 1 - level) == (decisions.decide(bounds, margin) == "regressed")


@pytest.mark.parametrize("p", [0.03, 0.3])
def test_p_is_the_level_at_which_the_high_bound_reaches_the_margin(p: float) -> None:
    difference = np.random.default_rng(0).exponential(1, 30)
    margin = -decisions.paired_mean_bounds(difference, 1 - p).high
    assert decisions.regression_p_value(decisions.paired_mean_bounds(difference), margin) == pytest.approx(p)
    assert decisions.regression_p_value(-decisions.paired_mean_bounds(-difference), margin) == pytest.approx(p)


@pytest.mark.parametrize("loss", [0.4, 0.5])
@pytest.mark.parametrize(("n", "skewed"), [(2, 0), (30, 0), (30, 1)])
def test_p_of_a_loss_within_the_margin_is_students(n: int, skewed: int, loss: float) -> None:
    difference = np.random.default_rng(0).normal(0, 1, n) ** (1 + skewed)
    difference += -loss - difference.mean()
    expected = scipy_stats.ttest_1samp(difference, -0.5, alternative="less").pvalue
    assert decisions.regression_p_value(decisions.paired_mean_bounds(difference), 0.5) == pytest.approx(expected)


def test_p_of_another_run_combines_both_degrees_of_freedom() -> None:
    bounds = decisions.widen(Bounds(-1.0, -1.0, -1.0, 0.0, 1), BetweenRuns(0.5, 4))
    assert decisions.regression_p_value(bounds, 0.0) == pytest.approx(scipy_stats.t.cdf(-2, 3))
    both = decisions.widen(Bounds(-2.0, 0.0, -1.0, 0.3, 9), BetweenRuns(0.4, 4))
    assert decisions.regression_p_value(both, 0.0) == pytest.approx(
        scipy_stats.t.cdf(-1 / 0.5, math.floor(0.5**4 / (0.3**4 / 8 + 0.4**4 / 3)))
    )


def test_p_without_spread() -> None:
    assert decisions.regression_p_value(decisions.paired_mean_bounds([0.0, 0.0]), 0.0) == 1
    assert decisions.regression_p_value(decisions.paired_mean_bounds([-1.0, -1.0]), 0.5) == 0
    assert decisions.regression_p_value(decisions.paired_mean_bounds([-1.0]), 0.5) == 0.5


def test_holm_matches_examples_computed_by_hand() -> None:
    assert decisions.holm([0.03, 0.01, 0.04, 0.005]) == (False, True, False, True)  # stops at 0.03 > 0.05 / 2
    assert decisions.holm([0.03, 0.01]) == (True, True)
    assert decisions.holm([0.0125, 0.2, 0.3, 0.4]) == (True, False, False, False)
    assert decisions.holm([]) == ()


def test_holm_counts_hypotheses_not_tested_yet() -> None:
    assert decisions.holm([0.03], untested=1) == (False,)
    assert decisions.holm([0.02], untested=1) == (True,)
    assert decisions.holm([0.012, 0.02, 0.03], untested=1) == (True, False, False)


def test_p_value_above_its_nominal_level_does_not_stop_a_larger_one_below_its_level() -> None:
    strict, plain = (lambda level: level / 100), (lambda level: level)
    assert decisions.holm([0.001, 0.02], nominal=[strict, plain]) == (False, True)
    assert decisions.holm([0.0004, 0.02], nominal=[strict, plain]) == (True, True)  # 0.02 is rejected first


def test_holm_controls_the_family_wise_error_rate() -> None:
    families = np.random.default_rng(0).uniform(size=(2000, 5))
    assert np.mean([any(decisions.holm(list(family))) for family in families]) == pytest.approx(0.05, abs=0.015)


def test_holm_rejects_nan() -> None:
    with pytest.raises(ValueError, match="found nan"):
        decisions.holm([0.1, math.nan])


# Needed n


@pytest.mark.parametrize("mean", [-1.2, -0.4, 0.0, 0.3])
def test_needed_n_is_the_smallest_that_decides_in_4_of_5_draws(mean: float) -> None:
    spread, margin = 2.0, 0.5
    needed = decisions.needed_n(Bounds(mean - 1, mean + 1, mean, spread / math.sqrt(10), 10), margin)
    assert needed is not None
    for n, least, most in ((needed, 0.77, 0.83), (needed // 2, 0.3, 0.6)):
        draws = np.random.default_rng(0).normal(mean, spread, (2000, n))
        verdicts = [decisions.decide(decisions.paired_mean_bounds(draw), margin) for draw in draws]
        assert least < verdicts.count("regressed" if mean < -margin else "pass") / 2000 < most


def test_needed_n_exceeds_an_n_left_undecided_by_a_long_tail() -> None:
    rare = np.repeat([1.0, 0.0], [5, 195])
    for difference, margin in ((-rare, 0.05), (rare - 0.075, 0.028)):  # Student's bounds would pass the one and regress the other
        bounds = decisions.paired_mean_bounds(difference)
        assert decisions.decide(bounds, margin) == "inconclusive"
        assert 200 < (decisions.needed_n(bounds, margin) or 0) < 600


def test_needed_n_of_another_run_keeps_the_noise_between_runs() -> None:
    spread, margin, between = 0.5, 0.3, BetweenRuns(0.1, 4)

    def bounds_at(k: int, quantile: float = 0.5) -> Bounds:
        """Those of a difference of 0.2, if it is measured at a quantile of its distribution."""
        error = spread / math.sqrt(k)
        half = scipy_stats.t.ppf(0.99, k - 1) * error
        measured = 0.2 + scipy_stats.t.ppf(quantile, k - 1) * error
        return decisions.widen(Bounds(measured - half, measured + half, measured, error, k), between, 0.99)

    needed = decisions.needed_n(bounds_at(5), margin, 0.99)
    assert needed is not None
    assert [decisions.decide(bounds_at(k, 0.2), margin) for k in (needed - 1, needed)] == ["inconclusive", "pass"]
    # 0.4 from the margin, which the noise between runs, t(3) 0.1 = 0.45, hides at any k
    assert decisions.needed_n(bounds_at(5), 0.2, 0.99) is None


def test_needed_n_may_not_exist() -> None:
    assert decisions.needed_n(Bounds(-1.0, 0.0, -0.5, 0.3, 10), margin=0.5) is None
    assert decisions.needed_n(decisions.paired_mean_bounds([0.7]), margin=0.5) is None


def test_needed_n_is_two_without_spread_and_large_near_the_margin() -> None:
    assert decisions.needed_n(decisions.paired_mean_bounds([0.2, 0.2, 0.2]), margin=0.0) == 2
    far = decisions.needed_n(Bounds(-1.0, 0.0, -0.5 + 1e-7, 1.0, 100), margin=0.5)
    assert far == pytest.approx(((1.644854 + 0.841621) * 10 / 1e-7) ** 2, rel=1e-3)
