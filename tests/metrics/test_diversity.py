from itertools import combinations

import numpy as np
import pytest

from sdbench.arrays import F64
from sdbench.metrics.cosine import cosine
from sdbench.metrics.diversity import mean_distance_within

GROUPS = ["b", "a", "b", "a", "a", "b", "b"]


def test_mean_over_a_prompt_is_the_mean_over_its_pairs() -> None:
    features = np.random.default_rng(0).normal(size=(7, 5))
    found = mean_distance_within(features, GROUPS)
    for group in "ab":
        rows = [row for row, name in enumerate(GROUPS) if name == group]
        pairs = [1 - cosine(features[[i]], features[[j]])[0] for i, j in combinations(rows, 2)]
        assert found[rows].mean() == pytest.approx(np.mean(pairs), abs=1e-14)


def test_known_angles() -> None:
    features = np.array([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0], [1.0, 0.0], [5.0, 0.0]])
    half = 1 - np.sqrt(0.5)
    np.testing.assert_allclose(
        mean_distance_within(features, ["a", "a", "a", "b", "b"]), [(1 + half) / 2, (1 + half) / 2, half, 0, 0], atol=1e-15
    )


@pytest.mark.parametrize(
    ("features", "groups", "message"),
    [
        (np.ones((3, 2)), ["a", "b", "a"], "1 groups have a single row, the first is 'b'"),
        (np.ones((3, 2)), ["a", "a"], "found 3 rows and 2 groups"),
        (np.zeros((2, 2)), ["a", "a"], "2 of 2 rows of zeros"),
        (np.full((2, 2), np.nan), ["a", "a"], "features must be finite"),
        (np.ones(2), ["a", "a"], "n x d"),
    ],
)
def test_invalid_features_are_rejected(features: F64, groups: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_distance_within(features, groups)
