import numpy as np
import pytest

from sdbench.arrays import F64
from sdbench.metrics import frechet_infinity as module
from sdbench.metrics.frechet import Gaussian, frechet_distance, gaussian
from sdbench.metrics.frechet_infinity import frechet_infinity

D = 6
UNIT = Gaussian(np.zeros(D), np.eye(D), 10**6)


def draw(n: int, seed: int, stretch: float = 1.0, shift: float = 0.0) -> F64:
    return stretch * np.random.default_rng(seed).normal(size=(n, D)) + shift


def test_extrapolation_removes_the_bias_of_the_distance() -> None:
    truth = D * (1.3 - 1) ** 2 + D * 0.1**2
    sets = [draw(60, seed, stretch=1.3, shift=0.1) for seed in range(120)]
    distances = np.array([frechet_distance(gaussian(features), UNIT) for features in sets])
    extrapolated = np.array([frechet_infinity(features, UNIT).value for features in sets])
    assert distances.mean() - truth > 6 * distances.std() / np.sqrt(120)
    assert abs(extrapolated.mean() - truth) < 3 * extrapolated.std() / np.sqrt(120)


def test_value_between_equal_distributions_is_zero_on_average() -> None:
    values = [frechet_infinity(draw(90, seed), UNIT).value for seed in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)
    assert min(values) < 0


def test_parabola_in_one_over_n_is_extrapolated_up_to_its_curvature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "frechet", lambda x, _: (3 + 50 / len(x) + 700 / len(x) ** 2, np.full(len(x), 1 / len(x))))
    found = frechet_infinity(draw(60, 1), UNIT)
    assert found.value + found.curvature == pytest.approx(3)
    assert found.curvature == pytest.approx(2 * 700 / 60**2)
    assert found.influence == pytest.approx(2 / 60 - 1 / 30)  # the line's coefficients, as in the value


def test_influence_predicts_the_change_from_moving_an_image() -> None:
    features = draw(240, 1)
    found = frechet_infinity(features, UNIT)
    assert found.influence.mean() == pytest.approx(0, abs=1e-9)
    for i in (3, 77, 200):
        moved = features.copy()
        moved[i] *= 1.001
        change = 240 * (frechet_infinity(moved, UNIT).value - found.value)
        assert change == pytest.approx(frechet_infinity(moved, UNIT).influence[i] - found.influence[i], rel=0.1, abs=1e-3)


def test_same_images_give_the_same_value() -> None:
    assert frechet_infinity(draw(40, 1), UNIT).value == frechet_infinity(draw(40, 1), UNIT).value


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (draw(14, 1), "features .2.5 d: .* must have at least 15 rows, found 14"),
        (draw(20, 1)[:, :5], "same dimension, found 5 and 6"),
        (np.full((20, D), np.nan), "NaN or infinity in 20 of 20 rows"),
    ],
)
def test_invalid_features_are_rejected(features: F64, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_infinity(features, UNIT)
