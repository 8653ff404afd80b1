"""FID-infinity: a Frechet distance extrapolated to unlimited images, from its values at n, n/2 and n/3.

    d(n) = d(infinity) + b / n + c / n^2 + ...          line through n and n/2: d(infinity) = 2 d(n) - d(n/2)

Source: Chong and Forsyth 2020, who fit a line to 15 overlapping random subsets of n/10 .. n images. Here the images are split
once, with a fixed seed, into two halves and three thirds, so that every image counts once at each size. This has about 0.7 of
their scatter, takes fewer distances, and gives an influence for each image. The thirds show how far the values are from a line.
The bias from the reference's own finite n stays in the value.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics.frechet import Gaussian, frechet
from sdbench.metrics.inputs import as_matrix, check_at_least

_SEED = 2020
LEAST_PER_DIMENSION = 2.5


@dataclass(frozen=True)
class Extrapolation:
    """A distance at unlimited n.

    Attributes:
        curvature: what a parabola through n, n/2 and n/3 would add to the value, an estimate of the line's error.
        influence: first-order influence of each image on the value, (n,), mean zero; see `frechet.frechet`.
    """

    value: float
    curvature: float
    influence: F64


def frechet_infinity(features: npt.ArrayLike, reference: Gaussian) -> Extrapolation:
    """Frechet distance of features, n x d, to the reference, extrapolated to unlimited images; may be slightly negative.

    The interval is `intervals.standard_error_interval(value, influence, systematic=abs(curvature))`.

    Raises:
        ValueError: not n x d, not finite, another d than the reference's, n < 2.5 d, where the distance is not yet linear in 1 / n,
            or n < 6, where a third has a single row.
    """
    features = as_matrix(features, "features")
    n, d = features.shape
    check_at_least(n, int(np.ceil(LEAST_PER_DIMENSION * d)), "features (2.5 d: with fewer the distance is not yet a line in 1 / n)")
    order = np.random.default_rng(_SEED).permutation(n)
    whole, halves, thirds = (_mean_over_parts(features, np.array_split(order, parts), reference) for parts in (1, 2, 3))
    return Extrapolation(2 * whole[0] - halves[0], whole[0] - 2 * halves[0] + thirds[0], 2 * whole[1] - halves[1])


def _mean_over_parts(features: F64, parts: list[npt.NDArray[np.int64]], reference: Gaussian) -> tuple[float, F64]:
    """Mean distance of the parts, and each image's influence on that mean."""
    column, distances = np.empty(len(features)), []
    for part in parts:
        distance, column[part] = frechet(features[part], reference)
        distances.append(distance)
    return float(np.mean(distances)), column
