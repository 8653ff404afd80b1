import numpy as np
import pytest

from sdbench.metrics.clip_score import clip_score


def test_scale_is_a_hundred_times_the_cosine() -> None:
    image, text = np.array([[1.0, 0.0], [3.0, 4.0]]), np.array([[2.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(clip_score(image, text), [100, 60])


def test_opposites_are_not_clipped_at_zero() -> None:
    assert clip_score(np.array([[1.0, 0.0]]), np.array([[-1.0, 0.0]])) == pytest.approx(-100)


def test_equals_torchmetrics_formula_on_embeddings() -> None:
    torch = pytest.importorskip("torch")
    image, text = np.random.default_rng(0).normal(size=(2, 6, 16))
    theirs = 100 * torch.nn.functional.cosine_similarity(torch.from_numpy(image), torch.from_numpy(text))
    np.testing.assert_allclose(clip_score(image, text), theirs.numpy(), rtol=1e-12)
