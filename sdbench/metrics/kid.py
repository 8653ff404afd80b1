"""Kernel distance (KID): unbiased squared maximum mean discrepancy with a polynomial kernel.

    k(a, b) = (a . b / d + 1)^degree
    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)         (lower is better)

Source: Binkowski et al. 2018; Gretton et al. 2012, eq. 3. Unbiased at any n, hence the distance to use below n = d, and
hence at times slightly negative. It is taken once over all images, not averaged over random subsets: the same
expectation, less variance, and no seed.
"""

import numpy as np
import numpy.typing as npt

from sdbench.metrics.inputs import F64, at_least, matrix, same_width

_BLOCK_ROWS = 1024


def kid(x: npt.ArrayLike, y: npt.ArrayLike, degree: int = 3) -> float:
    """KID of two sets of features, n x d and m x d; dimensionless, around 0 for one distribution.

    Raises:
        ValueError: not n x d, not finite, n or m < 2, or other widths.
    """
    x, y = matrix(x, "x"), matrix(y, "y")
    same_width(x.shape[1], y.shape[1], "x and y")
    return _mean_of_pairs(x, degree, "x") + _mean_of_pairs(y, degree, "y") - 2 * _kernel_sum(x, y, degree) / (len(x) * len(y))


def _mean_of_pairs(x: F64, degree: int, name: str) -> float:
    """Mean of k over the n (n - 1) ordered pairs of different rows."""
    n, d = x.shape
    at_least(n, 2, name)
    diagonal = float((((x**2).sum(axis=1) / d + 1) ** degree).sum())
    return float((_kernel_sum(x, x, degree) - diagonal) / (n * (n - 1)))


def _kernel_sum(x: F64, y: F64, degree: int) -> float:
    """Sum of k over all pairs, in blocks of rows so that n x m is never held at once."""
    d = x.shape[1]
    return float(sum(np.sum((x[start : start + _BLOCK_ROWS] @ y.T / d + 1) ** degree) for start in range(0, len(x), _BLOCK_ROWS)))
