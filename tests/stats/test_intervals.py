import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from sdbench.arrays import F64
from sdbench.stats import decisions, intervals

# Mean


def test_mean_interval_equals_the_textbook_example() -> None:
    found = intervals.mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])  # t(0.975, 4) = 2.776, sd = sqrt(2.5)
    half = 2.7764451 * math.sqrt(2.5 / 5)
    assert (found.value, found.n, found.has_interval) == (3, 5, True)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))


def test_mean_interval_covers_skewed_scores() -> None:
    draws = np.random.default_rng(0).beta(5, 1, size=(400, 64))
    covered = sum(interval.low <= 5 / 6 <= interval.high for interval in map(intervals.mean_interval, draws))
    assert 0.92 <= covered / 400 <= 0.98


def test_one_value_has_no_interval() -> None:
    assert intervals.mean_interval([7.0]) == intervals.Estimate(7.0, 7.0, 7.0, 1, has_interval=False)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0]]])
def test_invalid_columns_are_rejected(values: list[float]) -> None:
    for function in (intervals.mean_interval, decisions.paired_mean_bounds):
        with pytest.raises(ValueError, match="finite numbers, found shape"):
            function(values)


# Shares and wins


def shares_of(successes: int, n: int) -> list[float]:
    return [1.0] * successes + [0.0] * (n - successes)


@pytest.mark.parametrize("successes", [0, 1, 13, 39, 40])
def test_share_of_single_images_has_wilsons_interval(successes: int) -> None:
    expected = scipy_stats.binomtest(successes, 40).proportion_ci(method="wilson")
    found = intervals.share_interval(shares_of(successes, 40), 40)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_interval_covers_in_exact_sums() -> None:
    n, shares = 50, np.linspace(0.02, 0.98, 49)
    wilson = [intervals.share_interval(shares_of(successes, n), n) for successes in range(n + 1)]
    mass = scipy_stats.binom.pmf(np.arange(n + 1)[:, None], n, shares)
    inside = np.array([[interval.low <= share <= interval.high for share in shares] for interval in wilson])
    coverage = (mass * inside).sum(axis=0)
    assert coverage.min() > 0.9
    assert coverage.mean() == pytest.approx(0.95, abs=0.01)


@given(shares=st.lists(st.floats(0, 1), min_size=1, max_size=50), samples=st.integers(1, 9))
@settings(deadline=None)
def test_share_interval_contains_the_share_and_stays_in_range(shares: list[float], samples: int) -> None:
    found = intervals.share_interval(shares, samples * len(shares))
    assert -1e-12 <= found.low <= found.value <= found.high <= 1 + 1e-12


def test_win_rate_counts_wins_and_half_the_ties() -> None:
    found = intervals.wins_interval([3.0, 2.0, 1.0, 5.0], [1.0, 2.0, 2.0, 4.0])
    assert (found.wins, found.ties, found.losses) == (2, 1, 1)
    assert (found.estimate.value, found.estimate.n) == (2.5 / 4, 4)


def test_win_rate_without_ties_has_wilsons_interval() -> None:
    assert intervals.wins_interval([3.0, 2.0, 1.0, 5.0], [1.0, 3.0, 2.0, 4.0]).estimate == intervals.share_interval(shares_of(2, 4), 4)


def test_ties_narrow_the_interval_of_a_win_rate_but_never_close_it() -> None:
    def width(ties: int) -> float:
        found = intervals.wins_interval([1.0] * 20 + [0.0] * (20 + ties), [0.0] * 20 + [1.0] * 20 + [0.0] * ties).estimate
        assert found.value == pytest.approx(0.5)
        return (found.high - found.low) * math.sqrt(found.n)

    assert width(0) > width(20) > width(200) > 0
    all_tied = intervals.wins_interval(np.zeros(40), np.zeros(40)).estimate
    half = 1.959964**2 / 80 / (1 + 1.959964**2 / 40)  # no variance is left, only the finite n
    assert (all_tied.low, all_tied.value, all_tied.high) == pytest.approx((0.5 - half, 0.5, 0.5 + half))


def test_win_rate_of_unpaired_scores_is_rejected() -> None:
    with pytest.raises(ValueError, match="one length, found 2 and 1"):
        intervals.wins_interval([1.0, 2.0], [1.0])


# Influence


