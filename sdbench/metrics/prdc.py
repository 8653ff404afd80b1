"""Precision, recall, density and coverage: fidelity and diversity of a generated set apart (higher is better).

With a ball around each picture that reaches to its k-th nearest neighbour in its own set,

    precision = share of generated pictures inside some real picture's ball              low: pictures look wrong
    density   = mean number of real balls that a generated picture lies in, over k       likewise; may exceed 1
    recall    = share of real pictures inside some generated picture's ball              low: kinds of pictures are missing
    coverage  = share of real pictures with a generated picture inside their ball        likewise

Source: Kynkaanniemi et al. 2019 (precision, recall); Naeem et al. 2020 (density, coverage). All four depend on n and m,
and recall is swayed by outliers among the generated pictures, whose balls are large.

With each value comes the influence of each generated picture, (n - 1) (value - value without it) less its mean. Its
standard error, std(influence, ddof=1) / sqrt(n), is the jackknife's, for which no smoothness is needed: it is too wide
rather than too narrow for any value that does not depend on the order of the pictures (Efron and Stein 1981).
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics import tiles
from sdbench.metrics.inputs import at_least, same_width

K = 5
Indices = npt.NDArray[np.intp]
_ROUNDING = 1e-13  # squared distances below this share of the squared lengths are those of equal rows


def prdc(generated: npt.ArrayLike, real: npt.ArrayLike, k: int = K) -> dict[str, tuple[float, F64]]:
    """The four values by name, each with the influence of each generated picture on it, (n,), for features n x d and m x d.

    Raises:
        ValueError: not n x d, not finite, other widths, or fewer than k + 2 rows.
    """
    x, y = tiles.rows(generated, "generated"), tiles.rows(real, "real")
    n, m = len(x[0]), len(y[0])
    at_least(n, k + 2, "generated")
    at_least(m, k + 2, "real")
    same_width(x[0].shape[1], y[0].shape[1], "generated and real")
    reach, wider, neighbours = _balls(*x, k)
    real_reach, _, _ = _balls(*y, k)
    real_balls, alone, lost, covered, recalled = np.zeros(n), np.zeros(n), np.zeros(n), 0, 0
    for part, distances in _distances(*y, *x):
        in_real, in_generated = distances < real_reach[part, None], distances < reach
        real_balls += in_real.sum(axis=0)
        covered += int(in_real.any(axis=1).sum())
        alone += in_real[in_real.sum(axis=1) == 1].sum(axis=0)
        recalled += int(in_generated.any(axis=1).sum())
        for row in np.flatnonzero(in_generated.sum(axis=1) <= 1):
            _count_lost(lost, np.flatnonzero(in_generated[row]), neighbours[distances[row] < wider])
    return {
        "precision": _with_influence(float((real_balls > 0).mean()), (real_balls > 0).astype(np.float64)),
        "recall": _with_influence(recalled / m, lost * (n - 1) / m),
        "density": _with_influence(float(real_balls.mean()) / k, real_balls / k),
        "coverage": _with_influence(covered / m, alone * (n - 1) / m),
    }


def _with_influence(value: float, terms: F64) -> tuple[float, F64]:
    return value, terms - terms.mean()


def _count_lost(lost: F64, holding: Indices, neighbours: Indices) -> None:
    """Count, for a real picture in at most one ball, which generated pictures it is recalled by, were they left out.

    Args:
        lost: real pictures that are no longer recalled without each generated one, (n,); changed.
        holding: whose ball it lies in, one or none.
        neighbours: of those whose ball it would lie in if it reached to the next neighbour, rows x k: the balls grow so
            where one of these is left out.
    """
    if holding.size:
        lost[holding] += not (neighbours == holding).any()
    else:
        lost[np.unique(neighbours)] -= 1


def _balls(x: tiles.Features, squares: F64, k: int) -> tuple[F64, F64, Indices]:
    """Squared distances to the k-th and the next neighbour, (n,) and (n,), and who the k nearest are, n x k."""
    near, places = np.empty((len(x), k + 1)), np.empty((len(x), k + 1), np.intp)
    for part, distances in _distances(x, squares, x, squares):
        distances[np.arange(len(distances)), np.arange(part.start, part.stop)] = np.inf  # nobody is a neighbour of oneself
        nearest = np.argpartition(distances, k, axis=1)[:, : k + 1]
        found = np.take_along_axis(distances, nearest, axis=1)
        order = found.argsort(axis=1)
        near[part], places[part] = np.take_along_axis(found, order, axis=1), np.take_along_axis(nearest, order, axis=1)
    return near[:, k - 1], near[:, k], places[:, :k]


def _distances(x: tiles.Features, x_squares: F64, y: tiles.Features, y_squares: F64) -> Iterator[tuple[slice, F64]]:
    """Squared distances of all rows, by tiles."""
    for part, products in tiles.products(x, y):
        lengths = x_squares[part, None] + y_squares
        distances = lengths - 2 * products
        distances[distances < _ROUNDING * lengths] = 0
        yield part, distances
