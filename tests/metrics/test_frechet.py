import tracemalloc
from dataclasses import replace
from typing import Any

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdbench.arrays import F64
from sdbench.metrics import frechet as module
from sdbench.metrics.frechet import Gaussian, Moments, frechet, frechet_distance, gaussian


def draw(n: int, d: int, seed: int = 0) -> F64:
    """Correlated features with a mean."""
    random = np.random.default_rng(seed)
    return random.normal(size=(n, d)) @ random.normal(size=(d, d)) + random.normal(size=d)


def with_dead_feature(features: F64) -> F64:
    return np.insert(features, 1, 0.0, axis=1)


def weighted_distance(features: F64, weights: F64, reference: Gaussian) -> float:
    """Distance of a weighted set; equal weights give the covariance with n - 1."""
    n, mean = len(features), weights @ features
    centred = features - mean
    return frechet_distance(Gaussian(mean, (centred.T * weights) @ centred * n / (n - 1), n), reference)


# Closed forms


@pytest.mark.parametrize(("m1", "s1", "m2", "s2"), [(0.0, 1.0, 0.0, 1.0), (1.5, 2.0, -0.5, 3.0), (0.0, 0.0, 2.0, 4.0)])
def test_distance_in_one_dimension(m1: float, s1: float, m2: float, s2: float) -> None:
    x, y = Gaussian(np.array([m1]), np.array([[s1**2]]), 9), Gaussian(np.array([m2]), np.array([[s2**2]]), 9)
    assert frechet_distance(x, y) == pytest.approx((m1 - m2) ** 2 + (s1 - s2) ** 2, abs=1e-12)


def test_distance_of_commuting_covariances() -> None:
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]
    a, b = np.array([1.0, 2.0, 0.5, 3.0]), np.array([2.0, 2.0, 1.5, 0.1])
    x, y = (Gaussian(np.zeros(4), rotation @ np.diag(deviation**2) @ rotation.T, 9) for deviation in (a, b))
    assert frechet_distance(x, y) == pytest.approx(((a - b) ** 2).sum())


def test_shift_of_the_mean_adds_its_squared_length() -> None:
    features, shift = draw(50, 3), np.array([1.0, -2.0, 0.5])
    assert frechet_distance(gaussian(features), gaussian(features + shift)) == pytest.approx((shift**2).sum())


def test_scaling_a_set_scales_its_deviation() -> None:
    features = draw(50, 3) - draw(50, 3).mean(axis=0)
    expected = 0.25 * np.trace(gaussian(features).covariance)
    assert frechet_distance(gaussian(features), gaussian(1.5 * features)) == pytest.approx(expected)


# Other implementations


@pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning")  # clean-fid passes it, SciPy >= 1.17 warns
def test_distance_equals_cleanfid_and_torchmetrics() -> None:
    fid = pytest.importorskip("cleanfid.fid")
    torch = pytest.importorskip("torch")
    tm = pytest.importorskip("torchmetrics.image.fid")
    x, y = gaussian(draw(90, 12, seed=1)), gaussian(draw(70, 12, seed=2))
    moments = (x.mean, x.covariance, y.mean, y.covariance)
    assert frechet_distance(x, y) == pytest.approx(fid.frechet_distance(*moments), rel=1e-9)
    assert frechet_distance(x, y) == pytest.approx(float(tm._compute_fid(*map(torch.from_numpy, moments))), rel=1e-9)


def distance_in_fifty_digits(x: F64, y: F64) -> float:
    """The definition, with matrix square roots, in 50 digits."""
    with mpmath.workdps(50):

        def moments(features: F64) -> tuple[Any, Any]:
            rows = mpmath.matrix(features.tolist())
            mean = sum((rows[i, :] for i in range(1, len(features))), rows[0, :]) / len(features)
            centred = rows - mpmath.ones(len(features), 1) * mean
            return mean, centred.T * centred / (len(features) - 1)

        def root(matrix: Any) -> Any:
            values, vectors = mpmath.eigsy((matrix + matrix.T) / 2)
            return vectors * mpmath.diag([mpmath.sqrt(max(value, 0)) for value in values]) * vectors.T

        (mean, s_x), (other, s_y) = moments(x), moments(y)
        half = root(s_y)
        inner = s_x + s_y - 2 * root(half * s_x * half)
        return float(mpmath.norm(mean - other) ** 2 + sum(inner[i, i] for i in range(len(inner))))


SINGULAR = {
    "n, m > d": (draw(40, 6, seed=1), draw(30, 6, seed=2)),
    "n = d": (draw(6, 6, seed=1), draw(30, 6, seed=2)),
    "n < d": (draw(4, 6, seed=1), draw(30, 6, seed=2)),
    "n, m < d": (draw(4, 6, seed=1), draw(3, 6, seed=2)),
    "n = m = 2": (draw(2, 6, seed=1), draw(2, 6, seed=2)),
    "dead feature": (with_dead_feature(draw(40, 5, seed=1)), with_dead_feature(draw(30, 5, seed=2))),
    "doubled feature": (draw(40, 3, seed=1).repeat(2, axis=1), draw(30, 6, seed=2)),
    "one image over and over": (np.tile(draw(1, 6, seed=1), (20, 1)), draw(30, 6, seed=2)),
    "scales from 1e-6 to 1e3": (draw(40, 6, seed=1) * np.logspace(-6, 3, 6), draw(30, 6, seed=2) * np.logspace(-6, 3, 6)),
}