def test_standard_error_interval() -> None:
    found = intervals.standard_error_interval(5.0, [-1.0, 1.0, -1.0, 1.0])
    half = 3.1824463 * math.sqrt(4 / 3) / 2  # t(0.975, 3)
    assert (found.low, found.value, found.high) == pytest.approx((5 - half, 5, 5 + half))
    wider = intervals.standard_error_interval(5.0, [-1.0, 1.0, -1.0, 1.0], systematic=0.25)
    assert (wider.low, wider.high) == pytest.approx((5 - half - 0.25, 5 + half + 0.25))
    fewest = intervals.standard_error_interval(5.0, [-1.0, 1.0])
    assert fewest.high == pytest.approx(5 + 12.7062047)  # t(0.975, 1), standard error 1


@pytest.mark.parametrize(("value", "influence"), [(math.nan, [0.0, 1.0]), (1.0, [0.0])])
def test_standard_error_of_too_little_data_is_rejected(value: float, influence: list[float]) -> None:
    with pytest.raises(ValueError, match="at least 2 images"):
        intervals.standard_error_interval(value, influence)


# Quantiles


def test_time_median_pools_calls_and_takes_its_interval_from_rounds() -> None:
    rounds = [[1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0], [1.5, 3.0, 4.5, 6.0]]  # the same times, scaled by 1, 2 and 1.5
    found = intervals.time_median(rounds)
    assert found.value == np.median(np.concatenate(rounds))
    half = 4.302653 * np.log([1, 2, 1.5]).std(ddof=1) / math.sqrt(3)
    assert math.log(found.high / found.value) == pytest.approx(half, rel=1e-6)
    assert math.log(found.value / found.low) == pytest.approx(half, rel=1e-6)
    assert (found.n, found.has_interval) == (12, True)


@pytest.mark.parametrize(("rounds", "calls", "enough"), [(2, 2, True), (1, 50, False), (9, 1, False)])
def test_time_median_has_no_interval_if_n_is_too_small(rounds: int, calls: int, *, enough: bool) -> None:
    found = intervals.time_median([np.arange(1.0, calls + 1)] * rounds)
    assert found.has_interval is enough
    if not enough:
        assert (found.low, found.high) == (1, calls)


@given(times=st.lists(st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=9), min_size=1, max_size=12))
@settings(deadline=None)
def test_time_median_lies_in_its_interval(times: list[list[float]]) -> None:
    found = intervals.time_median(times)
    assert 0 <= found.low <= found.value <= found.high


@pytest.mark.parametrize("drift", [0.0, 0.02, 0.1])
def test_interval_of_a_median_time_covers_whatever_the_drift_between_rounds(drift: float) -> None:
    random, n = np.random.default_rng(7), 1000
    times = np.exp(drift * random.standard_normal((n, 5, 1)) + 0.02 * random.standard_normal((n, 5, 4)))
    found = [intervals.time_median(list(rounds)) for rounds in times]
    covered = np.mean([interval.low <= 1 <= interval.high for interval in found])
    assert 0.925 < covered <= 1


@pytest.mark.parametrize("n_rounds", [8, 20])
@pytest.mark.parametrize("draw", [lambda u: u, lambda u: np.sign(u - 0.1) + 0.05 * u], ids=["uniform", "two speeds"])
def test_interval_of_a_median_time_covers_also_where_medians_spread_more_than_means(draw: Callable[[F64], F64], n_rounds: int) -> None:
    """Student's interval of the rounds' mean covers 53 to 85 % here, since it is around the median."""
    uniform = np.random.default_rng(n_rounds).uniform(-1, 1, (200, n_rounds, 1))
    times = np.exp(0.1 * draw(uniform) * np.ones(2))
    truth = math.exp(0.1 * draw(np.zeros(1))[0])
    found = [intervals.time_median(list(rounds)) for rounds in times]
    assert np.mean([interval.low <= truth <= interval.high for interval in found]) >= 0.91


def test_interval_of_many_rounds_is_that_of_all_resamples_whatever_their_lengths() -> None:
    """Of two different rounds, a resample has k of the first with a binomial chance."""
    one, other = [1.0, 2.0, 3.0], [2.0, 4.0]
    n, tail = 12, scipy_stats.norm.cdf(-math.sqrt(12 / 11) * scipy_stats.t.ppf(0.975, 11))
    medians = np.array([np.median(k * one + (n - k) * other) for k in range(n + 1)])
    order, chances = np.argsort(medians), scipy_stats.binom.pmf(np.arange(n + 1), n, 1 / 2)
    below = np.cumsum(chances[order])
    found = intervals.time_median([one] * 6 + [other] * 6)
    assert (found.low, found.high) == tuple(medians[order][np.searchsorted(below, [tail, 1 - tail])])


