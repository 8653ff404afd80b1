"""Diversity: how far apart a model's images of one prompt are, drawn from different noise.

    diversity of a prompt = mean of 1 - cosine(x_i, x_j) over all pairs of its images

It is 1 less the mean similarity of Sadat et al. 2024 (CADS, arXiv 2310.17347). A student of few steps may lose it: each image may be
good, and all of them the same. Noise and errors are diverse too, so it is read beside a CLIP score and the teacher's diversity. Unlike
recall and coverage it needs no reference.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics.cosine import unit
from sdbench.metrics.inputs import as_matrix


def mean_distance_within(features: npt.ArrayLike, groups: Sequence[str]) -> F64:
    """The mean of 1 - cosine from each row to the others of its group, (n,), for features n x d; a group's mean is its diversity.

    Raises:
        ValueError: not n x d, not finite, other numbers of rows and groups, a row is all zeros, or a group has a single row.
    """
    features = as_matrix(features, "features")
    if len(features) != len(groups):
        raise ValueError(f"each row needs a group, found {len(features)} rows and {len(groups)} groups")
    directions, (names, group_of, sizes) = unit(features, "features"), np.unique(groups, return_inverse=True, return_counts=True)
    if (sizes < 2).any():
        raise ValueError(f"{(sizes < 2).sum()} groups have a single row, the first is {str(names[sizes < 2][0])!r}: a distance needs two")
    sums = np.zeros((len(names), features.shape[1]))
    np.add.at(sums, group_of, directions)
    others = sums[group_of] - directions
    return np.asarray(1 - (directions * others).sum(axis=1) / (sizes[group_of] - 1))
