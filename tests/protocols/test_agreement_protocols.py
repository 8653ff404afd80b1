"""Student against teacher: the same images agree fully, and missing data is reported."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import number
from scipy.ndimage import correlate1d
from subjects import make_subject
from synthetic_images import golden, noises, photographs
from torchmetrics.functional.image import structural_similarity_index_measure
from torchvision.models import alexnet

from sdbench.arrays import U8
from sdbench.assets import weights
from sdbench.encoders import perceptual, scenes
from sdbench.encoders.catalogue import TOWERS
from sdbench.errors import MissingError, UserError
from sdbench.metrics.frechet import paired
from sdbench.protocols import base
from sdbench.protocols.base import Subject
from sdbench.records import Value
from sdbench.scenes.grammar import parse, scene_at
from sdbench.scenes.render import render
from sdbench.score import PROTOCOLS, score
from sdbench.stats.intervals import standard_error_interval
from sdbench.store import Store

METRICS = [name for name in PROTOCOLS if name.startswith(("agreement.", "fd_to_teacher."))]
LOCAL = ["agreement.clip.scenes", "agreement.features.scenes", "agreement.ssim", "fd_to_teacher.scenes"]  # need no downloaded weights
PROMPTS = [scene_at(index, "heldout").caption for index in range(12)]
IMAGES = render([parse(prompt) for prompt in PROMPTS], range(12))


def subject(folder: Path, name: str, images: U8 = IMAGES, **changes: Any) -> Subject:
    return make_subject(folder, images, PROMPTS, name, **changes)


def pair(folder: Path, student: U8, teacher: U8 = IMAGES) -> Subject:
    return subject(folder, "student", student, teacher_images=subject(folder, "teacher", teacher))


def score_values(subject: Subject, metrics: list[str] = LOCAL) -> dict[str, Value]:
    return {value.name: value for value in score(subject, metrics)[0]}


def test_images_of_the_teacher_agree_fully(tmp_path: Path) -> None:
    values, scores = score(pair(tmp_path, IMAGES), LOCAL)
    assert [value.state for value in values] == ["ok"] * 4
    for name in LOCAL[:3]:
        np.testing.assert_allclose(scores.columns[name], 1, atol=1e-6)
    distance = values[-1]
    assert distance.value == pytest.approx(0, abs=1e-5)
    assert distance.note == "descriptive only, since n = 12 < 5 d = 320 for d features"
    assert (distance.low, distance.high) == pytest.approx((0, 0), abs=1e-4)


def test_more_different_images_have_lower_agreement_and_larger_distance(tmp_path: Path) -> None:
    rough = (IMAGES + np.random.default_rng(0).normal(0, 12, IMAGES.shape)).clip(0, 255).astype(np.uint8)
    near, far = score_values(pair(tmp_path / "near", rough)), score_values(pair(tmp_path / "far", 255 - IMAGES))
    for name in LOCAL:
        higher, lower = (near, far) if PROTOCOLS[name].direction == "higher" else (far, near)
        assert number(higher[name]) > number(lower[name]), name
        assert near[name].n == 12
        low, high = near[name].low, near[name].high
        assert low is not None
        assert high is not None
        assert low < number(near[name]) < high


def test_images_are_paired_by_prompt(tmp_path: Path) -> None:
    found = score_values(pair(tmp_path, IMAGES[::-1]))
    assert number(found["agreement.ssim"]) < 0.9
    assert found["fd_to_teacher.scenes"].value == pytest.approx(0, abs=1e-5)  # a distance of sets, which have no order


def test_images_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, sizes, read = score_values(pair(tmp_path, IMAGES[::-1])), set[int](), Store.read

    def recorded(store: Store, images: Sequence[str]) -> U8:
        sizes.add(len(images))
        return read(store, images)

    monkeypatch.setattr(base, "BLOCK", 5)
    monkeypatch.setattr(Store, "read", recorded)
    assert score_values(pair(tmp_path, IMAGES[::-1])) == expected
    assert sizes == {5, 2}


def test_agreement_is_missing_without_teacher_images_and_not_applicable_to_the_teacher(tmp_path: Path) -> None:
    alone = score_values(subject(tmp_path, "alone"), METRICS)
    assert {value.state for value in alone.values()} == {"missing"}
    assert "not in the run folder; run the teacher, then this model again" in alone["agreement.ssim"].reason
    teacher = score_values(subject(tmp_path, "teacher", is_teacher=True), METRICS)
    assert {value.state for value in teacher.values()} == {"not_applicable"}
    assert all(PROTOCOLS[name].against_teacher for name in METRICS)


def test_damaged_image_of_the_teacher_stops_the_run_before_any_metric(tmp_path: Path) -> None:
    """Running the student again would not make it anew."""
    student = replace(pair(tmp_path, IMAGES), teacher_name="sdxl under standard@1")
    assert student.teacher_images
    student.teacher_images.store.path("3").write_bytes(b"no image")
    with pytest.raises(
        UserError, match=r"images/3\.png cannot be read .*; delete it, and run sdxl under standard@1 again: only that image"
    ):
        score_values(student)


def test_nan_features_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = replace(scenes.clip(), images=lambda images: np.full((len(images), 4), np.nan))
    monkeypatch.setitem(TOWERS, "clip.scenes", lambda: nan)
    monkeypatch.setattr(perceptual, "_ssim", lambda a, _: torch.full((len(a),), torch.nan))
    found = score_values(pair(tmp_path, IMAGES))
    assert [found[name].state for name in LOCAL] == ["failed", "ok", "failed", "ok"]
    assert "must be a non-empty column of finite numbers, found shape (12,) with 12 not finite" in found["agreement.ssim"].reason


def test_distance_of_one_image_is_not_applicable(tmp_path: Path) -> None:
    found = score_values(pair(tmp_path, IMAGES[:1], IMAGES[:1]))
    assert found["fd_to_teacher.scenes"].state == "not_applicable"
    assert found["agreement.ssim"].state == "ok"


# Interval of the distance to the teacher


def test_influence_of_a_pair_is_the_change_from_leaving_it_out() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 5))
    y = x + rng.normal(0.4, 0.6, size=(400, 5))
    value, influence = paired(x, y)
    left_out = [paired(np.delete(x, row, 0), np.delete(y, row, 0))[0] for row in range(40)]
    np.testing.assert_allclose((value - np.array(left_out)) * 399, influence[:40], rtol=0.05, atol=0.05)


@pytest.mark.parametrize("n", [16, 512])
def test_interval_covers_the_expected_distance_of_paired_samples(n: int) -> None:
    """In at least 90.5 % of 200 repetitions, each with new pairs; at 95 % coverage, fewer happen once in 400 times."""
    rng, d = np.random.default_rng(n), 64
    mix = rng.normal(size=(d, d)) * np.logspace(0, -1, d) / np.sqrt(d)

    def draw() -> tuple[float, float]:
        x = rng.normal(size=(n, d))
        value, influence = paired((0.95 * x + 0.31 * rng.normal(size=(n, d)) + 0.05) @ mix, x @ mix)
        return value, standard_error_interval(value, influence).high - value

    values, halves = np.array([draw() for _ in range(200)]).T
    assert (np.abs(values - values.mean()) <= halves).mean() >= 0.905


# Pixels


def plain_ssim(x: U8, y: U8) -> float:
    """SSIM as in Wang et al. 2004, channel by channel, with the image reflected at its border."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()

    def blur(values: Any) -> Any:
        return correlate1d(correlate1d(values, window, axis=0, mode="mirror"), window, axis=1, mode="mirror")

    a, b = x.astype(float), y.astype(float)
    mean_a, mean_b = blur(a), blur(b)
    variances, covariance = blur(a * a) - mean_a**2 + blur(b * b) - mean_b**2, blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(((2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))).mean())


