"""Agreement of two models on the same prompt and noise, picture by picture: cosines of features.

1 = the student drew what the teacher drew. It says how near, not how good: a student can differ and be better.
"""

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64
from sdbench.metrics.inputs import matrix


def cosine_agreement(x: npt.ArrayLike, y: npt.ArrayLike) -> F64:
    """Cosine of each row of x with the same row of y, n x d and n x d => (n,) in -1..1; higher is nearer.

    Raises:
        ValueError: not n x d, not finite, other shapes, or a row of zeros, which has no direction.
    """
    x, y = matrix(x, "x"), matrix(y, "y")
    if x.shape != y.shape:
        raise ValueError(f"paired features must have the same shape, found {x.shape} and {y.shape}")
    return np.asarray((_unit(x, "x") * _unit(y, "y")).sum(axis=1).clip(-1, 1))


def _unit(features: F64, name: str) -> F64:
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    if (zeros := np.flatnonzero(norms == 0)).size:
        raise ValueError(
            f"{name} has {zeros.size} of {len(features)} rows of zeros, the first is row {zeros[0]}: a cosine needs a direction"
        )
    return np.asarray(features / norms)
