"""Precision, recall, density and coverage: the fidelity and the diversity of a generated set, measured separately (higher is better).

Each image has a ball that reaches to its k-th nearest neighbour in its own set. Then

    precision = share of generated images inside some real image's ball              low: images look wrong
    density   = mean number of real balls that a generated image lies in, over k       likewise; may exceed 1
    recall    = share of real images inside some generated image's ball              low: kinds of images are missing
    coverage  = share of real images with a generated image inside their ball        likewise

Source: Kynkaanniemi et al. 2019 (precision, recall); Naeem et al. 2020 (density, coverage). All four depend on n and m,
and recall is sensitive to outliers among the generated images, whose balls are large.

Each value comes with the influence of each generated image, (n - 1) (value - value without it), less its mean. The
standard error std(influence, ddof=1) / sqrt(n) is the jackknife's, which needs no smoothness: it is too wide rather than
too narrow for any value that does not depend on the order of the images (Efron and Stein 1981).
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics import tiles
from sdbench.metrics.inputs import check_at_least, check_same_width

K = 5
Indices = npt.NDArray[np.intp]
_ROUNDING = 1e-13  # squared distances below this share of the squared lengths are taken as 0: the rows are equal


def prdc(generated: npt.ArrayLike, real: npt.ArrayLike, k: int = K) -> dict[str, tuple[float, F64]]:
    """The four values by name, each with the influence of every generated image on it, (n,), for features n x d and m x d.

    Raises:
        ValueError: a set is not n x d, not finite or has fewer than k + 2 rows, or the widths differ.
    """
    x, y = tiles.rows_and_squares(generated, "generated"), tiles.rows_and_squares(real, "real")
    n, m = len(x[0]), len(y[0])
    check_at_least(n, k + 2, "generated")
    check_at_least(m, k + 2, "real")
    check_same_width(x[0].shape[1], y[0].shape[1], "generated and real")
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
            _count_lost_recalls(lost, np.flatnonzero(in_generated[row]), neighbours[distances[row] < wider])
    return {
        "precision": _with_influence(float((real_balls > 0).mean()), (real_balls > 0).astype(np.float64)),
        "recall": _with_influence(recalled / m, lost * (n - 1) / m),
        "density": _with_influence(float(real_balls.mean()) / k, real_balls / k),
        "coverage": _with_influence(covered / m, alone * (n - 1) / m),
    }


def _with_influence(value: float, terms: F64) -> tuple[float, F64]:
    return value, terms - terms.mean()


def _count_lost_recalls(lost: F64, holding: Indices, neighbours: Indices) -> None:
    """Count how leaving out single generated images changes the recall of one real image, which lies in at most one ball.

    Args:
        lost: number of real images no longer recalled when each generated image is left out, (n,); changed in place.
        holding: the generated image whose ball holds the real one, or none.
        neighbours: the k nearest neighbours of each generated image whose ball would hold the real one if it reached to the next
            neighbour, rows x k; leaving one of them out makes the ball grow so.
    """
    if holding.size:
        lost[holding] += not (neighbours == holding).any()
    else:
        lost[np.unique(neighbours)] -= 1


def _balls(x: tiles.Features, squares: F64, k: int) -> tuple[F64, F64, Indices]:
    """Squared distances to the k-th and the next neighbour, (n,) each, and the indices of the k nearest, n x k."""
    near, places = np.empty((len(x), k + 1)), np.empty((len(x), k + 1), np.intp)
    for part, distances in _distances(x, squares, x, squares):
        distances[np.arange(len(distances)), np.arange(part.start, part.stop)] = np.inf  # nobody is a neighbour of oneself
        nearest = np.argpartition(distances, k, axis=1)[:, : k + 1]
        squared = np.take_along_axis(distances, nearest, axis=1)
        order = squared.argsort(axis=1)
        near[part], places[part] = np.take_along_axis(squared, order, axis=1), np.take_along_axis(nearest, order, axis=1)
    return near[:, k - 1], near[:, k], places[:, :k]


def _distances(x: tiles.Features, x_squares: F64, y: tiles.Features, y_squares: F64) -> Iterator[tuple[slice, F64]]:
    """Squared distances of all pairs of rows, tile by tile."""
    for part, products in tiles.products(x, y):
        lengths = x_squares[part, None] + y_squares
        distances = lengths - 2 * products
        distances[distances < _ROUNDING * lengths] = 0
        yield part, distances
