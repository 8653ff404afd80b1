"""CLIP maximum mean discrepancy (CMMD): squared discrepancy of two sets of CLIP embeddings under a Gaussian kernel.

    k(a, b) = exp(-|a - b|^2 / (2 sigma^2)),  sigma = 10
    CMMD = 1000 (mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j))         (lower is better, 0 = same set)

Source: Jayasumana et al. 2024; Gretton et al. 2012, eq. 5. Embeddings have length 1. The means take in i = j, as the
authors' do, which makes it biased upward by about 1000 (1 - mean k) (1/n + 1/m): some hundredths at n = 500, so that
it may be compared at a small n, but at one n.
"""

import numpy as np
import numpy.typing as npt

from sdbench.metrics import tiles
from sdbench.metrics.inputs import F64, at_least, same_width

SIGMA, SCALE = 10.0, 1000.0


def cmmd(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[float, F64]:
    """CMMD of two sets of embeddings, n x d and m x d, and the first-order influence of each row of x on it => (n,), mean zero.

    influence_i = 2000 (mean_j k(x_i, x_j) - mean_j k(x_i, y_j)), less its mean: the derivative of the value by the weight
    of image i. The standard error is std(influence, ddof=1) / sqrt(n), where the sets differ; it takes y as given.

    Raises:
        ValueError: not n x d, not finite, other widths, or an empty set.
    """
    (x, x_squares), (y, y_squares) = tiles.rows(x, "x"), tiles.rows(y, "y")
    at_least(len(x), 1, "x")
    at_least(len(y), 1, "y")
    same_width(x.shape[1], y.shape[1], "x and y")
    within, across = _mean_kernel(x, x, x_squares, x_squares), _mean_kernel(x, y, x_squares, y_squares)
    witness = within - across
    value = within.mean() + _mean_kernel(y, y, y_squares, y_squares).mean() - 2 * across.mean()
    return SCALE * max(0.0, float(value)), 2 * SCALE * (witness - witness.mean())


def _mean_kernel(x: tiles.Features, y: tiles.Features, x_squares: F64, y_squares: F64) -> F64:
    """Of each row of x, the mean of k over all rows of y => (n,)."""
    means = np.empty(len(x))
    for part, products in tiles.products(x, y):
        squares = x_squares[part, None] + y_squares - 2 * products
        means[part] = np.exp(squares / (-2 * SIGMA**2)).mean(axis=1)
    return means
