"""Frechet distance between Gaussians fitted to two sets of features.

    d(x, y) = |m_x - m_y|^2 + tr S_x + tr S_y - 2 tr (S_y^1/2 S_x S_y^1/2)^1/2         (lower is better, 0 = same moments)

Source: Dowson and Landau 1982; Heusel et al. 2017 (FID). Unit: squared feature units. Bias: upward, about 1/n, and still
moving at n = 10 d, so values at unequal n are not comparable. The general matrix square root is never taken: with any
factor L L^T = S_y the last trace is the sum of the square roots of the eigenvalues of L^T S_x L, which is symmetric.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sdbench.metrics.inputs import F64, at_least, matrix, same_width

_BLOCK_ROWS = 4096  # a float64 copy of 4096 x 2048 features takes 64 MiB


@dataclass(frozen=True, eq=False)
class Gaussian:
    """First two moments of n features: mean (d,), covariance (d, d) with n - 1 in the denominator."""

    mean: F64
    covariance: F64
    n: int


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
    rows, moments = np.asarray(features), Moments()
    if rows.ndim != 2:
        raise ValueError(f"features must be n x d, found shape {rows.shape}")
    for start in range(0, len(rows), _BLOCK_ROWS):
        moments.add(rows[start : start + _BLOCK_ROWS])
    return moments.gaussian()


def frechet_distance(x: Gaussian, y: Gaussian) -> float:
    """Distance between two Gaussians of the same d; right for singular covariances too.

    Raises:
        ValueError: their dimensions differ.
    """
    same_width(len(x.mean), len(y.mean), "x and y")
    factor = _factor(y.covariance)
    eigenvalues = np.linalg.eigvalsh(_symmetrised(factor, x.covariance))
    root_trace = np.sqrt(eigenvalues.clip(0)).sum()  # rounding can push a zero below zero
    return _assemble(x.mean - y.mean, float(np.trace(x.covariance) + np.trace(y.covariance)), float(root_trace))


def frechet_distance_small(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """The same distance straight from features, n x d and m x d; much the faster where n and m are at most d.

    With X, Y the centred features over sqrt(n - 1), sqrt(m - 1), S_x = X^T X and S_y = Y^T Y, and the trace of the root
    is the nuclear norm (sum of singular values) of X Y^T, which is n x m whatever d is.

    Raises:
        ValueError: not n x d, not finite, n or m < 2, or other widths.
    """
    x, y = matrix(x, "x"), matrix(y, "y")
    same_width(x.shape[1], y.shape[1], "x and y")
    at_least(len(x), 2, "x")
    at_least(len(y), 2, "y")
    x_centred = (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)
    y_centred = (y - y.mean(axis=0)) / np.sqrt(len(y) - 1)
    nuclear_norm = np.linalg.svd(x_centred @ y_centred.T, compute_uv=False).sum()
    return _assemble(x.mean(axis=0) - y.mean(axis=0), float((x_centred**2).sum() + (y_centred**2).sum()), float(nuclear_norm))


def influence(features: npt.ArrayLike, reference: Gaussian) -> F64:
    """First-order influence of each image on the distance of its set to the reference => (n,), mean zero.

    With c_i = x_i - m, the distance has gradient 2 (m - m_r) in the mean and G = I - L (L^T S L)^-1/2 L^T in the
    covariance (L L^T = S_r), so that

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
    same_width(features.shape[1], len(reference.mean), "features and reference")
    own = gaussian(features)
    centred = features - own.mean
    factor = _factor(reference.covariance)
    eigenvalues, vectors = np.linalg.eigh(_symmetrised(factor, own.covariance))
    kept = eigenvalues > len(eigenvalues) * np.finfo(np.float64).eps * eigenvalues[-1]
    projected = centred @ (factor @ (vectors[:, kept] * eigenvalues[kept] ** -0.25))
    quadratic = (centred**2).sum(axis=1) - (projected**2).sum(axis=1)
    linear = 2 * centred @ (own.mean - reference.mean)
    return np.asarray(linear + (quadratic - quadratic.mean()) * (own.n / (own.n - 1)))


def _factor(covariance: F64) -> F64:
    """L with L L^T = covariance: Cholesky's, or through eigh where the covariance is singular (one dead feature is enough)."""
    try:
        root = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        eigenvalues, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(eigenvalues.clip(0))
    return np.asarray(root, np.float64)


def _symmetrised(factor: F64, covariance: F64) -> F64:
    """L^T S L, symmetric to the last bit."""
    product = factor.T @ covariance @ factor
    return np.asarray((product + product.T) / 2)


def _assemble(mean_shift: F64, traces: float, root_trace: float) -> float:
    return max(0.0, float(mean_shift @ mean_shift) + traces - 2 * root_trace)
