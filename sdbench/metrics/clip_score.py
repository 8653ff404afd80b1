"""CLIP score: how well each image fits its caption, on the scale 100 * cosine.

Source: Hessel et al. 2021, without their factor 2.5 and without clipping at 0, since either hides how bad a bad image is.
The backbone is part of the protocol's name (`clip_score.vit-l-14`); values of two backbones are not comparable.
"""

import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics.agreement import cosine_agreement


def clip_score(image: npt.ArrayLike, text: npt.ArrayLike) -> F64:
    """100 * cosine of image and caption embeddings, n x d and n x d, normalised or not => (n,); higher is better.

    Raises:
        ValueError: not n x d, not finite, other shapes, or a row of zeros.
    """
    return 100 * cosine_agreement(image, text)
