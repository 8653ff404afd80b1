"""Kernel distance (KID): unbiased squared maximum mean discrepancy with a polynomial kernel.

    k(a, b) = (a . b / d + 1)^degree
    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)         (lower is better)

Source: Binkowski et al. 2018; Gretton et al. 2012, eq. 3. Unbiased at any n: the distance to use below n = d, and
therefore sometimes slightly negative. It is computed once over all images, not averaged over random subsets, which has the same
expectation, less variance, and needs no seed.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics import tiles
from sdbench.metrics.inputs import check_at_least
from sdbench.metrics.mmd import Kernel, mean_kernel


def kid(x: npt.ArrayLike, y: npt.ArrayLike, degree: int = 3, prompts: Sequence[str] | None = None) -> tuple[float, F64]:
    """KID of two sets of features, n x d and m x d, and the first-order influence of each row of x on it, (n,), mean zero.

    Dimensionless, around 0 for two samples of one distribution. influence_i = 2 (mean_{j != i} k(x_i, x_j) - mean_j k(x_i, y_j)), less its
    mean: twice the first term of KID's Hoeffding decomposition (1948). Where the sets differ, the standard error is
    std(influence, ddof=1) / sqrt(n); it takes y as given.

    Args:
        prompts: the prompt of each row of x, where several rows share one, (n,). Only pairs of different prompts count then: two images of
            one prompt are nearer to each other than two draws from the distribution, and would make the distance larger.

    Raises:
        ValueError: a set is not n x d, not finite or has fewer than 2 rows, the widths differ, or prompts are not one for each row or are
            all the same.
    """

    def kernel(products: F64, *_: F64) -> F64:
        return np.asarray((products / np.shape(x)[1] + 1) ** degree)

    within, around = _mean_of_others(x, kernel, "x", prompts), _mean_of_others(y, kernel, "y")
    across = mean_kernel(x, y, kernel)
    witness = within - across
    return float(within.mean() + around.mean() - 2 * across.mean()), 2 * (witness - witness.mean())


def _mean_of_others(features: npt.ArrayLike, kernel: Kernel, name: str, prompts: Sequence[str] | None = None) -> F64:
    """The mean kernel of each row with the other rows, (n,), or with the rows of other prompts."""
    rows, squares = tiles.rows_and_squares(features, name)
    check_at_least(len(rows), 2, name)
    if prompts is not None and len(prompts) != len(rows):
        raise ValueError(f"each row of {name} must have a prompt, found {len(rows)} rows and {len(prompts)} prompts")
    left_out, n_left_out = kernel(squares, squares, squares), np.ones(len(rows))
    for same in () if prompts is None else _groups(prompts):
        alike = rows[same].astype(np.float64)
        left_out[same], n_left_out[same] = kernel(alike @ alike.T, squares[same, None], squares[same]).sum(axis=1), len(same)
    if n_left_out.max() == len(rows):
        raise ValueError(f"all {len(rows)} rows of {name} share one prompt; the distance needs pairs of different prompts")
    return np.asarray((len(rows) * mean_kernel(rows, rows, kernel) - left_out) / (len(rows) - n_left_out))


def _groups(prompts: Sequence[str]) -> list[npt.NDArray[np.intp]]:
    """The rows of each prompt."""
    _, prompt_of = np.unique(np.asarray(prompts), return_inverse=True)
    return np.split(np.argsort(prompt_of, kind="stable"), np.cumsum(np.bincount(prompt_of))[:-1])
