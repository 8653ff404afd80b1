"""Kernel distance (KID): unbiased squared maximum mean discrepancy with a polynomial kernel.

    k(a, b) = (a . b / d + 1)^degree
    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)         (lower is better)

Source: Binkowski et al. 2018; Gretton et al. 2012, eq. 3. Unbiased at any n: the distance to use below n = d, and
therefore sometimes slightly negative. It is computed once over all images, not averaged over random subsets, which has the same
expectation, less variance, and needs no seed.
"""

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics import tiles
from sdbench.metrics.inputs import check_at_least
from sdbench.metrics.mmd import Kernel, mean_kernel


def kid(x: npt.ArrayLike, y: npt.ArrayLike, degree: int = 3) -> tuple[float, F64]:
    """KID of two sets of features, n x d and m x d, and the first-order influence of each row of x on it, (n,), mean zero.

    Dimensionless, around 0 for two samples of one distribution. influence_i = 2 (mean_{j != i} k(x_i, x_j) - mean_j k(x_i, y_j)), less its
    mean: twice the first term of KID's Hoeffding decomposition (1948). Where the sets differ, the standard error is
    std(influence, ddof=1) / sqrt(n); it takes y as given.

    Raises:
        ValueError: a set is not n x d, not finite or has fewer than 2 rows, or the widths differ.
    """

    def kernel(products: F64, *_: F64) -> F64:
        return np.asarray((products / np.shape(x)[1] + 1) ** degree)

    within, around = _mean_of_others(x, kernel, "x"), _mean_of_others(y, kernel, "y")
    across = mean_kernel(x, y, kernel)
    witness = within - across
    return float(within.mean() + around.mean() - 2 * across.mean()), 2 * (witness - witness.mean())


def _mean_of_others(features: npt.ArrayLike, kernel: Kernel, name: str) -> F64:
    """The mean kernel of each row with the other rows, (n,)."""
    rows, squares = tiles.rows_and_squares(features, name)
    check_at_least(len(rows), 2, name)
    return np.asarray((len(rows) * mean_kernel(rows, rows, kernel) - kernel(squares, squares, squares)) / (len(rows) - 1))
