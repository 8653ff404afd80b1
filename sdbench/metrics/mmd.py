"""Means of a kernel over all pairs of rows, from which KID and CMMD, two squared maximum mean discrepancies, are computed."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics import tiles
from sdbench.metrics.inputs import check_at_least, check_same_width

Kernel = Callable[[F64, F64, F64], F64]  # of products a . b, and squared lengths |a|^2 and |b|^2, which broadcast


def mean_kernel(x: npt.ArrayLike, y: npt.ArrayLike, kernel: Kernel) -> F64:
    """The mean kernel of each row of x, n x d, with all rows of y, m x d; returns (n,).

    Raises:
        ValueError: a set is not n x d, not finite or empty, or the widths differ.
    """
    (x, x_squares), (y, y_squares) = tiles.rows_and_squares(x, "x"), tiles.rows_and_squares(y, "y")
    check_at_least(len(x), 1, "x")
    check_at_least(len(y), 1, "y")
    check_same_width(x.shape[1], y.shape[1], "x and y")
    means = np.empty(len(x))
    for part, products in tiles.products(x, y):
        means[part] = kernel(products, x_squares[part, None], y_squares).mean(axis=1)
    return means
