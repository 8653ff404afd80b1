import math

import numpy as np
import pytest

from sdbench.arrays import F64
from sdbench.metrics.imagereward import MEAN, STD, reward

WEIGHT = np.array([1.0, -2.0])


def test_reward_is_affine_and_standardised() -> None:
    features = np.array([[3.0, 4.0], [0.0, 0.0], [MEAN, -STD / 2]])
    np.testing.assert_allclose(reward(features, WEIGHT, 5.0) * 1.0333394966054072 + 0.16717362830052426, [0, 5, 5 + MEAN + STD])
    assert reward(features[2:], WEIGHT, 0.0) == pytest.approx(1)


def test_difference_of_one_is_the_preference_that_the_page_states() -> None:
    """By the loss of the authors' `train.py`, the cross-entropy of the two scores before they are standardised."""
    better, worse = (x * STD + MEAN for x in reward([[1.5 * STD], [0.5 * STD]], [1.0], 0.0))
    assert round(100 * math.exp(better) / (math.exp(better) + math.exp(worse))) == 74


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones((2, 3)), "features and weight must have the same dimension, found 3 and 2"),
        (np.full((2, 2), np.nan), "features must be finite"),
        (np.ones(2), "n x d"),
    ],
)
def test_invalid_features_are_rejected(features: F64, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward(features, WEIGHT, 5.0)
