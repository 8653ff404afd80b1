"""CLIP maximum mean discrepancy (CMMD): squared discrepancy of two sets of CLIP embeddings under a Gaussian kernel.

    k(a, b) = exp(-|a - b|^2 / (2 sigma^2)),  sigma = 10
    CMMD = 1000 (mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j))         (lower is better, 0 = same set)

Source: Jayasumana et al. 2024; Gretton et al. 2012, eq. 5. Embeddings have length 1. The means include i = j, as in the
authors' code, so the value is biased upward by about 1000 (1 - mean k) (1/n + 1/m). At n = m = 500 and cosines of at least 0
that is at most 0.04: values at a small n may be compared, but only at the same n.
"""

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics.mmd import mean_kernel

SIGMA, SCALE = 10.0, 1000.0


def cmmd(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[float, F64]:
    """CMMD of two sets of unit-length embeddings, n x d and m x d, and the first-order influence of each row of x on it, (n,), mean zero.

    influence_i = 2000 (mean_j k(x_i, x_j) - mean_j k(x_i, y_j)), less its mean: the derivative of the value with respect to the
    weight of image i. Where the sets differ, the standard error is std(influence, ddof=1) / sqrt(n); it takes y as given.

    Raises:
        ValueError: a set is not n x d, not finite or empty, or the widths differ.
    """
    within, across = mean_kernel(x, x, _kernel), mean_kernel(x, y, _kernel)
    witness = within - across
    value = within.mean() + mean_kernel(y, y, _kernel).mean() - 2 * across.mean()
    return SCALE * max(0.0, float(value)), 2 * SCALE * (witness - witness.mean())


def _kernel(products: F64, x_squares: F64, y_squares: F64) -> F64:
    return np.asarray(np.exp((2 * products - x_squares - y_squares) / (2 * SIGMA**2)))
