"""Cosines of embeddings, row by row: agreement of two models, CLIP scores, and human-preference proxies of CLIP's shape.

    cosine(x, y) = x . y / (|x| |y|)          score = scale * cosine(image, caption)          (higher is better)

Agreement compares two images of the same prompt and noise; it is 1 where the student drew what the teacher drew. It says how near they
are, not how good. A CLIP score has scale 100 (Hessel et al. 2021, without their factor 2.5, their prefix "A photo depicts", and clipping
at 0, which hides how bad a bad image is). PickScore v1 (Kirstain et al. 2023) has the model's own scale, about 100: exp(a) / (exp(a) +
exp(b)) is the probability that people prefer image a, so only differences on one prompt mean anything. HPS v2.1 (Wu et al. 2023) has
scale 100, as in `evaluate_benchmark` of its code (its `score` leaves the 100 out). Values of different backbones or versions are not
comparable.
"""

import math

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics.inputs import as_matrix


def cosine(x: npt.ArrayLike, y: npt.ArrayLike) -> F64:
    """The cosine of each row of x with the same row of y, (n,) in -1..1; both are n x d, normalised or not.

    Raises:
        ValueError: not n x d, not finite, the shapes differ, or a row is all zeros and so has no direction.
    """
    x, y = as_matrix(x, "x"), as_matrix(y, "y")
    if x.shape != y.shape:
        raise ValueError(f"paired features must have the same shape, found {x.shape} and {y.shape}")
    return np.asarray((unit(x, "x") * unit(y, "y")).sum(axis=1).clip(-1, 1))


def caption_score(image: npt.ArrayLike, text: npt.ArrayLike, scale: float = 100.0) -> F64:
    """`scale` times the cosine of each image with its caption, (n,), for embeddings n x d of both.

    `scale` is the factor itself, not its logarithm, which checkpoints store.

    Raises:
        ValueError: see `cosine`; or the scale is not positive and finite.
    """
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, found {scale}")
    return scale * cosine(image, text)


def unit(features: F64, name: str) -> F64:
    """The rows of features, n x d, at length 1.

    Raises:
        ValueError: a row is all zeros.
    """
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if (zeros := np.flatnonzero(norms == 0)).size:
        raise ValueError(f"{name} has {zeros.size} of {len(features)} rows of zeros, the first is row {zeros[0]}: they have no direction")
    return np.asarray(features / norms)
