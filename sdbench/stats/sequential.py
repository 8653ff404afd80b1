"""Looks at growing data that keep the error rate of one: group sequential bounds by error spending.

The chance of a false rejection that may be spent by the time a share t of the data is in is O'Brien and Fleming's in the form
of Lan and DeMets 1983,

    spent(t) = 2 - 2 Phi(z_{1 - alpha/2} / sqrt(t)),

so that of 16 looks at alpha = 0.05 the last still tests at 0.68 alpha. The bound of each look follows by numerical integration
over the sums that crossed none before (Armitage, McPherson and Rowe 1969; Jennison and Turnbull 2000, ch. 19): sums of
independent increments, which means of paired differences are and which the influence columns of a distance make of it.
Both ends of a verdict are tested so: that the loss is below the margin, and that it is above. Stopping because neither
can be reached any more only lowers both error rates (`undecidable`).
"""

import math
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

import numpy as np

from sdbench.arrays import F64
from sdbench.stats.decisions import Bounds

_CHANCE = 0.1
_NODES, _REACH = 400, 8.0  # Simpson's rule on so many intervals, out to so many standard deviations


def spent_error(share: float, alpha: float) -> float:
    """The error that may be spent once this share of the data, 0..1, is in."""
    return math.erfc(-NormalDist().inv_cdf(alpha / 2) / math.sqrt(2 * share))


@cache
def nominal_levels(shares: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """The nominal one-sided level of each look, at growing shares of the data that end with at most 1.

    Raises:
        ValueError: shares that do not grow from above 0 to at most 1.
    """
    if not shares or any(late <= early for early, late in zip((0.0, *shares), shares, strict=False)) or shares[-1] > 1:
        raise ValueError(f"the shares of the looks must grow from above 0 to at most 1, found {shares}")
    found, sums, density, before, used = [], np.zeros(1), np.ones(1), 0.0, 0.0
    for share in shares:
        step = math.sqrt(share - before)
        bound = _crossing_bound(sums, density, step, spent_error(share, alpha) - used)
        found.append(float(_upper_tail(np.array([bound / math.sqrt(share)]))[0]))
        fresh = np.linspace(-_REACH * math.sqrt(share), bound, _NODES + 1)
        weights = (fresh[1] - fresh[0]) / 3 * np.where(np.arange(_NODES + 1) % 2, 4.0, 2.0)
        weights[[0, -1]] /= 2
        moved = np.exp(-(((fresh[:, None] - sums) / step) ** 2) / 2) / (step * math.sqrt(2 * math.pi))
        sums, density, before, used = fresh, weights * (moved @ density), share, spent_error(share, alpha)
    return tuple(found)


def is_undecidable(measured: Sequence[tuple[Bounds, float]], share: float, alpha: float, *, passable: bool = True) -> bool:
    """Whether the rest of the data would hardly (less than 1 time in 10) bring pass or regressed.

    Args:
        measured: of each metric its bounds so far, plus = better, and its margin.
        share: of the data that is in.
        alpha: error rate of each end.
        passable: False where something that more data cannot change stands against a pass.

    The chance is predictive, from the data so far alone (Spiegelhalter, Freedman and Blackburn 1986): a pass needs every
    metric, a regression one.
    """
    if share >= 1:
        return False
    bound = NormalDist().inv_cdf(1 - alpha)

    def beyond(bounds: Bounds, margin: float, side: int, level: float) -> float:
        gap = side * (bounds.difference + margin)
        if bounds.standard_error == 0:
            return float(gap > 0)
        return NormalDist().cdf((gap / bounds.standard_error - level * math.sqrt(share)) / math.sqrt(1 - share))

    worst = NormalDist().inv_cdf(1 - alpha / len(measured))  # Holm's first step
    passing = passable * min(beyond(bounds, margin, 1, bound) for bounds, margin in measured)
    regressing = max(beyond(bounds, margin, -1, worst) for bounds, margin in measured)
    return passing < _CHANCE and regressing < _CHANCE


def _crossing_bound(sums: F64, density: F64, step: float, error: float) -> float:
    """The sum that the next look exceeds with probability `error`, having crossed nothing before."""
    low, high = -_REACH, 4 * _REACH
    while (middle := (low + high) / 2) not in (low, high) and high - low > 1e-12:
        low, high = (middle, high) if float(density @ _upper_tail((middle - sums) / step)) > error else (low, middle)
    return high


def _upper_tail(z: F64) -> F64:
    """P(Z > z)."""
    return np.array([math.erfc(each / math.sqrt(2)) / 2 for each in z])
