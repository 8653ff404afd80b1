import numpy as np
import numpy.typing as npt
import pytest

from sdbench.metrics.agreement import cosine_agreement

X = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, -2.0], [3.0, 4.0]])


def test_known_angles() -> None:
    y = np.array([[5.0, 0.0], [1.0, 0.0], [0.0, 7.0], [4.0, -3.0]])
    np.testing.assert_allclose(cosine_agreement(X, y), [1, np.sqrt(0.5), -1, 0], atol=1e-15)


def test_length_does_not_matter_and_ends_are_closed() -> None:
    features = np.random.default_rng(0).normal(size=(50, 30))
    assert (cosine_agreement(features, 1e-8 * features) <= 1).all()
    np.testing.assert_allclose(cosine_agreement(features, -1e6 * features), -1)


def test_rows_are_paired_by_position() -> None:
    assert cosine_agreement(X, X).min() == pytest.approx(1)
    assert cosine_agreement(X, X[::-1]).max() < 1


def test_half_precision_is_taken_in_double() -> None:
    row = np.full((1, 40_000), 60.0, np.float16)  # its squared norm overflows float16
    assert cosine_agreement(row, row) == pytest.approx(1)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, X[:2], r"same shape, found \(4, 2\) and \(2, 2\)"),
        (X, np.zeros((4, 2)), "y has 4 of 4 rows of zeros"),
        (X[0], X[0], "n x d"),
        (X, np.full((4, 2), np.nan), "y must be finite"),
    ],
)
def test_bad_features_are_refused(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cosine_agreement(x, y)
