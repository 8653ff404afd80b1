"""Means of a kernel over all pairs of rows: what squared maximum mean discrepancies (KID, CMMD) and their influences are made of."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics import tiles
from sdbench.metrics.inputs import at_least, same_width

Kernel = Callable[[F64, F64, F64], F64]  # products a . b, and squared lengths |a|^2 and |b|^2, that broadcast


def mean_kernel(x: npt.ArrayLike, y: npt.ArrayLike, kernel: Kernel) -> F64:
    """Of each row of x, the mean of the kernel over all rows of y, n x d and m x d => (n,).

    Raises:
        ValueError: not n x d, not finite, other widths, or an empty set.
    """
    (x, x_squares), (y, y_squares) = tiles.rows(x, "x"), tiles.rows(y, "y")
    at_least(len(x), 1, "x")
    at_least(len(y), 1, "y")
    same_width(x.shape[1], y.shape[1], "x and y")
    means = np.empty(len(x))
    for part, products in tiles.products(x, y):
        means[part] = kernel(products, x_squares[part, None], y_squares).mean(axis=1)
    return means
