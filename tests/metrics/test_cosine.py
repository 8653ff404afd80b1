import math

import numpy as np
import numpy.typing as npt
import pytest

from sdbench.metrics.cosine import caption_score, cosine

X = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, -2.0], [3.0, 4.0]])


def test_cosine_of_known_angles() -> None:
    y = np.array([[5.0, 0.0], [1.0, 0.0], [0.0, 7.0], [4.0, -3.0]])
    np.testing.assert_allclose(cosine(X, y), [1, np.sqrt(0.5), -1, 0], atol=1e-15)


def test_cosine_ignores_length_and_stays_in_range() -> None:
    features = np.random.default_rng(0).normal(size=(50, 30))
    assert (cosine(features, 1e-8 * features) <= 1).all()
    assert (cosine(features, -1e6 * features) >= -1).all()
    np.testing.assert_allclose(cosine(features, -1e6 * features), -1)


def test_rows_are_paired_by_position() -> None:
    assert cosine(X, X).min() == pytest.approx(1)
    assert cosine(X, X[::-1]).max() < 1


def test_half_precision_is_computed_in_double() -> None:
    row = np.full((1, 40_000), 60.0, np.float16)  # its squared norm overflows float16
    assert cosine(row, row) == pytest.approx(1)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, X[:2], r"same shape, found \(4, 2\) and \(2, 2\)"),
        (X, np.zeros((4, 2)), "y has 4 of 4 rows of zeros"),
        (X[0], X[0], "n x d"),
        (X, np.full((4, 2), np.nan), "y must be finite"),
    ],
)
def test_invalid_features_are_rejected(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cosine(x, y)


def test_caption_score_is_the_scaled_cosine_not_clipped_at_zero() -> None:
    text = np.array([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [1.0, 0.0]])
    np.testing.assert_allclose(caption_score(X, text), [-100, 100 * np.sqrt(0.5), 100, 60])
    np.testing.assert_allclose(caption_score(X, text, 0.5), caption_score(X, text) / 200)


def test_caption_score_equals_the_formula_of_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    image, text = np.random.default_rng(0).normal(size=(2, 6, 16))
    expected = 100 * torch.nn.functional.cosine_similarity(torch.from_numpy(image), torch.from_numpy(text))
    np.testing.assert_allclose(caption_score(image, text), expected.numpy(), rtol=1e-12)


def test_softmax_over_two_images_of_a_prompt_prefers_the_nearer() -> None:
    far, near = caption_score([[3.0, 4.0], [0.0, 1.0]], [[1.0, 2.0]] * 2, scale=10.0)
    assert far > near  # [3, 4] lies nearer to [1, 2] than [0, 1] does
    assert math.exp(far) / (math.exp(far) + math.exp(near)) > 0.7


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf])
def test_invalid_scale_is_rejected(scale: float) -> None:
    with pytest.raises(ValueError, match="scale must be positive and finite"):
        caption_score(X, X, scale)
