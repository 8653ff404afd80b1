"""Products of all pairs of rows in float64, a tile at a time: neither n x m numbers nor a copy of the features is ever held."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sdbench.arrays import F64

Features = npt.NDArray[np.floating]
_TILE, _COLUMNS = 2**23, 4096  # a tile takes 64 MiB, as does a float64 copy of 4096 x 2048 features


def rows_and_squares(features: npt.ArrayLike, name: str) -> tuple[Features, F64]:
    """Features, n x d in their own precision, and the squared length of each row, (n,).

    Raises:
        ValueError: not n x d, or not finite.
    """
    array: Features = np.asarray(features)
    if array.ndim != 2:
        raise ValueError(f"{name} must be n x d, found shape {array.shape}")
    squares = np.einsum("nd,nd->n", array, array, dtype=np.float64)
    if (bad := np.flatnonzero(~np.isfinite(squares))).size:
        raise ValueError(f"{name} must be finite, found NaN or infinity in {len(bad)} of {len(array)} rows, the first is row {bad[0]}")
    return array, squares


def products(x: Features, y: Features) -> Iterator[tuple[slice, F64]]:
    """The product X Y^T for x, n x d, and y, m x d: slices of the n rows, each with its tile, rows x m."""
    height = max(1, _TILE // len(y))
    for start in range(0, len(x), height):
        part = x[start : start + height].astype(np.float64)
        tile = np.empty((len(part), len(y)))
        for column in range(0, len(y), _COLUMNS):
            tile[:, column : column + _COLUMNS] = part @ y[column : column + _COLUMNS].T.astype(np.float64)
        yield slice(start, start + len(part)), tile
