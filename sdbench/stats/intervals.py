"""Intervals for readers: two-sided, 95 %; numpy only, except for rank correlations. `decisions` has the bounds behind verdicts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.stats import student_t

DRAWS = 4000
SEED = 20240521
_UPPER = 0.975  # where an interval of 95 % ends, as a quantile
_Z = NormalDist().inv_cdf(_UPPER)
_ROUNDS_TO_RESAMPLE = 8  # of 5 and 6 rounds the expanded bootstrap covers 87 to 93 % in some shapes, from 8 on 93 to 98 %


@dataclass(frozen=True)
class Estimate:
    """A value and its interval.

    Attributes:
        n: number of observations behind it.
        has_interval: False where there is no interval, since n is too small or the spread is unknown; low and high are then not its ends.
    """

    value: float
    low: float
    high: float
    n: int
    has_interval: bool = True


@dataclass(frozen=True)
class WinRate:
    """Share of pairs that the candidate wins, ties counted half, with the counts."""

    estimate: Estimate
    wins: int
    ties: int
    losses: int


def mean_interval(values: npt.ArrayLike) -> Estimate:
    """Mean and Student's t interval (Student 1908).

    Chosen over a bootstrap because it needs no random draws and keeps its coverage from some 20 images on, where BCa falls short. For
    sparse or skewed values, such as a share near 0 or 1 or the difference of two shares, its coverage is lower than stated (`decisions` has
    figures). A single value has no interval (`has_interval` is False).

    Raises:
        ValueError: not one-dimensional, empty, or not finite.
    """
    values = as_column(values, "values")
    n, mean = len(values), float(values.mean())
    half = 0.0 if n == 1 else student_t.quantile(_UPPER, n - 1) * standard_error(values)
    return Estimate(mean, mean - half, mean + half, n, has_interval=n > 1)


def share_interval(shares: npt.ArrayLike, n_images: int) -> Estimate:
    """The mean of the shares of n prompts, such as those of right images among each prompt's, (n,), with as many images of each.

    With one image of each prompt, Wilson's interval (1927). With more, Wilson's for the number of independent images with the same variance
    (Kish 1965; Korn and Graubard 1998): n where the images of a prompt are all alike, `n_images`, the most it can be, where they are
    independent; times (z / t)^2, since few prompts show the variance badly: without it, 3 prompts of 16 images cover 81 to 85 % at a share
    of a half. The variance in place of share (1 - share), as in `wins_interval`, would do less well: with 4 images of each of 64 prompts
    and a share of 0.95 decided by noise it covers 87 %, this 94 to 96 %.

    Raises:
        ValueError: not one-dimensional, empty, not finite, or outside 0..1.
    """
    shares = as_column(shares, "shares")
    if shares.min() < 0 or shares.max() > 1:
        raise ValueError(f"shares must lie in 0..1, found {shares.min()} to {shares.max()}")
    share, n = float(shares.mean()), len(shares)
    most = share * (1 - share)
    design_effect = min(1.0, max(float(shares.var(ddof=1)) / most, n / n_images)) if most and n > 1 else 1.0
    few_prompts = (_Z / student_t.quantile(_UPPER, n - 1)) ** 2 if n_images > n > 1 else 1.0
    return replace(_wilson_interval(share, most, n / design_effect * few_prompts), n=n)


def _wilson_interval(share: float, variance: float, n: float) -> Estimate:
    """Wilson's interval for the mean of n numbers in 0..1 with this variance."""
    centre = (share + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(variance / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return Estimate(share, min(share, centre - half), max(share, centre + half), int(n))


def wins_interval(candidate: npt.ArrayLike, baseline: npt.ArrayLike) -> WinRate:
    """How often the candidate's score is the higher one on the same prompt, for scores (n,) of both; a tie counts half.

    Wilson's interval, with share (1 - share) replaced by the variance of wins, halves and losses, since ties vary less than a coin.
    Without ties the two are equal.

    Raises:
        ValueError: lengths that differ, empty, or not finite.
    """
    candidate, baseline = as_column(candidate, "candidate"), as_column(baseline, "baseline")
    if len(candidate) != len(baseline):
        raise ValueError(f"paired scores must have one length, found {len(candidate)} and {len(baseline)}")
    wins, losses = int((candidate > baseline).sum()), int((candidate < baseline).sum())
    n, ties = len(candidate), len(candidate) - wins - losses
    share = (wins + ties / 2) / n
    variance = (wins + ties / 4) / n - share**2
    return WinRate(_wilson_interval(share, max(0.0, variance), n), wins, ties, losses)


def standard_error_interval(value: float, influence: npt.ArrayLike, systematic: float = 0.0) -> Estimate:
    """A statistic of the whole set, with an interval from its influence column: value +- (t std / sqrt(n) + systematic).

    For a Frechet distance the interval covers the average distance *at this n*. For FID-infinity, whose curvature is the systematic
    part, it covers the distance with unlimited images.

    Raises:
        ValueError: fewer than 2 images, or a number that is not finite.
    """
    influence = as_column(influence, "influence")
    n = len(influence)
    if n < 2 or not math.isfinite(value):
        raise ValueError(f"a standard error needs a finite value and at least 2 images, found {value} and {n}")
    half = student_t.quantile(_UPPER, n - 1) * standard_error(influence) + systematic
    return Estimate(value, value - half, value + half, n)


def rank_correlation(one: npt.ArrayLike, other: npt.ArrayLike, one_draws: npt.ArrayLike, other_draws: npt.ArrayLike) -> Estimate:
    """Spearman's rank correlation of two metrics over models, with the middle 95 % of the correlations from resampled prompts.

    The range shows how easily the order of these models changes; it is not a confidence interval. Resampling adds the prompts'
    noise a second time, which shuffles ranks further, so the range is too low and can miss the true correlation altogether.

    Args:
        one: one metric's value for each model, (models,).
        other: the other metric's, (models,).
        one_draws: the values of `one` from prompts drawn with replacement, (draws, models).
        other_draws: likewise for `other`, from the same draws.

    Raises:
        ValueError: fewer than 3 models, or values that are not finite.
    """
    one, other = as_column(one, "values"), as_column(other, "values")
    if len(one) < 3:
        raise ValueError(f"a rank correlation needs at least 3 models, found {len(one)}")
    draws = _spearman_by_row(np.asarray(one_draws, np.float64), np.asarray(other_draws, np.float64))
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Estimate(float(_spearman_by_row(one[None], other[None])[0]), float(low), float(high), len(one))


def _spearman_by_row(one: F64, other: F64) -> F64:
    """The correlation of each row with its counterpart; NaN where all of a row are equal."""
    from scipy.stats import rankdata

    ranks = [rankdata(rows, axis=1) for rows in (one, other)]
    a, b = (rank - rank.mean(1, keepdims=True) for rank in ranks)
    with np.errstate(invalid="ignore"):
        correlation: F64 = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return correlation


def time_median(rounds: Sequence[npt.ArrayLike]) -> Estimate:
    """Median of all times together, with an interval that treats rounds, not calls, as independent.

    The machine's speed drifts between rounds. An interval that treats all calls as independent covers only 74 to 85 % where rounds
    vary as much as calls or more. So from 8 rounds on, whole rounds are resampled, and the ends are percentiles of the medians, expanded
    to the quantiles of t as in `decisions.ratio_bounds`. Of fewer rounds it is Student's t interval of the rounds' own medians, on a log
    scale since they are times, around the median of all calls; where rounds have two speeds, that covers only 64 %. `has_interval` is
    False for a single round, and where a round has a single call.

    Other quantiles have no such interval: it covers 81 to 92 % for the 90th percentile and 51 to 91 % for the 99th, mostly below the truth,
    since the tail of all calls is that of the slowest rounds, which the rounds' own quantiles do not show.

    Args:
        rounds: rounds x calls, positive; rounds may differ in length.

    Raises:
        ValueError: no rounds, an empty round, or times that are not positive and finite.
    """
    columns = [as_column(times, "times of a round") for times in rounds]
    together = as_column(np.concatenate(columns) if columns else [], "times")
    if together.min() <= 0:
        raise ValueError(f"times must be positive, found {together.min()}")
    value, n = float(np.median(together)), len(together)
    if len(columns) < 2 or min(map(len, columns)) < 2:
        return Estimate(value, float(together.min()), float(together.max()), n, has_interval=False)
    t = student_t.quantile(_UPPER, len(columns) - 1)
    if len(columns) < _ROUNDS_TO_RESAMPLE:
        factor = math.exp(t * standard_error(np.log([np.median(times) for times in columns])))
        return Estimate(value, value / factor, value * factor, n)
    same_length = np.array(list(zip_longest(*columns, fillvalue=math.nan))).T
    tail = expanded_tail(t, len(columns))
    low, high = np.quantile(resample_medians(same_length, np.random.default_rng(SEED)), [tail, 1 - tail])
    return Estimate(value, min(value, float(low)), max(value, float(high)), n)


def resample_medians(rounds: F64, random: np.random.Generator) -> F64:
    """The medians of all calls of resampled rounds, (DRAWS,), from rounds x calls, NaN where a round has fewer calls than others."""
    picks = random.integers(len(rounds), size=(DRAWS, len(rounds)))
    medians: F64 = np.nanmedian(rounds[picks].reshape(DRAWS, -1), axis=1)
    return medians


def expanded_tail(t: float, n: int) -> float:
    """The share of resamples of n rounds beyond a percentile bound, for a bound at the quantile t (Hesterberg 2015, 3.4).

    Resamples of a few rounds spread too little, by sqrt((n - 1) / n), and t is larger than the normal quantile.
    """
    return NormalDist().cdf(-math.sqrt(n / (n - 1)) * t)


def as_column(values: npt.ArrayLike, name: str) -> F64:
    """The values as a non-empty float64 column of finite numbers.

    Raises:
        ValueError: they are not one-dimensional, are empty, or are not finite.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"{name} must be a non-empty column of finite numbers, found shape {array.shape} with {np.sum(~np.isfinite(array))} not finite"
        )
    return array


def standard_error(values: F64) -> float:
    """Standard error of the mean of n >= 2 numbers."""
    return float(values.std(ddof=1)) / math.sqrt(len(values))
