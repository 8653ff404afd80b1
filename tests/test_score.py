"""From images to values, with fake evaluators: a metric that fails loses only itself."""

import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import IMAGES, METRICS, PROMPTS, colours, letters, replace_towers
from subjects import make_subject

from sdbench.arrays import F32, U8
from sdbench.encoders import inference, scenes
from sdbench.encoders.catalogue import TOWERS
from sdbench.encoders.inference import device
from sdbench.errors import MissingError, UserError
from sdbench.protocols.base import Subject
from sdbench.records import Scores, Value
from sdbench.reference import cards
from sdbench.score import score

pytestmark = pytest.mark.usefixtures("fake_evaluators")


def scenes_subject(folder: Path, images: U8 = IMAGES, **changes: Any) -> Subject:
    return make_subject(folder, images, PROMPTS, reference="scenes", **changes)


def score_values(subject: Subject, *metrics: str) -> dict[str, Value]:
    return {value.name: value for value in score(subject, metrics or METRICS)[0]}


def test_every_metric_has_a_value_an_interval_and_a_score_column(tmp_path: Path) -> None:
    teacher = Scores([f"p{index}" for index in range(5, -1, -1)], [0] * 6, {"preference.scenes": np.array([99, -99, -99, -99, 99, -99.0])})
    values, scores = score(scenes_subject(tmp_path, teacher_scores=teacher), METRICS[::-1])  # a win rate before its judge's scores
    for value in values:
        assert value.state == "ok", value
        assert value.n == 6
        assert value.low is not None
        assert value.high is not None
        assert value.value is not None
        assert value.low <= value.value <= value.high
    found = {value.name: value for value in values}
    assert found.keys() == set(METRICS)
    assert found["scene_accuracy"].value == 1
    assert found["win_rate.preference.scenes"].value == pytest.approx(4 / 6)
    assert found["win_rate.preference.scenes"].note == "4 wins, 0 ties, 2 losses"
    assert scores.columns["win_rate.preference.scenes"].tolist() == [1, 0, 1, 1, 1, 0], "paired by prompt, not by row"
    assert found["fd.scenes"].note == "descriptive only, since n = 6 < 5 d = 30 for d features"
    assert found["fd.scenes"].reference
    assert set(scores.columns) == {"fd.scenes:influence", *METRICS} - {"fd.scenes"}
    assert all(len(column) == 6 and np.isfinite(column).all() for column in scores.columns.values())
    expected = (
        100
        * (colours(IMAGES) * letters(PROMPTS)).sum(1)
        / np.linalg.norm(colours(IMAGES), axis=1)
        / np.linalg.norm(letters(PROMPTS), axis=1)
    )
    np.testing.assert_allclose(scores.columns["clip_score.scenes"], expected, rtol=1e-5)
    assert found["clip_score.scenes"].value == pytest.approx(expected.mean(), rel=1e-5)


def test_scene_accuracy_counts_whole_scenes(tmp_path: Path) -> None:
    images = np.concatenate([IMAGES[:3], 255 - IMAGES[3:]])
    values, scores = score(scenes_subject(tmp_path, images), ["scene_accuracy"])
    assert values[0].value == 0.5
    assert scores.columns["scene_accuracy"].tolist() == [1, 1, 1, 0, 0, 0]


def test_distance_of_the_reference_to_itself_is_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "_render_scenes", lambda _: IMAGES)
    monkeypatch.setattr(cards, "_first_scenes_digest", lambda: "")  # kept for the process
    monkeypatch.setattr(cards, "SCENES_N", 6)
    found = score_values(scenes_subject(tmp_path), "fd.scenes")["fd.scenes"]
    assert found.value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "error", [ValueError("not finite"), RuntimeError("out of memory"), KeyError("who knows"), UserError("weights were changed")]
)
def test_failing_metric_is_reported_and_the_others_continue(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: U8) -> None:
        raise error

    replace_towers(monkeypatch, "clip.scenes", images=broken)
    found = score_values(scenes_subject(tmp_path, is_teacher=True))
    assert found["clip_score.scenes"].state == "failed"
    assert type(error).__name__ in found["clip_score.scenes"].reason
    assert str(error) in found["clip_score.scenes"].reason
    assert found["clip_score.scenes"].value is None
    assert {name for name, value in found.items() if value.state == "ok"} == {"fd.scenes", "preference.scenes", "scene_accuracy"}


