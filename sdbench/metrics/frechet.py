"""Frechet distance between Gaussians fitted to two sets of features.

    d(x, y) = |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (S_y^1/2 S_x S_y^1/2)^1/2         (lower is better, 0 = same moments)

Source: Dowson and Landau 1982; Heusel et al. 2017 (FID). Unit: squared feature units. Bias: upward, about 1/n, and still
moving at n = 10 d, so values at unequal n are not comparable. The general matrix square root is never taken: with
factors S_x = A A^T and S_y = B B^T the last trace is the nuclear norm (sum of singular values) of A^T B. A set of n <= d
images is a factor of its own, so that A^T B has only n rows; above that the norm is the sum of the roots of the
eigenvalues of B^T S_x B, which is symmetric.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from sdbench.arrays import F64
from sdbench.metrics.inputs import at_least, matrix, same_width

_BLOCK_ROWS = 4096  # a float64 copy of 4096 x 2048 features takes 64 MiB


@dataclass(frozen=True, eq=False)
class Gaussian:
    """First two moments of n features: mean (d,), covariance (d, d) with n - 1 in the denominator.

    Attributes:
        rows: n x d, the centred features over sqrt(n - 1), where n <= d and they are at hand: then S = rows^T rows.
    """

    mean: F64
    covariance: F64
    n: int
    rows: F64 | None = None

    @cached_property
    def factor(self) -> F64:
        """B with B B^T = covariance, d x d and lower triangular; taken once, however many sets are compared with this one.

        Cholesky's, or through eigh where the covariance is singular (one dead feature is enough).
        """
        try:
            root = np.linalg.cholesky(self.covariance)
        except np.linalg.LinAlgError:
            eigenvalues, vectors = np.linalg.eigh(self.covariance)
            root = np.linalg.qr((vectors * np.sqrt(eigenvalues.clip(0))).T).R.T
        return np.asarray(root, np.float64)


class Moments:
    """Mean and covariance of features that arrive in batches, in float64.

    Each batch is centred on its own mean and then merged (Chan, Golub and LeVeque 1983), so a large common offset costs
    no digits, and the result does not depend on how the features are split.
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))  # sum of (x - mean) (x - mean)^T

    def add(self, features: npt.ArrayLike) -> None:
        """Take in a batch, n x d of any float type; a batch of 0 rows changes nothing.

        Raises:
            ValueError: not n x d, not finite, or of another d than before.
        """
        batch = matrix(features, "features")
        if len(batch) == 0:
            return
        if self.n == 0:
            d = batch.shape[1]
            self._mean, self._scatter = np.zeros(d), np.zeros((d, d))
        same_width(batch.shape[1], len(self._mean), "a batch and those before it")
        mean = batch.mean(axis=0)
        centred, shift, total = batch - mean, mean - self._mean, self.n + len(batch)
        self._scatter += centred.T @ centred + np.outer(shift, shift) * (self.n * len(batch) / total)
        self._mean += shift * (len(batch) / total)
        self.n = total

    def gaussian(self) -> Gaussian:
        """The moments so far.

        Raises:
            ValueError: fewer than 2 rows.
        """
        at_least(self.n, 2, "features")
        return Gaussian(self._mean.copy(), self._scatter / (self.n - 1), self.n)


def gaussian(features: npt.ArrayLike) -> Gaussian:
    """Moments of features, n x d.

    Raises:
        ValueError: not n x d, not finite, or n < 2.
    """
    array, moments = np.asarray(features), Moments()
    if array.ndim != 2:
        raise ValueError(f"features must be n x d, found shape {array.shape}")
    for start in range(0, len(array), _BLOCK_ROWS):
        moments.add(array[start : start + _BLOCK_ROWS])
    made = moments.gaussian()
    if made.n > len(made.mean):
        return made
    return replace(made, rows=(array - made.mean) / np.sqrt(made.n - 1))


def frechet_distance(x: Gaussian, y: Gaussian) -> float:
    """Distance between two Gaussians of the same d; right for singular covariances and n < d too.

    Where many sets are compared with one, that one is best the y: its factor is kept.

    Raises:
        ValueError: their dimensions differ.
    """
    same_width(len(x.mean), len(y.mean), "x and y")
    shift = x.mean - y.mean
    traces = np.trace(x.covariance) + np.trace(y.covariance)
    return max(0.0, float(shift @ shift + traces - 2 * _root_trace(x, y)))


