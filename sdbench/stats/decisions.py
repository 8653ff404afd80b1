"""Bounds of a difference between two models, and the rules that turn them into a verdict; numpy only, deterministic.

Bounds are one-sided, 95 % each. "Worse by less than the margin" and "worse by more than the margin" are two one-sided questions
(Schuirmann 1987). Each is answered wrongly 1 time in 20 where means are normal. Means of sparse differences are skewed: take a loss of
exactly the margin that comes from faults of one size, with 5 to 60 faults expected among 512 prompts. Student's bound passes it in up to
16.4 % of cases, the bound corrected for skewness in at most 5.1 % (computed over all numbers of faults; at one prompt in 40 it is 10.6 and
2.8 %). Where one to five gains of that size are expected besides, in up to 7.2 %.

No bound can correct for what the sample does not show: fault sizes with a long tail, the largest of which are not among the few
faults at hand (exponential sizes: 7 % with 13 faults expected, 10 % with 6), and faults so rare (fewer than 3 expected) that more than
1 sample in 20 has none.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.stats import student_t
from sdbench.stats.intervals import SEED, as_column, expanded_tail, resample_medians, standard_error

Verdict = Literal["pass", "regressed", "inconclusive", "incomparable"]

POWER = 0.8  # of the number of pairs that would decide: the customary one (Cohen 1988)
_MAX_LEVEL = 1 - 1e-12  # our Student's distribution is right to 1e-13
_FEW_ROUNDS = 5  # fewer are too few to resample: the bounds are then at least as wide as Student's


@dataclass(frozen=True)
class BetweenRuns:
    """How far two runs of one model lie apart: the standard deviation of their difference, and the number of runs (2 or more) behind it."""

    deviation: float
    runs: int


@dataclass(frozen=True)
class Bounds:
    """A difference between candidate and baseline, with its two one-sided bounds.

    Attributes:
        standard_error: from the sample alone; infinite where it shows no spread, as a single pair or round.
        n: number of pairs or rounds.
        between: noise between runs that the bounds include; a larger sample would not reduce it.
        skewness: skewness of the mean, the sample's over sqrt(n); 0 where the bounds are not corrected for it.
        trimmed: number of the n that the difference leaves out.
    """

    low: float
    high: float
    difference: float
    standard_error: float
    n: int
    between: BetweenRuns | None = None
    skewness: float = 0.0
    trimmed: int = 0

    def __neg__(self) -> "Bounds":
        """The difference with the opposite sign: turns lower-is-better into plus = better."""
        return replace(self, low=-self.high, high=-self.low, difference=-self.difference, skewness=-self.skewness)


def paired_mean_bounds(difference: npt.ArrayLike, level: float = 0.95, *, unseen: float = 0.0) -> Bounds:
    """Mean of paired differences with one-sided t bounds, wider on the side of a long tail (see `_stretch_quantile`).

    Pass one difference for each prompt: average the samples of a prompt first, for they are not independent. For a statistic of the
    whole set (Frechet distance) pass the difference of the values plus the difference of the influence columns. Differences that are all
    equal give bounds of zero width, or as wide as `unseen` allows. A single difference other than 0, or a level so near 1 that its quantile
    is not known, gives infinite bounds.

    Args:
        difference: (n,).
        unseen: where all n differences are equal, perhaps by chance: the largest difference that a prompt could have, either way. At this
            level, the share of prompts with another one is at most 1 - (1 - level)^(1/n) (Clopper and Pearson 1934). The standard error
            is as if one prompt had.

    Raises:
        ValueError: not one-dimensional, empty, or not finite.
    """
    difference = as_column(difference, "difference")
    n, mean = len(difference), float(difference.mean())
    if not difference.any() or (unseen and (difference == difference[0]).all()):
        farthest = unseen + abs(mean) if unseen else 0.0
        hidden = farthest * (1 - (1 - level) ** (1 / n))
        return Bounds(mean - hidden, mean + hidden, mean, farthest / n, n)
    if n == 1:
        return Bounds(-math.inf, math.inf, mean, math.inf, n)
    error, skewness = standard_error(difference), _skewness(difference) / math.sqrt(n)
    if level > _MAX_LEVEL:
        return Bounds(-math.inf, math.inf, mean, error, n, skewness=skewness)
    t = student_t.quantile(level, n - 1)
    low, high = mean - _stretch_quantile(t, -skewness) * error, mean + _stretch_quantile(t, skewness) * error
    return Bounds(low, high, mean, error, n, skewness=skewness)


def _stretch_quantile(t: float, skewness: float) -> float:
    """The quantile of t, corrected for the skewness of the mean on its long tail's side; unchanged on the other, where it is too large.

    Where each prompt has the same loss with the same small chance, the mean stands for a number of faults K, with standard error sqrt(K)
    and skewness g = 1 / sqrt(K). The upper limit of K is half a quantile of chi-square with 2 K + 2 degrees of freedom (Garwood 1936, the
    Poisson limit of Clopper and Pearson 1934). By the expansion of Cornish and Fisher 1938 this is

        K + z sqrt(K) + (z^2 + 2) / 3 + (z^3 + 11 z) / (36 sqrt(K)) + O(1 / K)
        = K + (z + (z^2 + 2) g / 3 + (z^3 + 11 z) g^2 / 36) sqrt(K),

    so the size of a fault need not be known. The first term of Edgeworth's series (Hall 1992, 3.3), (2 z^2 + 1) g / 6, lacks
    half a step between two numbers of faults, and the second order.
    """
    tail = max(0.0, skewness)
    return t + (t**2 + 2) / 3 * tail + (t**3 + 11 * t) / 36 * tail**2


def _unstretch_quantile(stretched: float, skewness: float) -> float:
    """The inverse of `_stretch_quantile` for quantiles above 0, by bisection."""
    low, high = 0.0, stretched
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _stretch_quantile(middle, skewness) < stretched else (low, middle)
    return high


def _skewness(values: F64) -> float:
    """Third standardised moment; 0 without spread."""
    centred = values - values.mean()
    spread = float((centred**2).mean())
    return float((centred**3).mean()) / spread**1.5 if spread > 1e-20 * float((values**2).mean()) else 0.0


def paired_ratio_bounds(candidate_rounds: npt.ArrayLike, baseline_rounds: npt.ArrayLike, level: float = 0.95) -> Bounds:
    """Log ratio of times that were measured in turns, candidate over baseline (plus = slower), with one-sided bounds.

    Both inputs are rounds x calls in the same unit. The rounds of a turn ran one after the other, so that drift of the machine's speed
    cancels in the ratio of their medians; where rounds failed, pairs may be of neighbouring turns. The difference is the mean of the
    ratios' logarithms, from 10 rounds on without the tenth of them at either end, since a single round may be twice as slow as the others.
    The bounds are Student's or, for the trimmed mean, those of Tukey and McLaughlin 1963: the standard error is that of the winsorized
    ratios over the share kept, and the degrees of freedom are one fewer than the ratios kept. Without the fifth at either end, bounds of
    10 normal ratios would miss in 6.1 % (these: 5.4 %) and at alpha / 4 in 1.7 % (1.4 %). A single round gives infinite bounds.

    Raises:
        ValueError: see `ratio_bounds`, or unequal numbers of rounds.
    """
    candidate, baseline = _as_rounds(candidate_rounds, "candidate rounds"), _as_rounds(baseline_rounds, "baseline rounds")
    if len(candidate) != len(baseline):
        raise ValueError(f"rounds in turns come in pairs, found {len(candidate)} of the candidate and {len(baseline)} of the baseline")
    ratios = np.sort(_log_medians(candidate) - _log_medians(baseline))
    n = len(ratios)
    if n == 1:
        return Bounds(-math.inf, math.inf, float(ratios[0]), math.inf, n)
    cut = n // 10
    difference = float(ratios[cut : n - cut].mean())
    error = standard_error(np.clip(ratios, ratios[cut], ratios[n - 1 - cut])) * n / (n - 2 * cut)
    half = student_t.quantile(level, n - 2 * cut - 1) * error
    return Bounds(difference - half, difference + half, difference, error, n, trimmed=2 * cut)


def ratio_bounds(candidate_rounds: npt.ArrayLike, baseline_rounds: npt.ArrayLike, level: float = 0.95) -> Bounds:
    """Log ratio of median times, candidate over baseline (plus = slower), with one-sided bootstrap bounds; see also `paired_ratio_bounds`.

    Both inputs are rounds x calls in the same unit; their shapes may differ. Calls of one round are not independent, because the machine's
    speed drifts between rounds. So whole rounds are resampled, and a single round on either side gives infinite bounds. The bounds are
    percentile bounds (Efron 1979), expanded to the quantiles of t because a few resampled rounds spread too little (Hesterberg 2015, 3.4),
    with the degrees of freedom of Welch 1947. With fewer than 5 rounds, Student's t bounds of the rounds' medians are used where they
    are wider. n is the smaller number of rounds.

    Raises:
        ValueError: ragged, empty, or times that are not positive and finite.
    """
    candidate, baseline = _as_rounds(candidate_rounds, "candidate rounds"), _as_rounds(baseline_rounds, "baseline rounds")
    difference = float(np.log(np.median(candidate)) - np.log(np.median(baseline)))
    n = min(len(candidate), len(baseline))
    if n == 1:
        return Bounds(-math.inf, math.inf, difference, math.inf, n)
    random = np.random.default_rng(SEED)
    draws = np.log(resample_medians(candidate, random)) - np.log(resample_medians(baseline, random))
    error, df = _combine_variances(_variance_of_medians(candidate), _variance_of_medians(baseline))
    t = student_t.quantile(level, df)
    tail = expanded_tail(t, n)
    low, high = np.quantile(draws, [tail, 1 - tail])
    if n < _FEW_ROUNDS:
        low, high = min(low, difference - t * error), max(high, difference + t * error)
    return Bounds(float(low), float(high), difference, float(draws.std()) * math.sqrt(n / (n - 1)), n)


def widen(bounds: Bounds, between: BetweenRuns, level: float = 0.95) -> Bounds:
    """The bounds, widened by the noise between runs, which the sample does not show.

    Half widths are added in quadrature, each with the t quantile of its own degrees of freedom.
    """
    half = _half_width_between(between, level)
    low, high = (bounds.difference + sign * math.hypot(end - bounds.difference, half) for sign, end in ((-1, bounds.low), (1, bounds.high)))
    return replace(bounds, low=low, high=high, between=between)


def decide(bounds: Bounds, margin: float) -> Verdict:
    """The verdict: "pass", "regressed" or "inconclusive".

    Pass if the candidate is surely worse by less than the margin, or better (low > -margin); regressed if it is surely worse by more
    (high < -margin). No change at all passes at any margin, 0 included.

    Args:
        bounds: the bounds of the difference, plus = better.

    Raises:
        ValueError: a margin below 0, or a margin or bound that is NaN.
    """
    if not margin >= 0 or math.isnan(bounds.low) or math.isnan(bounds.high):
        raise ValueError(
            f"a verdict needs a margin of at least 0 and bounds that are numbers, found margin {margin}, bounds {bounds.low} to "
            f"{bounds.high}"
        )
    if bounds.low > -margin or bounds.low == bounds.high == 0:
        return "pass"
    return "regressed" if bounds.high < -margin else "inconclusive"


def regression_p_value(bounds: Bounds, margin: float) -> float:
    """One-sided p value of the hypothesis "not worse than the margin", for `holm` where several metrics are judged at once.

    For paired differences, a p value below 0.5 is 1 - the level at which the high bound reaches the margin. Rounds get Student's
    t test, since resampling a few rounds tells nothing about levels near 1. Where the spread is unknown, the p value is 0.5.
    """
    gap, between = bounds.difference + margin, bounds.between
    if math.isinf(bounds.standard_error):
        return 0.5
    sample = bounds.standard_error**2, max(bounds.n - bounds.trimmed - 1, 1)
    error, df = _combine_variances(sample, (between.deviation**2, between.runs - 1)) if between else _combine_variances(sample)
    if error == 0:
        return 1.0 if gap >= 0 else 0.0
    t = gap / error
    return student_t.cdf(t if t >= 0 else -_unstretch_quantile(-t, bounds.skewness), df)


def holm(
    p_values: Sequence[float], alpha: float = 0.05, nominal: Sequence[Callable[[float], float]] | None = None, untested: int = 0
) -> tuple[bool, ...]:
    """Which hypotheses are rejected, in the given order; the chance of any false rejection is at most alpha (Holm 1979).

    Args:
        nominal: for each hypothesis, a function from the level that all its looks may spend to the level at which this look tests it
            (Maurer and Bretz 2013); None where there is a single look.
        untested: number of further hypotheses in the family, which only a later look tests.

    Raises:
        ValueError: a p value outside 0..1, or NaN.
    """
    if bad := [p for p in p_values if not 0 <= p <= 1]:
        raise ValueError(f"p values must lie in 0..1, found {bad[0]}")
    rejected: set[int] = set()
    while len(rejected) < len(p_values):  # levels differ between hypotheses, so sorting the p values would not do
        share = alpha / (len(p_values) + untested - len(rejected))
        fresh = {index for index, p in enumerate(p_values) if p <= (nominal[index](share) if nominal else share)} - rejected
        if not fresh:
            break
        rejected |= fresh
    return tuple(index in rejected for index in range(len(p_values)))


def needed_n(bounds: Bounds, margin: float, level: float = 0.95) -> int | None:
    """The smallest number of pairs that brings "pass" or "regressed" with a chance of 80 %.

    The true difference and spread are taken to be the measured ones, and rounds to be untrimmed. None where no number would do: the
    difference is on the margin, or nearer to it than two runs are to each other, or the spread is unknown.
    """
    ahead, spread = bounds.difference + margin, bounds.standard_error * math.sqrt(bounds.n)
    gap, skewness = (ahead, -bounds.skewness) if ahead > 0 else (-ahead, bounds.skewness)
    between = _half_width_between(bounds.between, level) if bounds.between else 0.0

    def quantiles(n: int) -> tuple[float, float]:
        """In standard errors: half a width of the bounds, and how much nearer to the margin a difference may be measured than it is."""
        return _stretch_quantile(student_t.quantile(level, n - 1), skewness * math.sqrt(bounds.n / n)), student_t.quantile(POWER, n - 1)

    def decides(n: int) -> bool:
        half_width, nearer = (quantile * spread / math.sqrt(n) for quantile in quantiles(n))
        return gap - nearer > math.hypot(between, half_width)

    widest = sum(quantiles(3)) * spread
    if not math.isfinite(spread) or gap - between <= 1e-9 * widest:
        return None
    enough = 3 + math.ceil((widest / (gap - between)) ** 2)
    return bisect.bisect_left(range(enough), True, lo=2, key=decides)


def _half_width_between(between: BetweenRuns, level: float) -> float:
    """Half width of the bounds from the noise between runs alone."""
    return student_t.quantile(level, between.runs - 1) * between.deviation


def _as_rounds(rounds: npt.ArrayLike, name: str) -> F64:
    array = np.asarray(rounds, dtype=np.float64)
    if array.ndim != 2 or array.size == 0 or not (np.isfinite(array) & (array > 0)).all():
        raise ValueError(
            f"{name} must be rounds x calls of positive, finite times, found shape {array.shape} from {array.min(initial=math.inf)}"
        )
    return array


def _log_medians(rounds: F64) -> F64:
    """The logarithm of each round's median, (rounds,)."""
    logs: F64 = np.log(np.median(rounds, axis=1))
    return logs


def _variance_of_medians(rounds: F64) -> tuple[float, int]:
    """Variance of the mean of log medians over 2 or more rounds, and its degrees of freedom."""
    logs = _log_medians(rounds)
    relative = logs - logs[0]  # so that equal rounds have a variance of exactly 0
    return float(relative.var(ddof=1)) / len(logs), len(logs) - 1


def _combine_variances(*parts: tuple[float, int]) -> tuple[float, int]:
    """Standard error and degrees of freedom, rounded down, of a sum of independent parts, (variance, degrees) each (Satterthwaite 1946)."""
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return 0.0, sum(df for _, df in parts)
    return math.sqrt(variance), math.floor(1 / sum((part / variance) ** 2 / df for part, df in parts) + 1e-9)