@pytest.mark.parametrize("has_failed", [True, False])
def test_scoring_ends_where_the_gpu_has_failed(has_failed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call on it raises the error from then on, so that all later metrics would be recorded as failed."""

    def synchronize(_: torch.device) -> None:
        if has_failed:
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be")

    def broken(_: U8) -> None:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm")

    monkeypatch.setattr("sdbench.score.device", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    replace_towers(monkeypatch, "clip.scenes", images=broken)
    subject = scenes_subject(tmp_path, is_teacher=True)
    if has_failed:
        said = r"the GPU failed while clip_score\.scenes was measured \(AcceleratorError: CUDA error: an .* encountered\); run again"
        with pytest.raises(UserError, match=said):
            score(subject, METRICS)
    else:
        states = {name: value.state for name, value in score_values(subject).items()}
        assert (states["clip_score.scenes"], states["preference.scenes"]) == ("failed", "ok")


@pytest.mark.parametrize("fits", [True, False])
def test_metric_that_runs_out_of_memory_is_measured_once_more_without_the_other_evaluators(
    fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []

    def encode(images: U8) -> F32:
        activations = colours(images)
        if fits and events:
            assert events[0]() is None, "what the first try had in memory is still there"
            return activations
        events.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it")

    def release() -> None:
        events.append("released")
        inference.release_evaluators()

    monkeypatch.setattr("sdbench.score.release_evaluators", release)
    replace_towers(monkeypatch, "clip.scenes", images=encode)
    found = score_values(scenes_subject(tmp_path, is_teacher=True))
    assert events[1] == "released"
    assert {found[name].state for name in ("fd.scenes", "preference.scenes", "scene_accuracy")} == {"ok"}
    if fits:
        assert (found["clip_score.scenes"].state, events[2:]) == ("ok", [])
    else:
        assert (found["clip_score.scenes"].state, len(events)) == ("failed", 3)
        assert found["clip_score.scenes"].reason == (
            f"TooLittleMemoryError: too little memory on {device()} to measure clip_score.scenes (CUDA out of memory. Tried to allocate "
            "2.00 GiB.); "
            "free some of it and run again, which keeps the images, or use a device with more"
        )


def test_a_metric_without_weights_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise MissingError("go online once")

    monkeypatch.setitem(TOWERS, "clip.scenes", absent)
    found = score_values(scenes_subject(tmp_path), "clip_score.scenes", "scene_accuracy")
    assert (found["clip_score.scenes"].state, found["clip_score.scenes"].reason) == ("missing", "go online once")
    assert found["scene_accuracy"].state == "ok"


def test_nan_features_fail_and_never_become_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan(images: U8) -> F32:
        return colours(images) * np.float32(np.nan)

    monkeypatch.setattr(scenes, "features", nan)
    replace_towers(monkeypatch, "clip.scenes", images=nan)
    replace_towers(monkeypatch, "preference.scenes", images=nan)
    found = score_values(scenes_subject(tmp_path))
    assert {name for name, value in found.items() if value.state == "ok"} == {"scene_accuracy"}
    assert [found[name].state for name in METRICS[:3]] == ["failed"] * 3


def test_win_rate_needs_a_teacher_and_does_not_apply_to_the_teacher(tmp_path: Path) -> None:
    pair = ("preference.scenes", "win_rate.preference.scenes")
    alone = score_values(scenes_subject(tmp_path / "alone"), *pair)["win_rate.preference.scenes"]
    assert (alone.state, alone.value) == ("missing", None)
    assert "teacher" in alone.reason
    teacher = score_values(scenes_subject(tmp_path / "teacher", is_teacher=True), *pair)["win_rate.preference.scenes"]
    assert teacher.state == "not_applicable"
    failed = Scores([f"p{index}" for index in range(6)], [0] * 6, {})
    without = score_values(scenes_subject(tmp_path / "without", teacher_scores=failed), *pair)["win_rate.preference.scenes"]
    assert without.state == "missing"


def test_one_image_has_no_distance_and_its_mean_no_interval(tmp_path: Path) -> None:
    found = score_values(scenes_subject(tmp_path, IMAGES[:1]))
    assert found["fd.scenes"].state == "not_applicable"
    assert "at least 2 images, found 1" in found["fd.scenes"].reason
    assert found["clip_score.scenes"].state == "ok"
    assert (found["clip_score.scenes"].low, found["clip_score.scenes"].high) == (None, None)
    assert found["scene_accuracy"].low == pytest.approx(0.2065, abs=1e-4)  # Wilson's interval of 1 out of 1


@pytest.mark.parametrize("kind", ["black", "white", "noise", "inverted"])
def test_any_8_bit_images_can_be_scored(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, IMAGES.shape, dtype=np.uint8)
    images = {"black": IMAGES * np.uint8(0), "white": IMAGES | np.uint8(255), "noise": noise, "inverted": 255 - IMAGES}[kind]
    found = score_values(scenes_subject(tmp_path, images, is_teacher=True), *METRICS)
    assert found["scene_accuracy"].value == 0
    assert found["fd.scenes"].value is not None
    assert found["fd.scenes"].value > 0.01
    if kind != "black":  # whose fake features are zero and have no direction
        assert {value.state for value in found.values()} == {"ok", "not_applicable"}


def test_unreadable_image_stops_the_run_before_any_metric(tmp_path: Path) -> None:
    broken = scenes_subject(tmp_path)
    broken.store.path("3").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"images/3\.png cannot be read"):
        score(broken, METRICS)