def _root_trace(x: Gaussian, y: Gaussian) -> float:
    """Trace of (S_y^1/2 S_x S_y^1/2)^1/2."""
    if x.rows is None and y.rows is not None:
        x, y = y, x
    if x.rows is not None:
        return float(np.linalg.svd(_cross(x.rows, y), compute_uv=False).sum())
    return float(np.sqrt(np.linalg.eigvalsh(_symmetrised(x, y)).clip(0)).sum())  # rounding can push a zero below zero


def frechet(features: npt.ArrayLike, reference: Gaussian) -> tuple[float, F64]:
    """Distance of a set of features, n x d, to a reference, and the first-order influence of each row on it => (n,), mean zero.

    With c_i = x_i - m, the distance has gradient 2 (m - m_r) in the mean and G = I - B (B^T S B)^-1/2 B^T in the
    covariance (B B^T = S_r), so that

        influence_i = 2 (m - m_r) . c_i + (c_i^T G c_i - mean_j c_j^T G c_j) n / (n - 1)

    is the derivative of the reported distance by the weight of image i. The inverse is a pseudo-inverse: c_i lies in the
    range of S, so nothing is lost where S is singular. The standard error of the distance *at this n* is
    std(influence, ddof=1) / sqrt(n); the difference of two columns serves the paired difference of two distances. It
    is too wide rather than too narrow (ratio to the true deviation about 1.1 at n = 30 d, 1.3 at 3 d), and blind to the bias.
    Source: the delta method (von Mises 1947; Hampel 1974) on the formula above.

    Raises:
        ValueError: not n x d, not finite, n < 2, or of another d than the reference.
    """
    features = matrix(features, "features")
    own = gaussian(features)
    return frechet_distance(own, reference), _influence(features, own, reference)


def paired(x: npt.ArrayLike, y: npt.ArrayLike) -> tuple[float, F64]:
    """Distance of two sets drawn in pairs, n x d each, and the first-order influence of each pair on it => (n,), mean zero.

    Both sides are samples: the influence of a pair is the sum of its two, and its spread over pairs is the error.

    Raises:
        ValueError: not n x d, not finite, n < 2, or of other shapes.
    """
    x, y = matrix(x, "x"), matrix(y, "y")
    one, other = gaussian(x), gaussian(y)
    return frechet_distance(one, other), _influence(x, one, other) + _influence(y, other, one)


def _influence(features: F64, own: Gaussian, reference: Gaussian) -> F64:
    """Of each row on the distance of its set, whose moments are `own`, to the reference => (n,), by the formula of `frechet`."""
    centred = features - own.mean
    quadratic = (centred**2).sum(axis=1) - _bent(own, centred, reference)
    linear = 2 * centred @ (own.mean - reference.mean)
    return np.asarray(linear + (quadratic - quadratic.mean()) * (own.n / (own.n - 1)))


def _bent(own: Gaussian, centred: F64, reference: Gaussian) -> F64:
    """c_i^T B (B^T S B)^-1/2 B^T c_i => (n,); with K = rows B, where there are rows, (n - 1) times the diagonal of (K K^T)^1/2."""
    if own.rows is not None:
        cross = _cross(own.rows, reference)
        eigenvalues, vectors = np.linalg.eigh(cross @ cross.T)
        return np.asarray((own.n - 1) * (vectors**2 @ np.sqrt(eigenvalues.clip(0))))
    eigenvalues, vectors = np.linalg.eigh(_symmetrised(own, reference))
    kept = eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues[-1]
    projected = centred @ (reference.factor @ (vectors[:, kept] * eigenvalues[kept] ** -0.25))
    return np.asarray((projected**2).sum(axis=1))


def _cross(rows: F64, y: Gaussian) -> F64:
    """Rows times a factor of y's covariance, the one with fewer columns."""
    return np.asarray(rows @ (y.factor if y.rows is None else y.rows.T))


def _symmetrised(x: Gaussian, y: Gaussian) -> F64:
    """B^T S_x B, of which only the lower triangle is filled in; at half the work of two products."""
    product, _ = lapack.dsygst(x.covariance, y.factor, itype=2, lower=1)
    return np.asarray(product)
