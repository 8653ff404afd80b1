"""Bounds of a difference between two models, and the rules by which they decide; numpy only, deterministic.

They are one-sided, 95 % each: that a candidate is not worse than the margin, and that it is, are two one-sided questions
(Schuirmann 1987), each answered wrongly 1 time in 20 where means are normal. Those of sparse differences are skewed: where a loss of
exactly the margin comes from faults of one size, 5 to 60 of them expected among 512 prompts, Student's bound passes it in up to 16.4 %,
the one corrected for skewness in at most 5.1 % (exactly, over all numbers of faults; at one prompt in 40 10.6 and 2.8 %).

No bound mends what the sample does not show: sizes with a long tail, whose largest the few faults at hand are not (exponential
sizes: 7 % with 13 faults expected, 10 % with 6), and faults so rare, fewer than 3 expected, that more than 1 sample in 20 has none.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.stats import student_t
from sdbench.stats.intervals import as_column, standard_error

Verdict = Literal["pass", "regressed", "inconclusive", "incomparable"]

_DRAWS = 4000
_SEED = 20240521
_MAX_LEVEL = 1 - 1e-12  # Student's distribution is right to 1e-13
_FEW_ROUNDS = 5  # fewer cannot be resampled: the bounds are then as wide as Student's at least


@dataclass(frozen=True)
class BetweenRuns:
    """How far two runs of one model lie apart: the standard deviation of their difference, and the runs it was estimated from, 2 or more."""

    deviation: float
    runs: int


@dataclass(frozen=True)
class Bounds:
    """A difference between candidate and baseline between two one-sided bounds; n pairs or rounds.

    Attributes:
        standard_error: of the sample alone.
        skewness: of the mean, which is that of the sample over sqrt(n); 0 where the bounds are not corrected for it.
        between: noise that the bounds hold beside the sample's, which more of the sample would not shrink.
    """

    low: float
    high: float
    difference: float
    standard_error: float
    n: int
    between: BetweenRuns | None = None
    skewness: float = 0.0

    def __neg__(self) -> "Bounds":
        """The same difference seen from the other side: turns lower-is-better into plus = better."""
        return replace(self, low=-self.high, high=-self.low, difference=-self.difference, skewness=-self.skewness)


def paired_mean_bounds(difference: npt.ArrayLike, level: float = 0.95, *, unseen: float = 0.0) -> Bounds:
    """Mean of paired differences between one-sided t bounds, each at `level`, wider on the side of a long tail (`_stretched`).

    One entry a prompt: average the samples of a prompt first, for they are not independent. For a statistic of the whole
    set (Frechet distance) pass the difference of the values plus the difference of the influence columns. All-zero
    differences give bounds of zero width, or of what may be unseen; a single other difference, or a level so near 1 that its
    quantile is not known, infinite ones.

    Args:
        difference: (n,).
        level: of each bound.
        unseen: the largest difference of a prompt where all of these are 0 by chance. Prompts that differ have then, at this
            level, a share of at most 1 - (1 - level)^(1/n) (Clopper and Pearson 1934); the standard error is as if one did.

    Raises:
        ValueError: not one-dimensional, empty, or not finite.
    """
    difference = as_column(difference, "difference")
    n, mean = len(difference), float(difference.mean())
    if not difference.any():
        hidden = unseen * (1 - (1 - level) ** (1 / n))
        return Bounds(-hidden, hidden, 0.0, unseen / n, n)
    if n == 1:
        return Bounds(-math.inf, math.inf, mean, math.inf, n)
    error, skewness = standard_error(difference), _skewness(difference) / math.sqrt(n)
    if level > _MAX_LEVEL:
        return Bounds(-math.inf, math.inf, mean, error, n, skewness=skewness)
    t = student_t.quantile(level, n - 1)
    low, high = mean - _stretch_quantile(t, -skewness) * error, mean + _stretch_quantile(t, skewness) * error
    return Bounds(low, high, mean, error, n, skewness=skewness)


def _stretch_quantile(t: float, skewness: float) -> float:
    """The quantile of t on the side of a long tail, for a mean of this skewness; as it is on the other, where it is too large.

    Where each prompt loses the same with a small chance, the mean stands for a number of faults K, with standard error sqrt(K) and
    skewness g = 1 / sqrt(K). Its upper limit is half a quantile of chi-square with 2 K + 2 degrees of freedom (Garwood 1936, the
    Poisson limit of Clopper and Pearson 1934), which the expansion of Cornish and Fisher 1938 makes

        K + z sqrt(K) + (z^2 + 2) / 3 + (z^3 + 11 z) / (36 sqrt(K)) + O(1 / K)  =  K + (z + (z^2 + 2) g / 3 + (z^3 + 11 z) g^2 / 36) sqrt(K),

    so that the size of a fault need not be known. The first term of Edgeworth's series (Hall 1992, 3.3), (2 z^2 + 1) g / 6, lacks
    half a step between two numbers of faults, and the second order.
    """
    tail = max(0.0, skewness)
    return t + (t**2 + 2) / 3 * tail + (t**3 + 11 * t) / 36 * tail**2


def _unstretch_quantile(stretched: float, skewness: float) -> float:
    """The quantile of t, above 0, that `_stretched` makes this of, by bisection."""
    low, high = 0.0, stretched
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _stretch_quantile(middle, skewness) < stretched else (low, middle)
    return high


def _skewness(values: F64) -> float:
    """Third standardised moment; 0 without spread."""
    centred = values - values.mean()
    spread = float((centred**2).mean())
    return float((centred**3).mean()) / spread**1.5 if spread > 1e-20 * float((values**2).mean()) else 0.0


def ratio_bounds(candidate_rounds: npt.ArrayLike, baseline_rounds: npt.ArrayLike, level: float = 0.95) -> Bounds:
    """Log ratio of median times, candidate over baseline (plus = slower), between one-sided bootstrap bounds.

    Both are rounds x calls in one unit; the shapes may differ. Calls of one round share the machine's mood, so whole rounds
    are drawn, and a single round on either side gives infinite bounds. Percentile bounds (Efron 1979), expanded to the
    quantiles of t because a few rounds resampled spread too little (Hesterberg 2015, 3.4), with the degrees of freedom of
    Welch 1947; with fewer than 5 rounds Student's t bounds of their medians where those are wider. n is the number of rounds
    on the smaller side.

    Raises:
        ValueError: ragged, empty, or times that are not positive and finite.
    """
    candidate, baseline = _as_rounds(candidate_rounds, "candidate rounds"), _as_rounds(baseline_rounds, "baseline rounds")
    difference = float(np.log(np.median(candidate)) - np.log(np.median(baseline)))
    n = min(len(candidate), len(baseline))
    if n == 1:
        return Bounds(-math.inf, math.inf, difference, math.inf, n)
    random = np.random.default_rng(_SEED)
    draws = np.log(_resample_medians(candidate, random)) - np.log(_resample_medians(baseline, random))
    expansion = math.sqrt(n / (n - 1))
    error, df = _combine_variances(_variance_of_medians(candidate), _variance_of_medians(baseline))
    t = student_t.quantile(level, df)
    tail = NormalDist().cdf(-expansion * t)
    low, high = np.quantile(draws, [tail, 1 - tail])
    if n < _FEW_ROUNDS:
        low, high = min(low, difference - t * error), max(high, difference + t * error)
    return Bounds(float(low), float(high), difference, float(draws.std()) * expansion, n)


def widen(bounds: Bounds, between: BetweenRuns, level: float = 0.95) -> Bounds:
    """Bounds with another, independent part of the difference, which its sample does not show.

    Half widths are added as variances are, each with the t quantile of its own degrees of freedom.
    """
    half = _half_width_between(between, level)
    low, high = (bounds.difference + sign * math.hypot(end - bounds.difference, half) for sign, end in ((-1, bounds.low), (1, bounds.high)))
    return replace(bounds, low=low, high=high, between=between)


def decide(bounds: Bounds, margin: float) -> Verdict:
    """Pass, regressed or inconclusive, for bounds oriented so that plus = better, and the loss one is ready to accept.

    Pass if the candidate is surely not worse by the margin (low > -margin), regressed if it surely is (high < -margin).
    What did not change at all passes at any margin, 0 too.

    Raises:
        ValueError: a margin below 0, or NaN.
    """
    if not margin >= 0 or math.isnan(bounds.low) or math.isnan(bounds.high):
        raise ValueError(
            f"a verdict needs a margin of at least 0 and bounds that are numbers, found margin {margin}, bounds {bounds.low} to {bounds.high}"
        )
    if bounds.low > -margin or bounds.low == bounds.high == 0:
        return "pass"
    return "regressed" if bounds.high < -margin else "inconclusive"


def regression_p_value(bounds: Bounds, margin: float) -> float:
    """One-sided p value of "not worse than the margin"; what `holm` takes when several metrics are judged at once.

    Below a half it is, of paired differences, 1 - the level at which their high bound reaches the margin. Rounds have Student's
    t test, for resampling a few of them says nothing of levels near 1.
    """
    gap, between = bounds.difference + margin, bounds.between
    if math.isinf(bounds.standard_error):
        return 0.5
    sample = bounds.standard_error**2, max(bounds.n - 1, 1)
    error, df = _combine_variances(sample, (between.deviation**2, between.runs - 1)) if between else _combine_variances(sample)
    if error == 0:
        return 1.0 if gap >= 0 else 0.0
    t = gap / error
    return student_t.cdf(t if t >= 0 else -_unstretch_quantile(-t, bounds.skewness), df)


def holm(
    p_values: Sequence[float], alpha: float = 0.05, nominal: Sequence[Callable[[float], float]] | None = None, untested: int = 0
) -> tuple[bool, ...]:
    """Which hypotheses are rejected, in the order given, with a chance of any false one below alpha (Holm 1979).

    Args:
        p_values: one of each hypothesis.
        alpha: chance of any false rejection.
        nominal: for each hypothesis, the level at which this look tests it, from the level that all its looks may spend
            (Maurer and Bretz 2013); None where there is one look.
        untested: further hypotheses of the family, which only a later look tests.

    Raises:
        ValueError: a p value outside 0..1, or NaN.
    """
    if bad := [p for p in p_values if not 0 <= p <= 1]:
        raise ValueError(f"p values must lie in 0..1, found {bad[0]}")
    rejected: set[int] = set()
    while len(rejected) < len(p_values):  # the levels of hypotheses differ, so their p values have no one order
        share = alpha / (len(p_values) + untested - len(rejected))
        fresh = {index for index, p in enumerate(p_values) if p <= (nominal[index](share) if nominal else share)} - rejected
        if not fresh:
            break
        rejected |= fresh
    return tuple(index in rejected for index in range(len(p_values)))


def needed_n(bounds: Bounds, margin: float, level: float = 0.95) -> int | None:
    """The smallest number of pairs at which the present mean difference and spread would bring pass or regressed.

    An outlook, not a promise: the mean will move. None where no number would do: the mean lies nearer to the margin than two
    runs lie to each other, or on it, or the spread is unknown.
    """
    ahead, spread = bounds.difference + margin, bounds.standard_error * math.sqrt(bounds.n)
    gap, skewness = (ahead, -bounds.skewness) if ahead > 0 else (-ahead, bounds.skewness)
    gap = math.sqrt(max(0.0, gap**2 - _half_width_between(bounds.between, level) ** 2)) if bounds.between else gap

    def half(n: int) -> float:
        return _stretch_quantile(student_t.quantile(level, n - 1), skewness * math.sqrt(bounds.n / n)) * spread

    widest = half(3)
    if not math.isfinite(spread) or gap <= 1e-9 * widest:
        return None
    enough = 3 + math.ceil((widest / gap) ** 2)
    return bisect.bisect_left(range(enough), True, lo=2, key=lambda n: half(n) < gap * math.sqrt(n))


def _half_width_between(between: BetweenRuns, level: float) -> float:
    """Half width of the bounds that the noise between runs alone would give."""
    return student_t.quantile(level, between.runs - 1) * between.deviation


def _as_rounds(rounds: npt.ArrayLike, name: str) -> F64:
    array = np.asarray(rounds, dtype=np.float64)
    if array.ndim != 2 or array.size == 0 or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(
            f"{name} must be rounds x calls of positive, finite times, found shape {array.shape} from {array.min(initial=math.inf)}"
        )
    return array


def _variance_of_medians(rounds: F64) -> tuple[float, int]:
    """Variance of the mean log median of at least 2 rounds, and its degrees of freedom."""
    logs = np.log(np.median(rounds, axis=1))
    return float((logs - logs[0]).var(ddof=1)) / len(logs), len(logs) - 1  # from the first, so that equal rounds have exactly none


def _combine_variances(*parts: tuple[float, int]) -> tuple[float, int]:
    """Standard error of a sum of independent parts, and its degrees of freedom, rounded down (Satterthwaite 1946).

    Args:
        parts: of each its variance and degrees of freedom.
    """
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0, sum(df for _, df in parts)
    return math.sqrt(variance), math.floor(1 / sum((part / variance) ** 2 / df for part, df in parts) + 1e-9)


def _resample_medians(rounds: F64, random: np.random.Generator) -> F64:
    """Medians of resampled rounds => (draws,)."""
    picks = random.integers(len(rounds), size=(_DRAWS, len(rounds)))
    medians: F64 = np.median(rounds[picks].reshape(_DRAWS, -1), axis=1)
    return medians