@pytest.mark.parametrize("case", SINGULAR)
def test_distance_equals_the_definition_in_fifty_digits(case: str) -> None:
    x, y = SINGULAR[case]
    expected, scale = distance_in_fifty_digits(x, y), float(np.trace(gaussian(x).covariance + gaussian(y).covariance))
    without_rows = Gaussian(gaussian(y).mean, gaussian(y).covariance, len(y))  # as reference statistics are
    assert frechet_distance(gaussian(x), gaussian(y)) == pytest.approx(expected, abs=1e-7 * scale)
    assert frechet_distance(gaussian(x), without_rows) == pytest.approx(expected, abs=1e-7 * scale)
    assert frechet_distance(without_rows, gaussian(x)) == pytest.approx(expected, abs=1e-7 * scale)


def test_distance_with_fewer_rows_than_dimensions_is_exact() -> None:
    x, y, many = draw(8, 20, seed=1), draw(9, 20, seed=2), draw(30, 20, seed=3)
    assert frechet_distance(gaussian(x), gaussian(y)) == pytest.approx(distance_in_fifty_digits(x, y), rel=1e-13)
    expected = distance_in_fifty_digits(x, many)
    assert frechet_distance(gaussian(x), gaussian(many)) == pytest.approx(expected, rel=1e-13)
    assert frechet_distance(gaussian(many), gaussian(x)) == pytest.approx(expected, rel=1e-13)


def test_factor_of_the_reference_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, cholesky = [], np.linalg.cholesky

    def counted(covariance: F64) -> Any:
        calls.append(1)
        return cholesky(covariance)

    monkeypatch.setattr(np.linalg, "cholesky", counted)
    reference = gaussian(draw(50, 6))
    for seed in range(4):
        frechet_distance(gaussian(draw(30, 6, seed)), reference)
        frechet_distance(gaussian(draw(5, 6, seed)), reference)
        frechet(draw(30, 6, seed), reference)
    assert len(calls) == 1


@pytest.mark.parametrize("covariance", [np.cov(draw(30, 5).T), np.cov(draw(3, 5).T), np.zeros((5, 5))], ids=["full", "singular", "zero"])
def test_factor_is_triangular_and_multiplies_to_the_covariance(covariance: F64) -> None:
    factor = Gaussian(np.zeros(5), covariance, 30).factor
    np.testing.assert_allclose(factor @ factor.T, covariance, atol=1e-12 * np.abs(covariance).max())
    np.testing.assert_array_equal(np.triu(factor, 1), 0)


# Properties


@pytest.mark.parametrize(
    ("features", "share"),
    [(draw(60, 7), 1e-6), (draw(5, 7), 1e-13), (with_dead_feature(draw(60, 7)), 1e-6)],
    ids=["full", "n<d", "dead feature"],
)
def test_self_distance_is_zero(features: F64, share: float) -> None:
    scale = float(np.trace(gaussian(features).covariance))
    assert 0 <= frechet_distance(gaussian(features), gaussian(features)) < share * scale


@pytest.mark.parametrize("n", [4, 60])
def test_distance_is_symmetric(n: int) -> None:
    x, y = gaussian(draw(n, 6, seed=1)), gaussian(draw(50, 6, seed=2))
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-7)


def test_dead_feature_does_not_change_the_distance() -> None:
    x, y = draw(60, 5, seed=1), draw(50, 5, seed=2)
    expected = frechet_distance(gaussian(x), gaussian(y))
    assert frechet_distance(gaussian(with_dead_feature(x)), gaussian(with_dead_feature(y))) == pytest.approx(expected, rel=1e-7)


def test_collapse_and_noise_are_worse_than_the_same_distribution() -> None:
    reference, same = gaussian(draw(400, 6)[:200]), draw(400, 6)[200:]
    collapsed, noise = np.repeat(same[:2], 100, axis=0), same + 3 * np.random.default_rng(1).normal(size=same.shape)
    good, *bad = (frechet_distance(gaussian(features), reference) for features in (same, collapsed, noise))
    assert min(bad) > 5 * good


# Moments


