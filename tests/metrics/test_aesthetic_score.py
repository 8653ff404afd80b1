import numpy as np
import pytest

from sdbench.arrays import F64
from sdbench.metrics.aesthetic import aesthetic_score

WEIGHT = np.array([1.0, -2.0])


def test_score_is_affine_in_the_direction_of_the_embedding() -> None:
    embeddings = np.array([[3.0, 4.0], [30.0, 40.0], [0.0, -0.1]])
    np.testing.assert_allclose(aesthetic_score(embeddings, WEIGHT, 5.0), [4, 4, 7])


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (np.zeros((2, 2)), "2 of 2 rows of zeros"),
        (np.ones((2, 3)), "embedding and weight must have the same dimension, found 3 and 2"),
        (np.full((2, 2), np.nan), "embedding must be finite"),
        (np.ones(2), "n x d"),
    ],
)
def test_invalid_embeddings_are_rejected(embedding: F64, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aesthetic_score(embedding, WEIGHT, 5.0)
