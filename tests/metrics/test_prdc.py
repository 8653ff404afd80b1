"""Precision, recall, density and coverage: against the definitions, pair by pair, and on data that must lower each of them."""

import numpy as np
import pytest

from sdbench.arrays import F32, F64
from sdbench.metrics import tiles
from sdbench.metrics.prdc import prdc

NAMES = ("precision", "recall", "density", "coverage")


def draw(n: int, seed: int, d: int = 3, shift: float = 0.0) -> F64:
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def values(generated: F32 | F64, real: F32 | F64, k: int = 5) -> dict[str, float]:
    return {name: value for name, (value, _) in prdc(generated, real, k).items()}


def by_definition(generated: F64, real: F64, k: int) -> dict[str, float]:
    """Naeem et al. 2020, equations 1 to 4, in loops."""

    def radii(points: F64) -> list[float]:
        return [sorted(np.linalg.norm(points - point, axis=1))[k] for point in points]

    real_radii, generated_radii = radii(real), radii(generated)
    inside = [[np.linalg.norm(y - x) < r for y, r in zip(real, real_radii, strict=True)] for x in generated]
    recalled = [any(np.linalg.norm(y - x) < r for x, r in zip(generated, generated_radii, strict=True)) for y in real]
    return {
        "precision": float(np.mean([any(row) for row in inside])),
        "recall": float(np.mean(recalled)),
        "density": float(np.sum(inside) / (k * len(generated))),
        "coverage": float(np.mean([any(column) for column in zip(*inside, strict=True)])),
    }


@pytest.mark.parametrize(("n", "m", "k"), [(30, 30, 5), (25, 40, 3), (40, 20, 1)])
def test_prdc_equals_the_definitions(n: int, m: int, k: int) -> None:
    generated, real = draw(n, 1, shift=0.5), draw(m, 2)
    assert values(generated, real, k) == pytest.approx(by_definition(generated, real, k))


def test_prdc_does_not_depend_on_the_scale_of_the_features() -> None:
    real = draw(30, 2)
    generated = np.concatenate([real[:10], draw(15, 1)])  # copies lie in even the smallest ball
    assert values(generated / 1024, real / 1024) == values(generated, real)


def test_prdc_does_not_depend_on_the_tile_size(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, real = draw(41, 1, shift=0.5), draw(33, 2)
    expected = prdc(generated, real)
    monkeypatch.setattr(tiles, "_TILE", 200)
    monkeypatch.setattr(tiles, "_COLUMNS", 7)
    for name, (value, influence) in prdc(generated, real).items():
        assert value == expected[name][0]
        np.testing.assert_array_equal(influence, expected[name][1])


@pytest.mark.parametrize("k", [1, 3])
def test_influence_is_the_change_from_leaving_an_image_out(k: int) -> None:
    generated, real = np.concatenate([draw(20, 1, 2, 0.5), draw(6, 3, 2, 4.0)]), draw(40, 2, 2)
    n, found = len(generated), prdc(generated, real, k)
    without = [values(np.delete(generated, i, axis=0), real, k) for i in range(n)]
    for name, (value, influence) in found.items():
        changes = np.array([(n - 1) * (value - left[name]) for left in without])
        np.testing.assert_allclose(influence, changes - changes.mean(), atol=1e-9, err_msg=name)
        assert np.ptp(influence) > 0, name


# Directions: each fault lowers the values that it should, and leaves the others.


def test_all_four_are_near_one_for_the_same_distribution() -> None:
    found = values(draw(300, 1), draw(300, 2))
    assert min(found.values()) > 0.85


def test_mode_collapse_keeps_precision_and_loses_recall_and_coverage() -> None:
    real = draw(300, 2)
    collapsed = real[np.linalg.norm(real, axis=1).argmin()] + 0.01 * draw(300, 1)
    found = values(collapsed, real)
    assert found["precision"] == 1
    assert found["density"] > 1
    assert found["recall"] < 0.05
    assert found["coverage"] < 0.1


def test_wrong_images_lose_precision_and_density_before_recall_and_coverage() -> None:
    real, good = draw(300, 2), draw(300, 1)
    half_wrong = np.concatenate([good[:150], draw(150, 3, shift=20.0)])
    found = values(half_wrong, real)
    assert found["precision"] < 0.55
    assert found["density"] < 0.65
    assert found["recall"] > 0.8
    assert found["coverage"] > 0.8


def test_missing_mode_loses_recall_and_coverage_but_not_precision() -> None:
    real = np.concatenate([draw(150, 1), draw(150, 2, shift=20.0)])
    found = values(draw(300, 3), real)
    assert found["precision"] > 0.9
    assert found["recall"] < 0.55
    assert found["coverage"] < 0.55


def test_all_four_are_zero_for_distant_distributions() -> None:
    assert values(draw(50, 1, shift=50.0), draw(50, 2)) == dict.fromkeys(NAMES, 0)


def test_all_four_are_zero_for_equal_rows_as_their_balls_are_empty() -> None:
    same = np.repeat(draw(1, 1, d=40), 20, axis=0).astype(np.float32)
    assert values(same, same) == dict.fromkeys(NAMES, 0)


def test_float32_features_are_computed_in_double() -> None:
    generated, real = (draw(30, seed, shift=1000.0).astype(np.float32) for seed in (1, 2))
    assert values(generated, real) == values(generated.astype(np.float64), real.astype(np.float64))


@pytest.mark.parametrize(
    ("generated", "real", "message"),
    [
        (draw(6, 1), draw(20, 2), "generated must have at least 7 rows, found 6"),
        (draw(20, 1), draw(6, 2), "real must have at least 7 rows, found 6"),
        (draw(20, 1, d=2), draw(20, 2), "same dimension, found 2 and 3"),
        (draw(20, 1)[0], draw(20, 2), r"generated must be n x d, found shape \(3,\)"),
        (draw(20, 1), draw(20, 2) * np.nan, "real must be finite, found NaN or infinity in 20 of 20 rows"),
    ],
)
def test_invalid_features_are_rejected(generated: F64, real: F64, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prdc(generated, real)


def test_prdc_equals_the_original_implementation() -> None:
    peer = pytest.importorskip("prdc", reason="prdc is in the dependency group `peers`")
    generated, real = draw(200, 1, d=16, shift=0.3).astype(np.float32), draw(180, 2, d=16).astype(np.float32)
    assert values(generated, real) == pytest.approx(peer.compute_prdc(real, generated, nearest_k=5))
