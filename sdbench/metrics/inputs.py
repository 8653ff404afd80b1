"""Checks of the arrays given to metrics: two dimensions, finite numbers, matching widths. Bad input is refused, never repaired."""

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64


def as_matrix(features: npt.ArrayLike, name: str) -> F64:
    """Features as float64, n x d.

    Raises:
        ValueError: not two-dimensional, or not finite.
    """
    array = np.asarray(features, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"{name} must be n x d, found shape {array.shape}")
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array).all(axis=1))
        raise ValueError(f"{name} must be finite, found NaN or infinity in {len(bad)} of {len(array)} rows, the first is row {bad[0]}")
    return array


def check_same_width(x: int, y: int, names: str) -> None:
    """Check that two sets have features of the same dimension.

    Raises:
        ValueError: their dimensions differ.
    """
    if x != y:
        raise ValueError(f"{names} must have the same dimension, found {x} and {y}")


def check_at_least(n: int, smallest: int, name: str) -> None:
    """Check that a set is large enough.

    Raises:
        ValueError: it has fewer rows than `smallest`.
    """
    if n < smallest:
        raise ValueError(f"{name} must have at least {smallest} rows, found {n}")
