"""Student's t distribution for whole degrees of freedom, without SciPy, whose import would take most of the gate's one second."""

import math
from functools import cache
from statistics import NormalDist

import numpy as np

_LARGE_DF = 500  # from here on the expansion about the normal quantile is right to 12 digits


def cdf(t: float, df: int) -> float:
    """P(T <= t), as a finite sum of powers of cos^2 (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4); absolute error below 1e-13.

    Raises:
        ValueError: df < 1.
    """
    if df < 1:
        raise ValueError(f"degrees of freedom must be at least 1, found {df}")
    if not math.isfinite(t):
        return t if math.isnan(t) else float(t > 0)
    angle, odd = math.atan2(t, math.sqrt(df)), df % 2
    steps = np.arange(1, (df + odd) // 2 - odd)
    powers = np.cumprod(math.cos(angle) ** 2 * (2 * steps - 1 + odd) / (2 * steps + odd))
    total = math.sin(angle) * (1 + float(powers.sum()))
    above_half = (angle + (math.cos(angle) * total if df > 1 else 0.0)) / math.pi if odd else total / 2
    return min(1.0, max(0.0, 0.5 + above_half))  # rounding can leave 0..1


@cache
def quantile(p: float, df: int) -> float:
    """The t with P(T <= t) = p: by bisection, and from 500 degrees of freedom on by the expansion 26.7.5 (Abramowitz and Stegun 1964).

    Raises:
        ValueError: p not strictly between 0 and 1, or df < 1.
    """
    z = NormalDist().inv_cdf(p)
    if df >= _LARGE_DF:
        second, third = (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
        fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
        return z + (z**3 + z) / 4 / df + second / df**2 + third / df**3 + fourth / df**4
    if p < 0.5:
        return -quantile(1 - p, df)
    low, high = 0.0, 1.0
    while cdf(high, df) < p:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if cdf(middle, df) < p else (low, middle)
    return high