@given(splits=st.lists(st.integers(0, 30), max_size=5), offset=st.sampled_from([0.0, 1e6]))
@settings(max_examples=40, deadline=None)
def test_streamed_moments_equal_those_of_one_batch(splits: list[int], offset: float) -> None:
    features = draw(30, 4) + offset
    moments = Moments()
    for batch in np.split(features, sorted(splits)):
        moments.add(batch)
    streamed = moments.gaussian()
    assert streamed.n == 30
    np.testing.assert_allclose(streamed.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(streamed.covariance, np.cov(features, rowvar=False), rtol=1e-7)


def test_covariance_keeps_its_digits_at_a_large_offset() -> None:
    features = np.array([[1e8 + 1.0], [1e8 + 2.0], [1e8 + 3.0]])
    assert gaussian(features).covariance == pytest.approx(1.0, rel=1e-12)


def test_half_precision_is_summed_in_double() -> None:
    features = np.full((3000, 1), 60000.0, np.float16)
    assert gaussian(features).mean[0] == 60000.0 - 60000 % 32
    assert gaussian(features).covariance[0, 0] == 0


def test_memory_does_not_grow_with_n() -> None:
    def peak(n: int) -> int:
        features = np.ones((n, 64), np.float16)
        tracemalloc.start()
        frechet_distance(gaussian(features), Gaussian(np.zeros(64), np.eye(64), 9))
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    assert peak(16 * 4096) < 1.05 * peak(2 * 4096)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros(4), r"n x d, found shape \(4,\)"),
        (np.array([[0.0], [np.nan]]), "1 of 2 rows, the first is row 1"),
        (np.array([[np.inf], [0.0]]), "first is row 0"),
        (np.zeros((1, 3)), "at least 2 rows, found 1"),
    ],
)
def test_invalid_features_are_rejected(features: F64, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gaussian(features)


def test_different_dimensions_are_rejected() -> None:
    x, y = draw(9, 2), draw(9, 3)
    moments = Moments()
    moments.add(x)
    for call in (
        lambda: frechet_distance(gaussian(x), gaussian(y)),
        lambda: frechet(x, gaussian(y)),
        lambda: moments.add(y),
    ):
        with pytest.raises(ValueError, match=r"same dimension, found [23] and [23]"):
            call()


# Influence


@pytest.mark.parametrize(("n", "m"), [(6, 50), (6, 8), (40, 8)])
def test_influence_is_the_same_with_and_without_rows(n: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, reference = draw(n, 10, seed=1), gaussian(draw(m, 10, seed=2))
    _, with_rows = frechet(features, reference)
    without_rows = Gaussian(reference.mean, reference.covariance, m)
    monkeypatch.setattr(module, "gaussian", lambda rows: replace(gaussian(rows), rows=None))
    np.testing.assert_allclose(frechet(features, without_rows)[1], with_rows, rtol=1e-5, atol=1e-5 * np.abs(with_rows).max())


@pytest.mark.parametrize("case", ["full", "dead feature"])
def test_influence_is_the_derivative_by_an_images_weight(case: str) -> None:
    features, other = draw(25, 4, seed=1), draw(40, 4, seed=2)
    if case == "dead feature":
        features, other = with_dead_feature(features), with_dead_feature(other)
    reference, step, equal = gaussian(other), 1e-5, np.full(25, 1 / 25)
    _, influence = frechet(features, reference)
    for i in (0, 7, 24):
        toward = np.eye(25)[i] - equal
        ahead, behind = (weighted_distance(features, equal + sign * step * toward, reference) for sign in (1, -1))
        assert influence[i] == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-5)


def test_influence_with_fewer_rows_than_dimensions_is_the_derivative() -> None:
    features, reference = draw(6, 10, seed=1), gaussian(draw(50, 10, seed=2))
    equal, step = np.full(6, 1 / 6), 1e-4
    toward = np.eye(6)[2] - equal
    ahead, behind = (weighted_distance(features, equal + sign * step * toward, reference) for sign in (1, -1))
    assert frechet(features, reference)[1][2] == pytest.approx((ahead - behind) / (2 * step), rel=1e-3)


def test_influence_agrees_with_the_jackknife() -> None:
    features, reference = draw(300, 3, seed=1), gaussian(draw(300, 3, seed=2))
    distance, influence = frechet(features, reference)
    jackknife = np.array([299 * (distance - frechet_distance(gaussian(np.delete(features, i, axis=0)), reference)) for i in range(300)])
    assert np.corrcoef(influence, jackknife)[0, 1] > 0.999
    assert influence.std() == pytest.approx(jackknife.std(), rel=0.03)


def test_influence_has_mean_zero_and_finds_the_outlier() -> None:
    features = draw(60, 4, seed=1)
    features[17] += 30
    _, influence = frechet(features, gaussian(draw(60, 4, seed=2)))
    assert influence.mean() == pytest.approx(0, abs=1e-9 * np.abs(influence).max())
    assert influence.argmax() == 17


def test_standard_error_matches_repeated_sampling() -> None:
    random, n, d = np.random.default_rng(4), 200, 3
    reference = Gaussian(np.zeros(d), np.eye(d), 10_000)
    distances, errors = [], []
    for _ in range(300):
        features = random.normal(size=(n, d)) * [1.0, 2.0, 0.5] + [0.5, 0.0, 0.0]
        distance, influence = frechet(features, reference)
        distances.append(distance)
        errors.append(influence.std(ddof=1) / np.sqrt(n))
    assert np.mean(errors) / np.std(distances) == pytest.approx(1.0, abs=0.15)
