"""The influence of an image on KID: the derivative, and its standard error against repeated draws."""

import numpy as np
import numpy.typing as npt
import pytest

from sdbench.metrics.kid import kid
from sdbench.metrics.mmd import kid_influence

F64 = npt.NDArray[np.float64]


def draw(n: int, seed: int, shift: float = 0.0) -> F64:
    return np.random.default_rng(seed).normal(size=(n, 8)) + shift


@pytest.mark.parametrize("degree", [1, 3])
def test_leaving_a_picture_out_changes_kid_by_its_influence(degree: int) -> None:
    """Exactly (n - 1) (KID - KID without i), whose mean is zero since KID is an average over pairs, but for a factor (n - 1) / (n - 2)."""
    x, y = draw(30, 1, 0.5), draw(40, 2)
    n, value = len(x), kid(x, y, degree)
    changes = np.array([(n - 1) * (value - kid(np.delete(x, row, axis=0), y, degree)) for row in range(n)])
    np.testing.assert_allclose(kid_influence(x, y, degree), changes, rtol=0.15, atol=0.02 * np.abs(changes).max())


def test_the_standard_error_is_that_of_repeated_draws() -> None:
    y = draw(300, 0)
    found = [(kid(x := draw(100, seed, 0.5), y), kid_influence(x, y)) for seed in range(1, 201)]
    spread = np.std([value for value, _ in found], ddof=1)
    stated = np.mean([influence.std(ddof=1) / np.sqrt(len(influence)) for _, influence in found])
    assert stated == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize(
    ("x", "y", "message"), [(draw(1, 1), draw(9, 2), "x must have at least 2"), (draw(9, 1)[:, :3], draw(9, 2), "found 3 and 8")]
)
def test_bad_features_are_refused(x: F64, y: F64, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kid_influence(x, y)
