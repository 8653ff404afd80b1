"""ImageReward v1: a standardised affine function of what a BLIP makes of an image and its caption together.

    reward = (w . x + b - mean) / std          (higher is better)

Xu et al. 2023 trained the BLIP, w and b on experts' rankings of images of one prompt, by the probability sigmoid(s(a) - s(b)) that image a
is preferred to b, s = w . x + b. So only differences on one prompt mean anything, and a difference of 1 is a preference of 74 to 26. `MEAN`
and `STD`, of s, are those of the authors' code (zai-org/ImageReward, ImageReward/ImageReward.py).
"""

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics.inputs import as_matrix, check_same_width

MEAN, STD = 0.16717362830052426, 1.0333394966054072


def reward(features: npt.ArrayLike, weight: npt.ArrayLike, bias: float) -> F64:
    """The reward of each image with its caption, (n,), for features n x d and a weight (d,).

    Raises:
        ValueError: not n x d, not finite, or of another d than the weight.
    """
    features, weight = as_matrix(features, "features"), as_matrix(np.atleast_2d(weight), "weight")
    check_same_width(features.shape[1], weight.shape[1], "features and weight")
    return np.asarray((features @ weight[0] + bias - MEAN) / STD)
