"""Aesthetic score: an affine function of an image's normalised embedding, without its caption.

    score = w . x / |x| + b          (higher is better)

LAION trained w and b (Schuhmann 2022) on ratings from 1 to 10: SAC (generated images), logos, and AVA (photographs). The score says how
much an image would please, not whether it shows what was asked for, and it prefers some styles. A student can raise it by drifting to
them, so it is read beside a CLIP score, and compared on equal prompts.
"""

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics.cosine import unit
from sdbench.metrics.inputs import as_matrix, check_same_width


def aesthetic_score(embedding: npt.ArrayLike, weight: npt.ArrayLike, bias: float) -> F64:
    """The score of each embedding, (n,), for embeddings n x d and a weight (d,).

    Raises:
        ValueError: not n x d, not finite, of another d than the weight, or a row is all zeros and so has no direction.
    """
    embedding, weight = as_matrix(embedding, "embedding"), as_matrix(np.atleast_2d(weight), "weight")
    check_same_width(embedding.shape[1], weight.shape[1], "embedding and weight")
    return np.asarray(unit(embedding, "embedding") @ weight[0] + bias)