@pytest.mark.parametrize("name", golden())
def test_ssim_equals_the_paper_and_torchmetrics(name: str) -> None:
    x, y = golden()[name], golden()["photograph"]
    found = perceptual.ssim(x, y)[0]
    assert found == pytest.approx(plain_ssim(x[0], y[0]), abs=1e-9)
    a, b = (torch.from_numpy(side).permute(0, 3, 1, 2).double() for side in (x, y))
    theirs = structural_similarity_index_measure(a, b, data_range=255.0)
    assert isinstance(theirs, torch.Tensor)
    assert found == pytest.approx(theirs.item(), abs=1e-9)


def test_ssim_does_not_depend_on_the_batch() -> None:
    x, y = photographs(11, 48, 48), noises(11, 48, 48)
    np.testing.assert_allclose(
        perceptual.ssim(x, y), np.concatenate([perceptual.ssim(x[row : row + 1], y[row : row + 1]) for row in range(11)]), atol=1e-6
    )


@pytest.mark.parametrize("wrong", [(noises(2, 16, 16), noises(2, 16, 17)), (noises(2, 16, 16), noises(2, 16, 16) / 255)])
def test_invalid_pairs_of_images_are_rejected(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"one shape|uint8 RGB"):
        perceptual.ssim(*wrong)


def test_lpips_over_random_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    state = alexnet(weights=None).state_dict()
    torch.save(state, tmp_path / "alexnet.pth")
    monkeypatch.setattr(weights, "find", lambda _: tmp_path / "alexnet.pth")
    perceptual.network.cache_clear()
    x, y = photographs(9, 64, 64), noises(9, 64, 64)
    found = perceptual.lpips(x, y)
    np.testing.assert_allclose(found, perceptual.lpips(y, x), rtol=1e-5)
    np.testing.assert_array_equal(perceptual.lpips(x, x), 0)
    network = perceptual.build_lpips(state)
    assert torch.equal(dict(network.get_submodule("net").named_parameters())["slice5.10.weight"], state["features.10.weight"])
    first, second = (2 * torch.from_numpy(side[:1]).permute(0, 3, 1, 2).float() / 255 - 1 for side in (x, y))
    with torch.no_grad():
        assert found[0] == pytest.approx(network(first, second).item(), rel=1e-5)
    assert len(found) == 9
    assert (found > 0).all()
    perceptual.network.cache_clear()


def test_metrics_without_weights_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: str) -> Path:
        raise MissingError("go online once")

    monkeypatch.setattr(weights, "find", absent)
    found = score_values(pair(tmp_path, IMAGES), ["agreement.lpips", "agreement.ssim", "agreement.clip.vit-l-14"])
    states = {name: value.state for name, value in found.items()}
    assert states == {"agreement.clip.vit-l-14": "missing", "agreement.lpips": "missing", "agreement.ssim": "ok"}
