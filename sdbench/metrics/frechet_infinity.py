"""FID-infinity: what a Frechet distance would be with unlimited images, by a line through its values at n, n/2 and n/3.

    d(n) = d(infinity) + b / n + c / n^2 + ...          line through n and n/2: d(infinity) = 2 d(n) - d(n/2)

Source: Chong and Forsyth 2020, who fit a line to 15 overlapping random subsets of n/10 .. n images. Here the images are split
once, by a fixed seed, into two halves and three thirds, so that every image counts once at each size: the same idea with
about 0.7 of the scatter, fewer distances, and an influence column. n/3 tells how far from a line the values are.
The reference is taken as it is: its own finite n stays in the value.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics.frechet import Gaussian, frechet
from sdbench.metrics.inputs import at_least, matrix

_SEED = 2020
LEAST_PER_DIMENSION = 2.5


@dataclass(frozen=True)
class Extrapolation:
    """A distance at unlimited n.

    Attributes:
        curvature: what a parabola through n, n/2 and n/3 would add to the value: how much the line may be wrong by.
        influence: first-order influence of each image on the value, (n,), mean zero, as `frechet.frechet` has it.
    """

    value: float
    curvature: float
    influence: F64


def frechet_infinity(features: npt.ArrayLike, reference: Gaussian) -> Extrapolation:
    """Frechet distance to the reference, extrapolated to unlimited images, n x d; may be a little below 0.

    Its interval is `stats.standard_error_interval(value, influence, systematic=abs(curvature))`.

    Raises:
        ValueError: not n x d, not finite, another d than the reference's, or n < 2.5 d, where 1 / n is no line yet.
    """
    features = matrix(features, "features")
    n, d = features.shape
    at_least(n, int(np.ceil(LEAST_PER_DIMENSION * d)), "features (2.5 d: with fewer the distance is not yet a line in 1 / n)")
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
