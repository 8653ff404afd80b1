"""Human-preference proxies that are CLIP models tuned on people's choices between two images of one prompt.

PickScore v1 (Kirstain et al. 2023): the model's own logit scale times the cosine. exp(a) / (exp(a) + exp(b)) is the
probability that people prefer image a, so only differences on one prompt mean anything. HPS v2.1 (Wu et al. 2023): 100
times the cosine, as `evaluate_benchmark` of its code has it (its `score` leaves the 100 out); v2.0 and v2.1 do not compare.
"""

import math

import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics.agreement import cosine_agreement


def pickscore(image: npt.ArrayLike, text: npt.ArrayLike, logit_scale: float) -> F64:
    """Logits of image embeddings under their prompts', n x d and n x d => (n,); higher is better.

    `logit_scale` is the factor itself (about 100), not the logarithm that checkpoints store.

    Raises:
        ValueError: not n x d, not finite, other shapes, a row of zeros, or a scale that is not positive and finite.
    """
    if not (math.isfinite(logit_scale) and logit_scale > 0):
        raise ValueError(f"logit_scale must be positive and finite, found {logit_scale}")
    return logit_scale * cosine_agreement(image, text)


def hpsv2(image: npt.ArrayLike, text: npt.ArrayLike) -> F64:
    """100 * cosine of image embeddings and their prompts', n x d and n x d => (n,); higher is better.

    Raises:
        ValueError: not n x d, not finite, other shapes, or a row of zeros.
    """
    return 100 * cosine_agreement(image, text)
