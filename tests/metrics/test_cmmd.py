"""CMMD: against the double loop, by the direction of its changes, and its standard error against repeated draws."""

import numpy as np
import pytest

from sdbench.arrays import F64
from sdbench.metrics import tiles
from sdbench.metrics.cmmd import cmmd


def draw(n: int, seed: int, shift: float = 0.0, d: int = 8) -> F64:
    """Rows of length 1, as embeddings have."""
    rows = np.random.default_rng(seed).normal(size=(n, d)) + shift
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def cmmd_by_loops(x: F64, y: F64) -> float:
    def mean_kernel(one: F64, other: F64) -> float:
        return float(np.mean([[np.exp(-((a - b) @ (a - b)) / (2 * 10**2)) for b in other] for a in one]))

    return 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


def test_cmmd_equals_the_double_loop() -> None:
    x, y = draw(12, 1, 0.5), draw(9, 2)
    assert cmmd(x, y)[0] == pytest.approx(cmmd_by_loops(x, y), rel=1e-9)
    assert cmmd(x.astype(np.float32), y.astype(np.float32))[0] == pytest.approx(cmmd_by_loops(x, y), rel=1e-5)


def test_cmmd_of_two_points() -> None:
    x, y = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]])
    assert cmmd(x, y)[0] == pytest.approx(2000 * (1 - np.exp(-0.01)))


def test_cmmd_does_not_depend_on_the_tile_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(41, 1, 0.5), draw(33, 2)
    value, influence = cmmd(x, y)
    monkeypatch.setattr(tiles, "_TILE", 200)
    monkeypatch.setattr(tiles, "_COLUMNS", 7)
    assert cmmd(x, y)[0] == pytest.approx(value, rel=1e-9)
    np.testing.assert_allclose(cmmd(x, y)[1], influence, atol=1e-9)


def test_cmmd_is_zero_for_the_same_set_and_larger_for_others() -> None:
    x, same, near, far = draw(200, 1), draw(200, 2), draw(200, 2, 0.2), draw(200, 2, 1.0)
    assert cmmd(x, x)[0] == pytest.approx(0, abs=1e-10)
    assert cmmd(x, same)[0] < cmmd(x, near)[0] / 2 < cmmd(x, far)[0] / 4
    assert cmmd(x, far)[0] == pytest.approx(cmmd(far, x)[0])


def test_mode_collapse_is_worse_than_the_same_distribution() -> None:
    real, same = draw(200, 1), draw(200, 2)
    assert cmmd(np.repeat(same[:2], 100, axis=0), real)[0] > 5 * cmmd(same, real)[0]


def test_influence_is_the_derivative_by_the_weight_of_an_image() -> None:
    x, y = draw(6, 1, 0.5), draw(7, 2)
    value, influence = cmmd(x, y)
    copies = 200
    for row in range(len(x)):
        heavier = np.concatenate([np.repeat(x, copies, axis=0), x[row : row + 1]])
        slope = (cmmd(heavier, y)[0] - value) * len(heavier)
        assert influence[row] == pytest.approx(slope, rel=2e-2, abs=1e-3)


def test_standard_error_matches_repeated_draws() -> None:
    y = draw(300, 0)
    found = [cmmd(draw(100, seed, 0.5), y) for seed in range(1, 201)]
    spread = np.std([value for value, _ in found], ddof=1)
    from_influence = np.mean([influence.std(ddof=1) / np.sqrt(len(influence)) for _, influence in found])
    assert from_influence == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (draw(5, 1)[:, :3], draw(5, 2), "same dimension, found 3 and 8"),
        (draw(5, 1)[:0], draw(5, 2), "x must have at least 1"),
        (draw(5, 1), draw(5, 2)[:0], "y must have at least 1"),
        (draw(5, 1)[0], draw(5, 2), r"x must be n x d, found shape \(8,\)"),
        (draw(5, 1), np.full((5, 8), np.inf), "y must be finite, found NaN or infinity in 5 of 5 rows, the first is row 0"),
    ],
)
def test_invalid_embeddings_are_rejected(x: F64, y: F64, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cmmd(x, y)
