"""Several looks at growing data with the error rate of a single look: group sequential bounds by error spending.

When a share t of the data is in, the chance of a false rejection spent so far may be at most

    spent(t) = 2 - 2 Phi(z_{1 - alpha/2} / sqrt(t)),

the spending function of O'Brien and Fleming in the form of Lan and DeMets 1983. With 16 looks at alpha = 0.05, the last look still
tests at 0.68 alpha. The bound of each look follows from numerical integration over the sums that crossed no earlier bound
(Armitage, McPherson and Rowe 1969; Jennison and Turnbull 2000, ch. 19). This requires sums of independent increments. Means of paired
differences are such sums, and through its influence column a set metric becomes one too. Both ends of a verdict are tested this way: that
the loss is below the margin, and that it is above. Stopping because neither can be reached any more (`is_undecidable`) only lowers
both error rates.
"""

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np

from sdbench.arrays import F64
from sdbench.stats.decisions import Bounds

_LOW_CHANCE = 0.1
_INTERVALS, _REACH = 400, 8.0  # of Simpson's rule: number of intervals, and how far they reach in standard deviations


def spent_error(share: float, alpha: float) -> float:
    """The error rate that may be spent once a share of the data, above 0 and up to 1, is in."""
    return math.erfc(-NormalDist().inv_cdf(alpha / 2) / math.sqrt(2 * share))


@cache
def nominal_levels(shares: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """The nominal one-sided level of each look.

    Args:
        shares: share of the data at each look, growing, at most 1.
        alpha: one-sided error rate of all looks together.

    Raises:
        ValueError: shares that do not grow from above 0 to at most 1.
    """
    if not shares or any(late <= early for early, late in zip((0.0, *shares), shares, strict=False)) or shares[-1] > 1:
        raise ValueError(f"the shares of the looks must grow from above 0 to at most 1, found {shares}")
    levels, sums, density, last_share, spent = [], np.zeros(1), np.ones(1), 0.0, 0.0
    for share in shares:
        step = math.sqrt(share - last_share)
        bound = _crossing_bound(sums, density, step, spent_error(share, alpha) - spent)
        levels.append(float(_upper_tail(np.array([bound / math.sqrt(share)]))[0]))
        grid = np.linspace(-_REACH * math.sqrt(share), bound, _INTERVALS + 1)
        weights = (grid[1] - grid[0]) / 3 * np.where(np.arange(_INTERVALS + 1) % 2, 4.0, 2.0)
        weights[[0, -1]] /= 2
        transition = np.exp(-(((grid[:, None] - sums) / step) ** 2) / 2) / (step * math.sqrt(2 * math.pi))
        sums, density, last_share, spent = grid, weights * (transition @ density), share, spent_error(share, alpha)
    return tuple(levels)


def is_undecidable(measured: Sequence[tuple[Bounds, float]], share: float, alpha: float, *, passable: bool = True) -> bool:
    """Whether the rest of the data is unlikely (less than 1 time in 10) to bring "pass" or "regressed".

    The chance is predictive and uses only the data so far (Spiegelhalter, Freedman and Blackburn 1986). A pass needs every metric,
    a regression needs one.

    Args:
        measured: bounds so far (plus = better) and margin of each metric.
        share: share of the data that is in, below 1.
        alpha: error rate of each end.
        passable: False where something that more data cannot change rules out a pass.
    """
    bound = NormalDist().inv_cdf(1 - alpha)

    def chance_beyond_margin(bounds: Bounds, margin: float, side: int, level: float) -> float:
        """Of the statistic of all data, on this side of the margin (1: pass, -1: regressed); `level`: the normal quantile to exceed."""
        gap = side * (bounds.difference + margin)
        if bounds.standard_error == 0:
            return float(gap > 0)
        return NormalDist().cdf((gap / bounds.standard_error - level * math.sqrt(share)) / math.sqrt(1 - share))

    worst = NormalDist().inv_cdf(1 - alpha / len(measured))  # Holm's first step
    passing = passable * min(chance_beyond_margin(bounds, margin, 1, bound) for bounds, margin in measured)
    regressing = max(chance_beyond_margin(bounds, margin, -1, worst) for bounds, margin in measured)
    return passing < _LOW_CHANCE and regressing < _LOW_CHANCE


def _crossing_bound(sums: F64, density: F64, step: float, error: float) -> float:
    """The bound that the sum of the next look exceeds with probability `error`, given that it crossed no earlier bound."""
    low, high = -_REACH, 4 * _REACH
    while (middle := (low + high) / 2) not in (low, high) and high - low > 1e-12:
        low, high = (middle, high) if float(density @ _upper_tail((middle - sums) / step)) > error else (low, middle)
    return high


def _upper_tail(z: F64) -> F64:
    """P(Z > z)."""
    return np.array([math.erfc(each / math.sqrt(2)) / 2 for each in z])
