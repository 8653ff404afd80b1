import numpy as np
import pytest

from sdbench.arrays import F64
from sdbench.metrics import kid as module
from sdbench.metrics import tiles

RANDOM = np.random.default_rng(0)
X, Y = RANDOM.normal(size=(9, 4)), RANDOM.normal(size=(7, 4)) + 0.5


def kid(x: F64, y: F64, degree: int = 3) -> float:
    return module.kid(x, y, degree)[0]


def kid_by_loops(x: F64, y: F64, degree: int) -> float:
    def k(a: F64, b: F64) -> float:
        return float((a @ b / len(a) + 1) ** degree)

    within_x = [k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j]
    within_y = [k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j]
    return float(np.mean(within_x) + np.mean(within_y) - 2 * np.mean([k(a, b) for a in x for b in y]))


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_kid_equals_the_double_loop(degree: int) -> None:
    assert kid(X, Y, degree) == pytest.approx(kid_by_loops(X, Y, degree), rel=1e-12)


def test_kid_does_not_depend_on_the_tile_size(monkeypatch: pytest.MonkeyPatch) -> None:
    value, influence = module.kid(X, Y)
    monkeypatch.setattr(tiles, "_TILE", 20)
    monkeypatch.setattr(tiles, "_COLUMNS", 3)
    assert kid(X, Y) == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(module.kid(X, Y)[1], influence, rtol=1e-9)


def test_kid_equals_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    tm = pytest.importorskip("torchmetrics.image.kid")
    same_n = RANDOM.normal(size=(9, 4))  # torchmetrics needs equal n
    assert kid(X, same_n) == pytest.approx(float(tm.poly_mmd(torch.from_numpy(X), torch.from_numpy(same_n))), rel=1e-9)


def test_kid_of_degree_one_is_the_squared_mean_shift_without_its_bias() -> None:
    shift = X.mean(axis=0) - Y.mean(axis=0)
    bias = sum(np.trace(np.cov(features, rowvar=False)) / len(features) for features in (X, Y))
    assert kid(X, Y, degree=1) == pytest.approx((shift @ shift - bias) / 4)


def test_kid_is_unbiased_at_small_n() -> None:
    random = np.random.default_rng(1)
    values = [kid(random.normal(size=(5, 3)), random.normal(size=(6, 3))) for _ in range(1500)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(len(values))
    assert min(values) < 0


def test_kid_is_symmetric_and_larger_for_other_distributions() -> None:
    random = np.random.default_rng(2)
    a, b = random.normal(size=(2, 100, 4))
    assert kid(X, Y) == pytest.approx(kid(Y, X))
    assert kid(a, b + 1) > 0.3 > abs(kid(a, b))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, Y[:, :3], "same dimension, found 4 and 3"),
        (X[:1], Y, "x must have at least 2"),
        (X, Y[:0], "y must have at least 2"),
        (X[0], Y, "n x d"),
    ],
)
def test_invalid_features_are_rejected(x: F64, y: F64, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kid(x, y)


# Influence


def draw(n: int, seed: int, shift: float = 0.0) -> F64:
    return np.random.default_rng(seed).normal(size=(n, 8)) + shift


@pytest.mark.parametrize("degree", [1, 3])
def test_influence_is_the_change_from_leaving_an_image_out(degree: int) -> None:
    """It is (n - 1) (KID - KID without i) up to a factor (n - 1) / (n - 2); its mean is zero, as KID is an average over pairs."""
    x, y = draw(30, 1, 0.5), draw(40, 2)
    n, value = len(x), kid(x, y, degree)
    changes = np.array([(n - 1) * (value - kid(np.delete(x, row, axis=0), y, degree)) for row in range(n)])
    np.testing.assert_allclose(module.kid(x, y, degree)[1], changes, rtol=0.15, atol=0.02 * np.abs(changes).max())


def test_standard_error_matches_repeated_draws() -> None:
    y = draw(300, 0)
    found = [module.kid(draw(100, seed, 0.5), y) for seed in range(1, 201)]
    spread = np.std([value for value, _ in found], ddof=1)
    from_influence = np.mean([influence.std(ddof=1) / np.sqrt(len(influence)) for _, influence in found])
    assert from_influence == pytest.approx(spread, rel=0.2)


def test_kid_of_several_images_of_a_prompt_pairs_different_prompts() -> None:
    prompts = [*"abcabc"]
    found, influence = module.kid(X[:6], Y, prompts=prompts)
    by_loops = [(X[i] @ X[j] / 4 + 1) ** 3 for i in range(6) for j in range(6) if prompts[i] != prompts[j]]
    within_y = [(a @ b / 4 + 1) ** 3 for i, a in enumerate(Y) for j, b in enumerate(Y) if i != j]
    across = np.mean([(a @ b / 4 + 1) ** 3 for a in X[:6] for b in Y])
    assert found == pytest.approx(np.mean(by_loops) + np.mean(within_y) - 2 * across)
    assert influence.mean() == pytest.approx(0, abs=1e-12)
    once, thrice = module.kid(X, Y), module.kid(np.tile(X, (3, 1)), Y, prompts=[*"abcdefghi"] * 3)
    assert thrice[0] == pytest.approx(once[0])
    np.testing.assert_allclose(thrice[1], np.tile(once[1], 3))
    with pytest.raises(ValueError, match="all 9 rows of x share one prompt"):
        module.kid(X, Y, prompts=["a"] * 9)
    for wrong in ([*"abcdabcd"], [*"abcdeabcde"], []):
        with pytest.raises(ValueError, match=f"each row of x must have a prompt, found 9 rows and {len(wrong)} prompts"):
            module.kid(X, Y, prompts=wrong)


def test_kid_of_several_images_of_a_prompt_is_computed_in_float64() -> None:
    features, prompts = X[:6].astype(np.float32), [*"abcabc"]
    exact = module.kid(features.astype(np.float64), Y, prompts=prompts)
    found = module.kid(features, Y, prompts=prompts)
    assert found[0] == pytest.approx(exact[0], rel=1e-12)
    np.testing.assert_allclose(found[1], exact[1], rtol=1e-11)


def test_kid_stays_unbiased_where_images_of_a_prompt_are_alike() -> None:
    random = np.random.default_rng(3)

    def draw() -> F64:
        return np.asarray(np.repeat(random.normal(size=(4, 3)), 3, axis=0) * 0.9 + np.sqrt(1 - 0.81) * random.normal(size=(12, 3)))

    drawn = [(draw(), random.normal(size=(6, 3))) for _ in range(1500)]
    apart = [module.kid(x, y, prompts=[*"aaabbbcccddd"])[0] for x, y in drawn]
    assert abs(np.mean(apart)) < 3 * np.std(apart) / np.sqrt(len(apart))
    assert np.mean([kid(x, y) for x, y in drawn]) > 0.2, "taken as independent"