def test_invalid_times_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"must be positive, found 0\.0"):
        intervals.time_median([[1.0, 0.0]])
    with pytest.raises(ValueError, match="non-empty column"):
        intervals.time_median([])


def test_share_interval_lies_between_wilsons_of_all_images_and_of_the_prompts() -> None:
    """Wilson's interval at the effective number of images of Korn and Graubard 1998, with (z / t)^2 for the 39 degrees of freedom."""
    few = (scipy_stats.norm.ppf(0.975) / scipy_stats.t.ppf(0.975, 39)) ** 2

    def wilson(share: float, n: float) -> tuple[float, float]:
        ends = np.roots([1 + 1.959964**2 / n, -2 * share - 1.959964**2 / n, share**2])  # (share - p)^2 = z^2 p (1 - p) / n
        return float(min(ends)), float(max(ends))

    alike = np.arange(40) < 13
    for shares, images in (
        (alike, 40),
        (np.full(40, 0.75), 160),  # independent
        (np.repeat([1, 0.75], 20), 160),  # variance 1/64, of a single image 7/64: as if 280 images, of which 160 are
        (np.repeat([1, 0.5, 0], [10, 20, 10]), 78),  # variance 5/39, of a single image 1/4
    ):
        found = intervals.share_interval(shares, 160)
        assert (found.low, found.high) == pytest.approx(wilson(float(np.mean(shares)), images * few), abs=1e-6)
        assert found.n == 40
    assert intervals.share_interval([0.5], 4) == intervals.share_interval([0.5], 1), "a single prompt shows no spread"


@pytest.mark.parametrize("shares", [[], [0.5, 1.5], [-0.1], [np.nan]])
def test_share_interval_of_what_are_no_shares_is_rejected(shares: list[float]) -> None:
    with pytest.raises(ValueError, match="shares"):
        intervals.share_interval(shares, 8)


@pytest.mark.parametrize("spread", [0.1, 1.0, 5.0, 20.0, 1000.0])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_share_interval_covers_whether_prompts_or_noise_decide(spread: float, share: float) -> None:
    """64 prompts of 4 images; a prompt's own share is Beta distributed, near 0 or 1 for a small `spread`, near the mean for a large one."""
    random = np.random.default_rng(0)
    of_prompts = random.beta(spread * share, spread * (1 - share), (2000, 64))
    shares = random.binomial(4, of_prompts) / 4
    covered = np.mean([found.low <= share <= found.high for found in (intervals.share_interval(row, 256) for row in shares)])
    assert covered >= 0.91
    if spread < 1:
        pooled = [intervals.share_interval(shares_of(int(4 * row.sum()), 256), 256) for row in shares]
        assert np.mean([found.low <= share <= found.high for found in pooled]) < 0.75, "images as units claim too much"


@pytest.mark.parametrize(("prompts", "samples"), [(3, 16), (5, 4), (8, 16)])
def test_share_interval_of_a_few_prompts_covers(prompts: int, samples: int) -> None:
    """Without the factor (z / t)^2, 3 prompts of 16 images cover 81 %."""
    random = np.random.default_rng(0)
    shares = random.binomial(samples, random.beta(0.5, 0.5, (3000, prompts))) / samples
    found = [intervals.share_interval(row, samples * prompts) for row in shares]
    assert np.mean([interval.low <= 0.5 <= interval.high for interval in found]) >= 0.93


# Rank correlation


def test_rank_correlation_is_spearmans_and_its_interval_follows_the_draws() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=9), np.round(rng.normal(size=9))  # with ties
    draws = rng.normal(size=(500, 9))
    found = intervals.rank_correlation(one, other, draws, draws)
    assert found.value == pytest.approx(scipy_stats.spearmanr(one, other).statistic)
    assert (found.low, found.high) == pytest.approx((1, 1))
    assert found.n == 9
    others = rng.normal(size=(500, 9))
    wide = intervals.rank_correlation(one, one, draws, others)
    expected = np.quantile([scipy_stats.spearmanr(a, b).statistic for a, b in zip(draws, others, strict=True)], [0.025, 0.975])
    assert [wide.low, wide.high] == pytest.approx(list(expected))
    with pytest.raises(ValueError, match="at least 3 models, found 2"):
        intervals.rank_correlation(one[:2], other[:2], draws[:, :2], draws[:, :2])
