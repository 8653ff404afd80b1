"""From images to values to records, with fake evaluators."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import photographs, tiny
from fakes import IMAGES, METRICS, PROMPTS, SUITE, colours, fail_if_called, letters, modification_times, prepare_in, replace_towers
from PIL import Image
from processes import is_locked
from tiny import SIZE_PX, tiny_unet

from sdbench import api, cli, machine, records, suites
from sdbench.arrays import F32, U8
from sdbench.commands import measuring
from sdbench.disk import locked
from sdbench.encoders import scenes
from sdbench.encoders.catalogue import ENCODERS, TOWERS
from sdbench.encoders.clip import Clip
from sdbench.encoders.pixels import device
from sdbench.errors import MissingError, UserError
from sdbench.gate import compare
from sdbench.gate.compare import Side
from sdbench.gate.policy import Rule
from sdbench.leaderboard import standings, writing
from sdbench.metrics.cosine import caption_score
from sdbench.models.loading import load
from sdbench.models.spec import ModelSpec, resolve
from sdbench.probes import driver
from sdbench.probes.driver import ProbeResult
from sdbench.protocols.base import Subject
from sdbench.records import Model, NamedTeacher, Record, Scores, Value
from sdbench.records import files as record_files
from sdbench.reference import cards
from sdbench.reference.build import build, images_in_folder
from sdbench.run import external, recording, runner
from sdbench.run.context import prepare, store_and_jobs
from sdbench.scenes.grammar import parse
from sdbench.scenes.render import render
from sdbench.score import score
from sdbench.settings import Probes, Setting
from sdbench.store import Store
from sdbench.suites import Accept, Prompts, Suite, Teacher

pytestmark = pytest.mark.usefixtures("fake_evaluators")


def make_subject(folder: Path, images: U8 = IMAGES, **changes: Any) -> Subject:
    store = Store(folder / "runs", {"images": len(images)})
    names = [f"{index}" for index in range(len(images))]
    for name, image in zip(names, images, strict=True):
        store.put(name, image)
    subject = Subject(
        store, folder / "runs", names, [f"p{name}" for name in names], [0] * len(names), PROMPTS[: len(names)], reference="scenes"
    )
    return replace(subject, **changes)


def score_values(subject: Subject, *metrics: str) -> dict[str, Value]:
    return {value.name: value for value in score(subject, metrics or METRICS)[0]}


def test_every_metric_has_a_value_an_interval_and_a_score_column(tmp_path: Path) -> None:
    teacher = Scores([f"p{index}" for index in range(5, -1, -1)], [0] * 6, {"preference.scenes": np.array([99, -99, -99, -99, 99, -99.0])})
    values, scores = score(make_subject(tmp_path, teacher_scores=teacher), METRICS)
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
    values, scores = score(make_subject(tmp_path, images), ["scene_accuracy"])
    assert values[0].value == 0.5
    assert scores.columns["scene_accuracy"].tolist() == [1, 1, 1, 0, 0, 0]


def test_distance_of_the_reference_to_itself_is_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "_render_scenes", lambda _: IMAGES)
    monkeypatch.setattr(cards, "SCENES_N", 6)
    found = score_values(make_subject(tmp_path), "fd.scenes")["fd.scenes"]
    assert found.value == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    "error", [ValueError("not finite"), RuntimeError("out of memory"), KeyError("who knows"), UserError("weights were changed")]
)
def test_failing_metric_is_reported_and_the_others_continue(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: U8) -> None:
        raise error

    replace_towers(monkeypatch, "clip.scenes", images=broken)
    found = score_values(make_subject(tmp_path, is_teacher=True))
    assert found["clip_score.scenes"].state == "failed"
    assert type(error).__name__ in found["clip_score.scenes"].reason
    assert str(error) in found["clip_score.scenes"].reason
    assert found["clip_score.scenes"].value is None
    assert {name for name, value in found.items() if value.state == "ok"} == {"fd.scenes", "preference.scenes", "scene_accuracy"}


def test_a_metric_without_weights_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent() -> None:
        raise MissingError("go online once")

    monkeypatch.setitem(TOWERS, "clip.scenes", absent)
    found = score_values(make_subject(tmp_path), "clip_score.scenes", "scene_accuracy")
    assert (found["clip_score.scenes"].state, found["clip_score.scenes"].reason) == ("missing", "go online once")
    assert found["scene_accuracy"].state == "ok"


@pytest.mark.parametrize(
    ("error", "said"),
    [(MissingError("go online once"), "missing: go online once"), (ValueError("not finite"), "failed: ValueError: not finite")],
)
def test_nothing_is_recorded_where_no_metric_can_be_measured(
    error: Exception, said: str, teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent() -> None:
        raise error

    latency = Value(name="latency.pipeline.p50", kind="probe", direction="lower", unit="s", value=0.5)
    monkeypatch.setattr(driver, "measure", lambda specs, *_, **__: ProbeResult({spec.name: [latency] for spec in specs}, "turns"))
    monkeypatch.setitem(TOWERS, "clip.scenes", absent)
    suite = SUITE.model_copy(update={"metrics": {"scenes": ("clip_score.scenes",)}, "probes": Probes(rounds=1, calls=2, warmup=0)})
    (earlier,) = runner.run([teacher], prepare_in(tmp_path, suite, "probes"))
    with pytest.raises(UserError, match=rf"none of the 1 metrics of 'scenes-teacher' .*clip_score\.scenes, is {said}\. `sdbench doctor`"):
        runner.run([teacher], prepare_in(tmp_path, suite))
    assert records.folders(tmp_path / "results") == [earlier], "what an earlier run measured makes no record of this one"
    assert len(list((tmp_path / "runs").rglob("images/*.png"))) == 4, "the images are kept"


def test_record_says_whether_the_range_that_its_suite_accepts_was_reproduced(teacher: ModelSpec, tmp_path: Path) -> None:
    accept = Accept(name="Ours", source="", prompts="p", noise="n", statistics="s", ranges={"clip_score.scenes": (-100, 100)})
    (folder,) = runner.run([teacher], prepare_in(tmp_path, SUITE.model_copy(update={"accept": accept})))
    assert (score := records.read_record(folder).value("clip_score.scenes"))
    assert score.note == "Ours-like: other prompts, latent, statistics; within -100.0..100.0"


def test_teacher_is_recorded_where_a_suite_only_compares_with_it(teacher: ModelSpec, tmp_path: Path) -> None:
    suite = SUITE.model_copy(update={"metrics": {"scenes": ("agreement.ssim",)}})
    student = replace(teacher, name="student")
    found = [records.read_record(folder) for folder in runner.run([teacher, student], prepare_in(tmp_path, suite))]
    assert [value.state for record in found for value in record.values] == ["not_applicable", "ok"]


def test_nan_features_fail_and_never_become_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nan(images: U8) -> F32:
        return colours(images) * np.float32(np.nan)

    monkeypatch.setattr(scenes, "features", nan)
    replace_towers(monkeypatch, "clip.scenes", images=nan)
    replace_towers(monkeypatch, "preference.scenes", images=nan)
    found = score_values(make_subject(tmp_path))
    assert {name for name, value in found.items() if value.state == "ok"} == {"scene_accuracy"}
    assert [found[name].state for name in METRICS[:3]] == ["failed"] * 3


def test_unknown_metric_error_suggests_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown metric 'fd\.scene'; did you mean 'fd\.scenes'"):
        score(make_subject(tmp_path), ["scene_accuracy", "fd.scene"])


def test_win_rate_needs_a_teacher_and_does_not_apply_to_the_teacher(tmp_path: Path) -> None:
    pair = ("preference.scenes", "win_rate.preference.scenes")
    alone = score_values(make_subject(tmp_path / "alone"), *pair)["win_rate.preference.scenes"]
    assert (alone.state, alone.value) == ("missing", None)
    assert "teacher" in alone.reason
    teacher = score_values(make_subject(tmp_path / "teacher", is_teacher=True), *pair)["win_rate.preference.scenes"]
    assert teacher.state == "not_applicable"
    failed = Scores([f"p{index}" for index in range(6)], [0] * 6, {})
    without = score_values(make_subject(tmp_path / "without", teacher_scores=failed), *pair)["win_rate.preference.scenes"]
    assert without.state == "missing"


def test_one_image_has_no_distance_and_its_mean_no_interval(tmp_path: Path) -> None:
    found = score_values(make_subject(tmp_path, IMAGES[:1]))
    assert found["fd.scenes"].state == "not_applicable"
    assert "at least 2 images, found 1" in found["fd.scenes"].reason
    assert found["clip_score.scenes"].state == "ok"
    assert (found["clip_score.scenes"].low, found["clip_score.scenes"].high) == (None, None)
    assert found["scene_accuracy"].low == pytest.approx(0.2065, abs=1e-4)  # Wilson's interval of 1 out of 1


@pytest.mark.parametrize("kind", ["black", "white", "noise", "inverted"])
def test_any_8_bit_images_can_be_scored(kind: str, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, IMAGES.shape, dtype=np.uint8)
    images = {"black": IMAGES * np.uint8(0), "white": IMAGES | np.uint8(255), "noise": noise, "inverted": 255 - IMAGES}[kind]
    found = score_values(make_subject(tmp_path, images, is_teacher=True), *METRICS)
    assert found["scene_accuracy"].value == 0
    assert found["fd.scenes"].value is not None
    assert found["fd.scenes"].value > 0.01
    if kind != "black":  # whose fake features are zero and have no direction
        assert {value.state for value in found.values()} == {"ok", "not_applicable"}


@pytest.mark.parametrize(
    "wrong",
    [
        IMAGES.astype(np.float32),
        IMAGES.astype(np.int16),
        IMAGES[:, :32],
        IMAGES[..., :1],
        IMAGES[0],
        IMAGES.transpose(0, 3, 1, 2),
    ],
)
def test_scenes_evaluators_reject_anything_but_uint8_rgb_of_their_size(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"take N x 64 x 64 x 3 uint8 RGB, found \("):
        scenes.pixels(wrong)


def test_pixels_are_scaled_to_minus_one_to_one_channels_first() -> None:
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[0, 5, 7] = (255, 0, 51)
    pixels = scenes.pixels(image)
    assert pixels.shape == (1, 3, 64, 64)
    np.testing.assert_allclose(pixels[0, :, 5, 7].numpy(), [1, -1, -0.6], atol=1e-6)


def test_unreadable_image_stops_the_run_before_any_metric(tmp_path: Path) -> None:
    broken = make_subject(tmp_path)
    broken.store.path("3").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"images/3\.png cannot be read"):
        score(broken, METRICS)


def test_reference_is_cached_and_rebuilt_for_another_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cards.find("scenes", ENCODERS["scenes.features"], tmp_path)
    monkeypatch.setattr(scenes, "features", lambda _: pytest.fail("rebuilt"))
    again = cards.find("scenes", ENCODERS["scenes.features"], tmp_path)
    assert again.digest == first.digest
    np.testing.assert_array_equal(again.statistics.covariance, first.statistics.covariance)
    monkeypatch.setattr(scenes, "features", lambda images: 2 * colours(images))
    monkeypatch.setattr(scenes, "encoder_id", "{}.other".format)
    other = cards.find("scenes", ENCODERS["scenes.features"], tmp_path)
    assert other.digest != first.digest
    np.testing.assert_allclose(other.statistics.mean, 2 * first.statistics.mean)


# ---- suite x models -> records ----


def test_run_writes_one_record_per_model_and_a_second_run_nothing(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [replace(teacher, name="student"), resolve("scenes-rendered"), teacher]
    folders = runner.run(specs, prepare_in(tmp_path))
    found = [records.read(path)[0] for path in folders]
    assert [record.model.name for record in found] == ["student", "scenes-rendered", "scenes-teacher"]
    assert [record.n_images for record in found] == [4, 4, 4]
    rates = [record.value("win_rate.preference.scenes") for record in found]
    assert [rate.state for rate in rates if rate] == ["ok", "ok", "not_applicable"]
    assert rates[0] is not None
    assert (rates[0].value, rates[0].note) == (0.5, "0 wins, 4 ties, 0 losses")  # its weights are the teacher's
    assert records.read(folders[0])[1].columns["win_rate.preference.scenes"].tolist() == [0.5] * 4
    assert found[0].model.weights_digest == found[2].model.weights_digest is not None
    assert {rate.reference for rate in rates[:2] if rate} == {found[2].model.weights_digest[:24]}, "the teacher they are compared with"
    assert found[1].model.weights_digest is None
    assert found[0].sampling["size_px"] == SIZE_PX
    assert found[0].noise == {"kind": "per_image", "seed": 0}
    assert found[0].scheduler == {"class": "DDIMScheduler", "prediction_type": "v_prediction", "timesteps": [999]}
    assert found[1].scheduler == {}
    assert len(list((folders[0] / "images").glob("*.png"))) == 4

    before = modification_times(tmp_path)
    monkeypatch.setattr(runner, "load", fail_if_called)
    monkeypatch.setattr(Store, "put", fail_if_called)
    assert runner.run(specs, prepare_in(tmp_path)) == folders
    assert modification_times(tmp_path) == before


def test_timesteps_of_ones_own_are_recorded_once(teacher: ModelSpec, tmp_path: Path) -> None:
    assert SUITE.sampling
    suite = SUITE.model_copy(update={"sampling": SUITE.sampling.model_copy(update={"scheduler": "euler", "timesteps": (500,)})})
    (folder,) = runner.run([teacher], prepare_in(tmp_path, suite))
    assert records.read_record(folder).sampling["timesteps"] == [500]
    assert runner.run([teacher], prepare_in(tmp_path, suite)) == [folder], "what is read back equals what was written"


def test_parts_draw_what_one_run_would_and_a_run_only_scores_them(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def images_below(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.rglob("images/*.png") if "runs" in path.parts}

    assert SUITE.prompts
    suite = SUITE.model_copy(update={"prompts": SUITE.prompts.model_copy(update={"n": 5})})  # batches of 2, 2 and 1
    monkeypatch.setattr(measuring, "_read_models_and_suite", lambda _: ([teacher], suite))
    command = ["run", "--model", "tiny", "--results", str(tmp_path / "parts" / "results"), "--runs", str(tmp_path / "parts" / "runs")]
    for part, missing, note in (("2/2", 3, "3 images are still missing"), ("1/2", 0, "all images are drawn")):
        assert cli.main([*command, "--json", "--part", part]) == 0
        output = capsys.readouterr()
        assert json.loads(output.out) == {"missing": {"scenes-teacher": missing}}
        assert f"scenes-teacher: {note}" in output.err
    assert not records.find(tmp_path / "parts" / "results", "scenes", suite.id, "scenes-teacher"), "parts write no record"

    (whole,) = runner.run([teacher], prepare_in(tmp_path / "whole", suite))
    assert images_below(tmp_path / "parts") == images_below(tmp_path / "whole")
    monkeypatch.setattr(runner, "load", fail_if_called)
    (scored,) = runner.run([teacher], prepare_in(tmp_path / "parts", suite))
    assert records.read_record(scored).values == records.read_record(whole).values


def test_groups_of_prompts_are_in_the_record_and_in_the_leaderboard(teacher: ModelSpec, tmp_path: Path) -> None:
    assert SUITE.prompts
    suite = SUITE.model_copy(update={"prompts": SUITE.prompts.model_copy(update={"groups": {"first": 3, "last": 1}})})
    runner.run([teacher], prepare_in(tmp_path))
    (folder,) = runner.run([teacher], prepare_in(tmp_path, suite))
    assert records.read_record(folder).groups == {"first": 3, "last": 1}, "also where all else was measured before"
    assert "by group of prompts" in writing.markdown(standings.read_rows(tmp_path / "results"))


def test_of_two_equal_runs_at_once_the_second_finds_the_record_of_the_first(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, others = records.write, []

    def write_second(*arguments: Any) -> Path:
        assert is_locked(tmp_path / "runs" / ".records.lock"), "another command that writes a record must wait"
        return write(*arguments)

    @contextmanager
    def after_the_other_run(path: Path) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr(recording, "locked", locked)
            others.extend(runner.run([teacher], prepare_in(tmp_path)))
        with locked(path):
            yield

    monkeypatch.setattr(records, "write", write_second)
    monkeypatch.setattr(recording, "locked", after_the_other_run)
    assert runner.run([teacher], prepare_in(tmp_path)) == others
    assert len(records.folders(tmp_path / "results")) == 1


def test_changed_value_creates_a_new_record_beside_the_old_one(teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = runner.run([teacher], prepare_in(tmp_path))
    before = modification_times(first)
    replace_towers(monkeypatch, "clip.scenes", texts=lambda captions: letters(captions) ** 2)
    (second,) = runner.run([teacher], prepare_in(tmp_path))
    assert second != first
    assert second.parent == first.parent
    assert modification_times(first) == before


def test_weights_measured_before_keep_their_earlier_values(teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = runner.run([teacher, resolve("scenes-rendered")], prepare_in(tmp_path))
    record, scores = records.read(first)
    other = record.model.model_copy(update={"weights_digest": "of another checkpoint"})
    records.write(record.model_copy(update={"model": other, "created": records.now(), "values": ()}), scores, {}, tmp_path / "results")
    models_read, head, probes_only = set[str](), record_files.read_record, replace(prepare_in(tmp_path), with_quality=False)

    def recorded(folder: Path) -> Record:
        models_read.add(folder.parent.name)
        return head(folder)

    monkeypatch.setattr(record_files, "read_record", recorded)
    (again,) = runner.run([teacher], probes_only)
    assert models_read == {"scenes-teacher"}, "records of other models are not read"
    found = records.read(again)[0]
    assert (found.model, found.values, found.n_images) == (record.model, record.values, 4)
    assert again in [folder for folder, _ in records.newest_per_model(tmp_path / "results")]


def test_student_has_no_win_rate_until_the_teacher_is_run(teacher: ModelSpec, tmp_path: Path) -> None:
    student = replace(teacher, name="student")
    context = prepare_in(tmp_path, SUITE.model_copy(update={"metrics": {"scenes": (*METRICS, "agreement.ssim", "agreement.clip.scenes")}}))

    def rate() -> Value | None:
        return records.read(runner.run([student], context)[0])[0].value("win_rate.preference.scenes")

    def missing(*others: ModelSpec) -> list[str]:
        return recording.missing_of_teacher([student, *others], context)

    alone = rate()
    assert alone is not None
    assert alone.state == "missing"
    record, advice = "of the teacher, scenes-teacher under own@1, so", "with it will be missing: add --model scenes-teacher"
    assert missing() == [f"record {record} win rates and agreement {advice}"]
    assert missing(teacher) == []
    (of_teacher,) = runner.run([teacher], context)
    assert missing() == []
    store_and_jobs(records.read_record(of_teacher).model, context)[0].folder.rename(tmp_path / "away")
    assert missing() == [f"images {record} agreement {advice}"]
    after = rate()
    assert after is not None
    assert after.value == 0.5


def test_older_record_without_noise_and_scheduler_is_kept(teacher: ModelSpec, tmp_path: Path) -> None:
    (folder,) = runner.run([teacher], prepare_in(tmp_path))
    record, scores = records.read(folder)
    older = records.write(record.model_copy(update={"noise": {}, "scheduler": {}}), scores, {}, tmp_path / "older" / "results")
    assert '"noise"' not in (older / "record.json").read_text(encoding="utf-8")
    (tmp_path / "runs").rename(tmp_path / "older" / "runs")
    assert runner.run([teacher], prepare_in(tmp_path / "older")) == [older]


def test_all_cuda_devices_share_their_images(tmp_path: Path) -> None:
    model = Model(name="m", architecture="vega", source="folder:m", weights_digest="w")
    places = [store_and_jobs(model, replace(prepare_in(tmp_path), device=device))[0].folder for device in ("cuda", "cuda:1", "cpu")]
    assert places[0] == places[1] != places[2]


def test_record_of_a_student_keeps_the_teachers_image_beside_its_worst(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sdbench.run.thumbnails.SHARED", 1)
    of_teacher, of_images = runner.run([teacher, resolve("scenes-rendered")], prepare_in(tmp_path))
    copies = records.thumbnail_files(of_images, of_teacher=True)
    assert len(copies) == 3, "of all four but the shared one"
    own = records.thumbnail_files(of_teacher)
    assert all(path.read_bytes() == own[prompt_id].read_bytes() for prompt_id, path in copies.items())
    assert own.keys() == records.thumbnail_files(of_images).keys()
    assert records.thumbnail_files(of_teacher, of_teacher=True) == {}


def test_images_of_other_versions_are_not_taken_for_those_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, context = Model(name="m", architecture="vega", source="folder:m", weights_digest="w"), prepare_in(tmp_path)
    places = {store_and_jobs(model, context)[0].folder}
    for package in ("diffusers", "torch"):
        monkeypatch.setattr("sdbench.run.context.version", lambda name, other=package: "99" if name == other else machine.version(name))
        places.add(store_and_jobs(model, context)[0].folder)
    assert len(places) == 3


def test_prompts_edited_while_images_are_drawn_are_refused(teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("\n".join(PROMPTS[:4]), encoding="utf-8")
    suite = SUITE.model_copy(update={"prompts": Prompts(source="file", file=str(file), n=4)})
    run_probes = runner.run_probes

    def edit_prompts(*arguments: Any) -> ProbeResult:
        file.write_text("\n".join(PROMPTS[1:5]), encoding="utf-8")
        return run_probes(*arguments)

    monkeypatch.setattr(runner, "run_probes", edit_prompts)
    with pytest.raises(UserError, match="the prompts of suite 'own' changed since this run began"):
        runner.run([teacher], prepare_in(tmp_path, suite))
    assert not list(tmp_path.rglob("record.json"))


def test_noise_floor_has_the_distances_to_a_reference_of_ones_own(teacher: ModelSpec, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for index, image in enumerate(cards._render_scenes(32)):
        Image.fromarray(image).save(tmp_path / "real" / f"{index}.png")
    places = api.Places(tmp_path / "results", tmp_path / "runs")
    build("mine", images_in_folder(tmp_path / "real"), ENCODERS["scenes.features"], places.work)
    _, floor = api.noise(teacher, SUITE.model_copy(update={"reference": "mine"}), 2, places, device="cpu", only="quality")
    assert {"fd.scenes", "clip_score.scenes"} <= floor.metrics.keys()


def test_weights_replaced_while_other_models_are_drawn_are_refused(
    teacher: ModelSpec, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = Path(shutil.copytree(tiny_pipeline, tmp_path / "newest"))

    def load_then_train(spec: ModelSpec, **options: Any) -> Any:
        tiny_unet(seed=1).save_pretrained(newest / "unet")  # a trainer goes on, and writes its next checkpoint
        return load(spec, **options)

    monkeypatch.setattr(runner, "load", load_then_train)
    context = prepare_in(tmp_path)
    with pytest.raises(UserError, match=r"newest.* changed since this run began; run again"):
        runner.run([teacher, resolve(str(newest), name="newest")], context)
    (manifest,) = context.runs.glob("*/manifest.json")
    assert json.loads(manifest.read_text(encoding="utf-8"))["model"] == teacher.name, (
        "no image has the digest of weights that did not draw it"
    )


def test_teacher_record_of_another_suite_does_not_count(teacher: ModelSpec, tmp_path: Path) -> None:
    runner.run([teacher], prepare_in(tmp_path, SUITE.model_copy(update={"version": 2})))
    record, _ = records.read(runner.run([resolve("scenes-rendered")], prepare_in(tmp_path))[0])
    rate = record.value("win_rate.preference.scenes")
    assert rate is not None
    assert rate.state == "missing"


def test_record_of_random_weights_is_not_used_as_the_teacher(tmp_path: Path, teacher: ModelSpec) -> None:
    runner.run([teacher], prepare_in(tmp_path))
    (real,) = records.newest_per_model(tmp_path / "results")
    scores = records.read_scores(real[0])
    random = real[1].model.model_copy(update={"source": "random", "label": "random weights"})
    better = Scores(scores.prompt_ids, scores.samples, {name: column + 1 for name, column in scores.columns.items()})
    records.write(real[1].model_copy(update={"model": random, "created": records.now()}), better, {}, tmp_path / "results")
    record = records.read_record(runner.run([replace(teacher, name="student")], prepare_in(tmp_path))[0])
    rate = record.value("win_rate.preference.scenes")
    assert rate is not None
    assert rate.value == 0.5


def test_damaged_record_stops_the_run_before_any_work(teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = runner.run([teacher], prepare_in(tmp_path))
    (folder / "scores.parquet").write_bytes(b"half of it")
    before = modification_times(tmp_path)
    for work in ("load", "weights_digest", "fetch", "generate"):
        monkeypatch.setattr(runner, work, fail_if_called)
    with pytest.raises(UserError, match=rf"record .*{folder.name} was changed.*Restore it, or delete the folder"):
        api.run(
            [replace(teacher, name="student")], SUITE, api.Places(tmp_path / "results", tmp_path / "runs"), device="cpu", only="quality"
        )
    assert modification_times(tmp_path) == before


@pytest.fixture
def few_step_suite(tmp_path: Path) -> Suite:
    """The suite with two steps, whose teacher is that of the one-step suite, which is in a file."""
    sampling = "\n".join(f"{key} = {json.dumps(value)}" for key, value in SUITE.sampling or () if value is not None)
    (tmp_path / "own.toml").write_text(
        'name = "own"\nversion = 1\nfamily = "scenes"\ndescription = ""\nreference = "scenes"\n'
        f"[metrics]\nscenes = {json.dumps(METRICS)}\n[prompts]\nn = 4\n[sampling]\n{sampling}\n",
        encoding="utf-8",
    )
    assert suites.load(str(tmp_path / "own.toml")) == SUITE
    assert SUITE.sampling
    metrics: Any = {"scenes": (*METRICS, "agreement.clip.scenes")}
    changes = {"name": "few", "metrics": metrics, "teacher": Teacher(model="scenes-teacher", suite=str(tmp_path / "own.toml"))}
    return SUITE.model_copy(update={**changes, "sampling": SUITE.sampling.model_copy(update={"steps": 2, "batch": 1})})


def test_few_step_student_is_compared_with_the_teacher_at_the_teachers_own_sampling(
    teacher: ModelSpec, few_step_suite: Suite, tmp_path: Path
) -> None:
    names = ("win_rate.preference.scenes", "agreement.clip.scenes")

    def found(spec: ModelSpec) -> list[Value | None]:
        record = records.read(runner.run([spec], prepare_in(tmp_path, few_step_suite))[0])[0]
        assert record.sampling["steps"] == 2
        assert record.teacher == NamedTeacher(model="scenes-teacher", suite=SUITE.id)
        return [record.value(name) for name in names]

    advice = f"first sdbench run --model scenes-teacher --suite {tmp_path / 'own.toml'}"
    missing = f"record of the teacher, scenes-teacher under own@1, so win rates and agreement with it will be missing: {advice}"
    assert recording.missing_of_teacher([teacher], prepare_in(tmp_path, few_step_suite)) == [missing], "this run makes others"
    for value in found(replace(teacher, name="student")):
        assert value
        assert (value.state, "scenes-teacher under own@1" in value.reason) == ("missing", True)
    runner.run([teacher], prepare_in(tmp_path))
    student, itself = found(replace(teacher, name="student")), found(teacher)
    assert [value.state for value in (*student, *itself) if value] == ["ok"] * 4, "with few steps the teacher is a student of itself"
    assert student[1]
    assert student[1].value is not None
    assert student[1].value < 1 - 1e-9, "the teacher's images are not of these two steps"


def test_suite_may_name_its_own_teacher(teacher: ModelSpec, tmp_path: Path) -> None:
    suite = SUITE.model_copy(update={"teacher": Teacher(model="juggernaut")})
    specs = [replace(teacher, name=name) for name in ("scenes-teacher", "juggernaut")]
    win_rates = [records.read_record(path).value("win_rate.preference.scenes") for path in runner.run(specs, prepare_in(tmp_path, suite))]
    assert [value.state for value in win_rates if value] == ["ok", "not_applicable"]


def test_values_against_different_teachers_of_the_same_name_are_incomparable(tmp_path: Path) -> None:
    names, wins = ("win_rate.preference.scenes", "agreement.clip.scenes"), Rule(direction="higher", margin=1, required=True)
    suite = SUITE.model_copy(update={"metrics": {"scenes": ("preference.scenes", *names)}, "teacher": Teacher(model="rendered")})
    specs = [replace(resolve("scenes-rendered"), name=name) for name in ("rendered", "student")]
    rendered, first = runner.run(specs, prepare_in(tmp_path, suite))
    assert [value.reference for name in names if (value := records.read_record(first).value(name))] == [
        rendered.name
    ] * 2  # there are no weights
    record, scores = records.read(rendered)
    again = record.model.model_copy(update={"weights_digest": 16 * "07e4"})
    records.write(record.model_copy(update={"model": again, "created": records.now()}), scores, {}, tmp_path / "results")
    (second,) = runner.run(specs[1:], prepare_in(tmp_path, suite))
    found = compare.measure(names[0], wins, Side.read(second), Side.read(first), 0.05)
    assert isinstance(found, compare.Obstacle)
    assert found.reason == f"the candidate was measured against {6 * '07e4'}, the baseline against {rendered.name}; run both again"


def test_win_rate_over_images_drawn_with_other_software_says_so(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reference names only the teacher's weights, so a teacher run again after an upgrade could not be told from the one before."""

    def rate() -> Value | None:
        (folder,) = runner.run([replace(teacher, name="student")], prepare_in(tmp_path))
        return records.read_record(folder).value("win_rate.preference.scenes")

    here = machine.environment()
    before = here.model_copy(update={"packages": {**here.packages, "diffusers": "0.1"}})
    monkeypatch.setattr(recording, "environment", lambda: before)
    (older,) = runner.run([teacher], prepare_in(tmp_path))
    monkeypatch.setattr(recording, "environment", lambda: here)
    assert (found := rate())
    upgrade = f"diffusers 0.1, here {here.packages['diffusers']}"
    assert found.note == f"0 wins, 4 ties, 0 losses; the teacher's images were drawn with {upgrade}; run the teacher here too"
    runner.run([teacher], prepare_in(tmp_path))
    record, scores = records.read(older)  # now from a colleague who has not upgraded
    worse = Scores(scores.prompt_ids, scores.samples, {name: column - 1 for name, column in scores.columns.items()})
    records.write(record.model_copy(update={"created": records.now()}), worse, {}, tmp_path / "results")
    assert (found := rate())
    assert (found.value, found.note) == (0.5, "0 wins, 4 ties, 0 losses"), "the teacher that was drawn as the student is"


def test_devices_of_a_kind_draw_alike_and_images_without_a_model_anywhere(teacher: ModelSpec, tmp_path: Path) -> None:
    drawn, rendered = map(records.read_record, runner.run([teacher, resolve("scenes-rendered")], prepare_in(tmp_path)))
    on_a_card = drawn.model_copy(update={"machine": drawn.machine.model_copy(update={"cuda": "12.8"})})
    here = replace(prepare_in(tmp_path), device="cuda:1")
    assert recording._drawing_differences(on_a_card, here) == recording._drawing_differences(rendered, here) == []
    assert recording._drawing_differences(drawn, here) == ["device cpu, here cuda"]


def test_win_rate_is_against_the_newest_weights_of_the_teacher_that_have_images(teacher: ModelSpec, tmp_path: Path) -> None:
    (first,) = runner.run([teacher], prepare_in(tmp_path))
    record, scores = records.read(first)
    worse = Scores(scores.prompt_ids, scores.samples, {name: column - 1 for name, column in scores.columns.items()})
    newer: dict[str, Any] = {
        "model": record.model.model_copy(update={"weights_digest": 16 * "07e4"}),
        "environment": record.environment.model_copy(update={"packages": {**record.environment.packages, "diffusers": "0.1"}}),
    }
    records.write(record.model_copy(update={**newer, "created": records.now()}), worse, {}, tmp_path / "results")
    of_probes: dict[str, Any] = {"created": records.now(), "n_images": 0, "values": ()}
    records.write(record.model_copy(update=of_probes), Scores([], [], {}), {}, tmp_path / "results")
    (folder,) = runner.run([replace(teacher, name="student")], prepare_in(tmp_path))
    rate = records.read_record(folder).value("win_rate.preference.scenes")
    assert rate
    assert (rate.value, rate.reference) == (1, 6 * "07e4")


def test_values_of_another_machine_are_not_taken_over(teacher: ModelSpec, tmp_path: Path) -> None:
    (here,) = runner.run([teacher], prepare_in(tmp_path))
    record, scores = records.read(here)
    shutil.rmtree(tmp_path / "results")
    latency = Value(name="latency.pipeline.p50", kind="probe", direction="lower", unit="s", value=0.5)
    there = {"machine": record.machine.model_copy(update={"device": "Some GPU", "cuda": "12.8"}), "values": (*record.values, latency)}
    records.write(record.model_copy(update=there), scores, {}, tmp_path / "results")
    (again,) = runner.run([teacher], prepare_in(tmp_path))
    assert records.read_record(again).values == record.values


def test_run_of_probes_keeps_the_quality_values_of_the_record(teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Value(name="parameters.unet", kind="count", direction="lower", unit="parameters", value=7)
    monkeypatch.setattr(driver, "measure", lambda specs, *_, **__: ProbeResult({spec.name: [probe] for spec in specs}, "turns"))
    suite = SUITE.model_copy(update={"probes": Probes(rounds=1, calls=2, warmup=0)})
    (images,) = runner.run([teacher], prepare_in(tmp_path, suite))
    (tmp_path / "moved").symlink_to(teacher.location)
    moved = replace(teacher, location=str(tmp_path / "moved"))  # the same weights
    (both,) = runner.run([moved], prepare_in(tmp_path, suite, "probes"))
    assert both != images
    record, scores = records.read(both)
    before, columns = records.read(images)
    assert record.values == (*before.values, probe)
    assert record.n_images == before.n_images > 0
    thumbnails, kept = records.thumbnail_files(images), records.thumbnail_files(both)
    assert {name: file.read_bytes() for name, file in kept.items()} == {name: file.read_bytes() for name, file in thumbnails.items()} != {}
    assert (before.run, record.run) == ("", "turns")
    assert {name: column.tolist() for name, column in scores.columns.items()} == {
        name: column.tolist() for name, column in columns.columns.items()
    }
    assert runner.run([moved], prepare_in(tmp_path, suite)) == [both]
    probe = probe.model_copy(update={"value": 8})
    (again,) = runner.run([moved], prepare_in(tmp_path, suite, "probes"))
    assert records.read_record(again).values == (*before.values, probe), "the new value in place of the old one"


@pytest.mark.parametrize(
    "change",
    [
        *({"packages": {name: "0.1"}} for name in ("diffusers", "open-clip-torch", "sdbench")),
        {"variables": {"CUDA_LAUNCH_BLOCKING": "1"}},
    ],
)
def test_values_measured_with_other_software_are_not_passed_off_as_those_of_this(
    change: dict[str, dict[str, str]],
    teacher: ModelSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    latency = Value(name="latency.pipeline.p50", kind="probe", direction="lower", unit="s", value=0.5, n=2, samples=((0.4, 0.6),))
    monkeypatch.setattr(driver, "measure", lambda specs, *_, **__: ProbeResult({spec.name: [latency] for spec in specs}, "turns"))
    suite, here = SUITE.model_copy(update={"probes": Probes(rounds=1, calls=2, warmup=0)}), machine.environment()
    there = here.model_copy(update={name: {**getattr(here, name), **values} for name, values in change.items()})
    monkeypatch.setattr(recording, "environment", lambda: there)
    runner.run([teacher], prepare_in(tmp_path, suite))
    monkeypatch.setattr(recording, "environment", lambda: here)
    assert records.read_record(runner.run([teacher], prepare_in(tmp_path, suite, "probes"))[0]).values == (latency,)
    assert "clip_score.scenes, fd.scenes" in capsys.readouterr().err
    both = records.read_record(runner.run([teacher], prepare_in(tmp_path, suite))[0])
    assert {value.name for value in both.values} == {*METRICS, latency.name}
    monkeypatch.setattr(recording, "environment", lambda: there)
    assert latency not in records.read_record(runner.run([teacher], prepare_in(tmp_path, suite))[0]).values


def test_a_run_says_which_values_only_other_software_measured(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    size, share = (Value(name=name, kind="count", direction="lower", unit="", value=7) for name in ("parameters.unet", "flops.unet"))
    here, suite = machine.environment(), SUITE.model_copy(update={"probes": Probes(rounds=1, calls=2, warmup=0)})
    there = here.model_copy(update={"packages": {**here.packages, "diffusers": "0.1"}})
    said = []
    for software, measured in ((there, [size]), (there, [size, share]), (here, [size]), (here, [size, share]), (here, [size])):
        monkeypatch.setattr(recording, "environment", lambda software=software: software)
        monkeypatch.setattr(driver, "measure", lambda *_, measured=measured, **__: ProbeResult({teacher.name: measured}, "turns"))
        runner.run([teacher], prepare_in(tmp_path, suite, "probes"))
        said.append(capsys.readouterr().err)
    lacking = "scenes-teacher: its new record lacks flops.unet, which other versions or environment variables measured; run the whole suite again\n"
    assert said == ["", "", lacking, "", ""]


def test_settings_measured_in_separate_runs_are_merged_into_one_record(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds, turns, p50 = iter(range(1, 9)), iter("abcdef"), "latency.pipeline.p50"
    size = Value(name="parameters.unet", kind="count", direction="lower", unit="parameters", value=7)
    found = list[str]()

    def fake_measure(specs: list[ModelSpec], *_: Any, settings: tuple[str, ...], **__: Any) -> ProbeResult:
        names = [p50 if label == "base" else f"{p50}@{label}" for label in settings or ("base", "b2")]
        values = [
            [*(Value(name=name, kind="probe", direction="lower", unit="s", value=next(seconds)) for name in names), size] for _ in specs
        ]
        return ProbeResult(dict(zip([spec.name for spec in specs], values, strict=True)), next(turns))

    monkeypatch.setattr(driver, "measure", fake_measure)
    monkeypatch.setattr(runner, "load", fail_if_called)
    suite = SUITE.model_copy(update={"metrics": {}, "probes": Probes(rounds=1, calls=2, warmup=0, settings=(Setting(batch=2),))})

    def run(*settings: str) -> dict[str, float | None]:
        context = prepare(suite, device="cpu", results=tmp_path / "results", runs=tmp_path / "runs", settings=settings)
        (folder,) = runner.run([teacher], context)
        record = records.read_record(folder)
        found.append(record.run)
        return {value.name: value.value for value in record.values}

    assert run("base") == {p50: 1, size.name: 7}
    assert run("b2") == {p50: 1, size.name: 7, f"{p50}@b2": 2}
    assert run("base") == {p50: 3, size.name: 7, f"{p50}@b2": 2}
    assert list(run("b2")) == list(run("base")) == [p50, size.name, f"{p50}@b2"], "in the suite's order, whichever came last"
    assert run() == {p50: 6, size.name: 7, f"{p50}@b2": 7}
    assert found == ["a", "", "", "", "", "f"], "settings that were not measured in turns belong to no one run"
    with pytest.raises(UserError, match="unknown setting 'b3'"):
        run("b3")


def test_probes_alone_generate_no_images_and_skip_rendered_models(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    latency = Value(name="latency.pipeline.p50", kind="probe", direction="lower", unit="s", value=0.5, n=2, samples=((0.4, 0.6),))
    measured_models: list[list[str]] = []

    def fake_measure(specs: list[ModelSpec], *_: Any, **__: Any) -> ProbeResult:
        measured_models.append([spec.name for spec in specs])
        return ProbeResult({spec.name: [latency] for spec in specs}, f"turns {len(measured_models)}")

    monkeypatch.setattr(driver, "measure", fake_measure)
    monkeypatch.setattr(runner, "load", fail_if_called)
    suite = SUITE.model_copy(update={"probes": Probes(rounds=1, calls=2, warmup=0)})
    folders = runner.run([resolve("scenes-rendered"), teacher], prepare_in(tmp_path, suite, "probes"))
    found = [records.read(path)[0] for path in folders]
    assert measured_models == [["scenes-teacher"]]
    assert [record.values for record in found] == [(), (latency,)]
    assert [record.n_images for record in found] == [0, 0]
    assert not (tmp_path / "runs" / "probes").exists()
    assert runner.run([resolve("scenes-rendered"), teacher], prepare_in(tmp_path, suite, "probes")) == folders, "the same values again"


def test_model_of_another_family_or_with_a_duplicate_name_is_rejected_before_any_work(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = prepare_in(tmp_path)
    monkeypatch.setattr(runner, "weights_digest", fail_if_called)
    with pytest.raises(UserError, match="'other' is of family 'sdxl', suite 'own' is for 'scenes'"):
        runner.run([teacher, replace(teacher, name="other", family="sdxl")], context)
    with pytest.raises(
        UserError, match=r"two models are called 'scenes-teacher': .* and /elsewhere; run them one by one, each with a --name"
    ):
        runner.run([teacher, replace(teacher, location="/elsewhere")], context)
    assert modification_times(tmp_path) == {}


@pytest.mark.parametrize("lacking", ["prompts", "sampling", "family"])
def test_suite_part_cannot_be_run(lacking: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"suite 'own' is a part.*'quality' or 'standard'"):
        prepare_in(tmp_path, SUITE.model_copy(update={lacking: None}))
    assert list(tmp_path.iterdir()) == []


def test_unknown_metric_in_a_suite_is_rejected_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown metric 'fd\.scene'; did you mean 'fd\.scenes'"):
        prepare_in(tmp_path, SUITE.model_copy(update={"metrics": {"scenes": ("fd.scene",)}}))


@pytest.mark.parametrize("blocked", ["results", "runs"])
def test_unwritable_folder_is_rejected_before_any_work(blocked: str, tmp_path: Path) -> None:
    (tmp_path / blocked).write_text("a file in the way", encoding="utf-8")
    with pytest.raises(UserError, match=rf"folder .*{blocked} cannot be written \(File exists\).*--results and --runs"):
        prepare_in(tmp_path)
    assert modification_times(tmp_path).keys() == {blocked}


# ---- external images ----


def save_images(folder: Path, images: U8, prompts: list[str]) -> tuple[Path, Path]:
    store = Store(folder / "work", {})
    for index, image in enumerate(images):
        store.put(f"{index:03d}", image)
    (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return store.folder / "images", folder / "prompts.txt"


def test_external_images_score_like_generated_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])  # for the suite's list of metrics
    values, scores = api.score(*save_images(tmp_path, IMAGES, PROMPTS), api.Places(tmp_path), "quality")
    assert list((tmp_path / "runs").glob("*/images/*.png")), "beside the results by default"
    own, columns = score(make_subject(tmp_path), [name for name in METRICS if not name.startswith("win_rate")])
    assert values == own
    for name, column in columns.columns.items():
        np.testing.assert_array_equal(scores.columns[name], column)


@pytest.mark.parametrize("more", [[], ["--name", "dall-e"]])
def test_external_images_are_scored_on_the_requested_device(more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def recorded(images: U8) -> F32:
        seen.append(device())
        return colours(images)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(scenes, "features", recorded)
    images, prompts = map(str, save_images(tmp_path, IMAGES, PROMPTS))
    args = ["score", "--images", images, "--prompts", prompts, "--suite", "quality", "--results", str(tmp_path / "results"), *more]
    assert cli.main([*args, "--device", "gpu"]) == 2
    assert cli.main([*args, "--device", "cpu"]) == 0
    assert set(seen) == {torch.device("cpu")}


OWN = """
name = "own"
version = 1
family = "scenes"
description = "for tests"
metrics.scenes = ["scene_accuracy", "preference.scenes", "win_rate.preference.scenes", "agreement.ssim"]
prompts = { n = 6 }
sampling = { steps = 1, guidance_scale = 1, size_px = 64, dtype = "float32", batch = 6 }
"""
OWN_POLICY = """
alpha = 0.05
[suites.own]
"preference.scenes" = { direction = "higher", margin = 1, required = true }
"latency.pipeline.p50" = { direction = "lower", margin = 0.05, required = true }
"""


def test_external_images_get_a_row_and_a_verdict(tmp_path: Path) -> None:
    places, own, policy = api.Places(tmp_path, tmp_path / "runs"), tmp_path / "own.toml", tmp_path / "policy.toml"
    own.write_text(OWN, encoding="utf-8")
    policy.write_text(OWN_POLICY, encoding="utf-8")
    suite = suites.load(str(own))
    prompts = [*suite.prompt_list().values()]
    images = render([parse(prompt) for prompt in prompts], range(6))
    folder = api.record_images(*save_images(tmp_path, images, prompts), "dall-e", places, str(own))
    record, scores = records.read(folder)
    assert (record.suite, list(scores.prompt_ids)) == (suite.id, [*suite.prompt_list()])  # beside the models' rows
    assert record.model == Model(name="dall-e", architecture="", source="images:images, 64 x 64 px, PNG", weights_digest=None)
    found = {value.name: value for value in record.values}
    assert (record.sampling, record.noise, found["scene_accuracy"].value) == ({}, {}, 1)
    assert [found[name].state for name in ("win_rate.preference.scenes", "agreement.ssim")] == [
        "missing",
        "not_applicable",
    ]  # no teacher yet
    (row,) = standings.read_rows(tmp_path)
    assert (row.name, row.is_images_only) == ("dall-e", True)
    assert "sampling: unknown, made elsewhere (images:images, 64 x 64 px, PNG)" in writing.markdown([row])
    report = api.gate(str(folder), str(folder), policy, places)
    assert (report.verdict, [result.name for result in report.results]) == ("pass", ["preference.scenes"])
    assert report.notes == (
        "the images of dall-e (images:images, 64 x 64 px, PNG) and dall-e (images:images, 64 x 64 px, PNG) were made elsewhere; how they were sampled is not known",
        "not measured, so not weighed: latency.pipeline.p50",
    )
    files, listed = save_images(tmp_path / "other", images, prompts[1:] + prompts[:1])
    Image.fromarray(images[0]).save(files / "000.jpg")
    (files / "000.png").unlink()
    other = records.read_record(api.record_images(files, listed, "dall-e", places, str(own)))
    assert (other.suite.name, other.model.source) == ("own-custom", "images:images, 64 x 64 px, JPEG and PNG")
    with pytest.raises(UserError, match="not the name of a model in the catalogue; choose another with --name"):
        api.record_images(*save_images(tmp_path / "named", images, prompts), "sdxl", places, str(own))


@pytest.mark.parametrize("layout", ["metadata.jsonl", "text files"])
def test_captions_in_the_folder_pair_images_with_the_prompts_of_the_suite_in_any_order(tmp_path: Path, layout: str) -> None:
    own, folder, places = tmp_path / "own.toml", tmp_path / "images", api.Places(tmp_path, tmp_path / "runs")
    own.write_text(OWN, encoding="utf-8")
    suite = suites.load(str(own))
    prompts = [*suite.prompt_list().values()]
    folder.mkdir()
    for index, prompt in enumerate(prompts):
        name = f"image {9 - index}"  # the reverse of the prompts' order
        Image.fromarray(render([parse(prompt)], [index])[0]).save(folder / f"{name}.png")
        if layout == "text files":
            (folder / f"{name}.txt").write_text(prompt, encoding="utf-8")
        else:
            with (folder / layout).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"file_name": f"{name}.png", "text": prompt}) + "\n")
    record, scores = records.read(api.record_images(folder, None, "dall-e", places, str(own)))
    assert (record.suite, list(scores.prompts or ())) == (suite.id, prompts)
    assert scores.columns["scene_accuracy"].tolist() == [1] * 6, "each image shows its own caption"
    few = "prompts = { n = 5 }"
    own.write_text(OWN.replace("prompts = { n = 6 }", few), encoding="utf-8")
    other, scores = records.read(api.record_images(folder, None, "dall-e", places, str(own)))
    assert (other.suite.name, other.n_images, scores.columns["scene_accuracy"].tolist()) == ("own-custom", 6, [1] * 6)
    assert other.prompts.startswith(f"6 of {folder}, ")
    Image.fromarray(IMAGES[0]).save(folder / "more.png")
    with pytest.raises(UserError, match=r"more\.(png have no caption|txt .*needs its caption)|1 images have no caption, such as more\.png"):
        api.score(folder, None, places, str(own))


def test_images_without_captions_need_a_file_of_prompts(tmp_path: Path) -> None:
    images, _ = save_images(tmp_path, IMAGES, PROMPTS)
    with pytest.raises(UserError, match=r"a \.txt beside each image.* Or name a text file of prompts with --prompts"):
        api.score(images, None, api.Places(tmp_path, tmp_path / "runs"))


def test_python_functions_take_paths_as_strings(tmp_path: Path) -> None:
    images, prompts, own, policy = (
        *map(str, save_images(tmp_path, IMAGES, PROMPTS)),
        str(tmp_path / "own.toml"),
        str(tmp_path / "policy.toml"),
    )
    Path(own).write_text(OWN, encoding="utf-8")
    Path(policy).write_text(OWN_POLICY, encoding="utf-8")
    places = api.Places(tmp_path / "results")
    values, _ = api.score(images, prompts, places, own)
    folder = api.record_images(images, prompts, "dall-e", places, own)
    assert [value.name for value in values] == ["scene_accuracy", "preference.scenes"]
    assert api.gate(folder, folder, policy, places).verdict == "pass"
    assert [path.name for path in api.report(places, str(tmp_path / "page.html"), policy)] == ["page.html"]


def test_image_and_prompt_counts_must_match(tmp_path: Path) -> None:
    images, prompts = save_images(tmp_path, IMAGES, PROMPTS[:5])
    with pytest.raises(UserError, match=r"6 images and .* 5 prompts"):
        api.score(images, prompts, api.Places(tmp_path, tmp_path / "runs"))


def test_images_with_ambiguous_file_order_are_rejected(tmp_path: Path) -> None:
    images, prompts = save_images(tmp_path, IMAGES, PROMPTS)
    (images / "005.png").rename(images / "10.png")
    suite = suites.load("quality")
    assert len(external.load_images(external.find_images(images, prompts, suite), suite, tmp_path / "runs").image_ids) == len(IMAGES)
    (images / "004.png").rename(images / "2.png")
    with pytest.raises(UserError, match=r"003\.png comes before 2\.png as text and after it by number.*as in 00002\.png"):
        external.find_images(images, prompts, suite)


def test_full_size_images_are_scored_with_the_available_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDBENCH_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    towers, images = Clip(tiny(), "tiny"), photographs(70, 40, 56)
    monkeypatch.setitem(TOWERS, "clip.vit-l-14", lambda: towers)
    prompts = [f"a photograph, number {row}" for row in range(70)]
    values, scores = api.score(*save_images(tmp_path, images, prompts), api.Places(tmp_path, tmp_path / "runs"))
    assert {value.name for value in values if value.state != "missing"} == {"clip_score.vit-l-14"}
    assert {"fid.clean", "pickscore.v1"} < {value.name for value in values}
    expected = caption_score(towers.images(images), towers.texts(prompts))
    np.testing.assert_allclose(scores.columns["clip_score.vit-l-14"], expected, atol=1e-4)


def test_metrics_that_lack_the_same_thing_share_a_line_and_no_score_at_all_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SDBENCH_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    images, prompts = map(str, save_images(tmp_path, photographs(7, 40, 56), ["a photograph"] * 7))
    arguments = ["score", "--images", images, "--prompts", prompts, "--results", str(tmp_path)]
    assert cli.main(arguments) == 2
    said = capsys.readouterr()
    lines = said.out.splitlines()
    of_inception = (
        "fid.clean, kid, prdc.precision, prdc.recall, prdc.density, prdc.coverage: missing: reference: 'coco-30k' has not been built"
    )
    assert sum(line.startswith(of_inception) for line in lines) == 1
    assert sum("has not been built for encoder 'inception.clean'" in line for line in lines) == 1
    assert "none of these metrics could be measured" in said.err
    assert cli.main([*arguments, "--json"]) == 2
    assert capsys.readouterr().out == ""


def test_images_of_mixed_sizes_are_rejected_in_any_block(tmp_path: Path) -> None:
    images, prompts = save_images(tmp_path, photographs(66, 40, 56), ["a photograph"] * 66)
    Image.fromarray(photographs(1, 40, 40)[0]).save(images / "064.png")
    Image.fromarray(photographs(1, 40, 40)[0]).save(images / "065.png")
    with pytest.raises(UserError, match=r"064\.png is 40 x 40 px, the first is 56 x 40"):
        api.score(images, prompts, api.Places(tmp_path, tmp_path / "runs"))


def test_images_and_prompts_that_are_not_scenes_are_rejected(tmp_path: Path) -> None:
    """The scenes evaluators would fail on such images and give meaningless scores for such prompts."""
    wide = np.concatenate([IMAGES, IMAGES], axis=2)
    with pytest.raises(UserError, match=r"images of 128 x 64 px; scenes are of 64 x 64.*--suite standard"):
        api.score(*save_images(tmp_path / "wide", wide, PROMPTS), api.Places(tmp_path, tmp_path / "runs"), "quality")
    with pytest.raises(UserError, match=r"prompts\.txt: not a caption of the scenes grammar: 'a photo of a cat'"):
        api.score(
            *save_images(tmp_path / "cat", IMAGES, [*PROMPTS[:-1], "a photo of a cat"]),
            api.Places(tmp_path, tmp_path / "runs"),
            "quality",
        )
    with pytest.raises(UserError, match=r"suite 'fid' is a part"):
        api.score(*save_images(tmp_path / "part", IMAGES, PROMPTS), api.Places(tmp_path, tmp_path / "runs"), "fid")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("name", "what"), [("nowhere", "does not exist"), ("prompts.txt", "is a file")])
@pytest.mark.parametrize("with_prompts", [True, False])
def test_images_path_that_is_not_a_folder_is_an_error(name: str, what: str, with_prompts: bool, tmp_path: Path) -> None:
    _, prompts = save_images(tmp_path, IMAGES, PROMPTS)
    with pytest.raises(UserError, match=rf"--images takes a folder of images, and .*{name} {what}"):
        api.score(tmp_path / name, prompts if with_prompts else None, api.Places(tmp_path, tmp_path / "runs"))


@pytest.mark.parametrize("name", ["nowhere.txt", "images"])
def test_prompts_path_that_is_not_a_file_is_an_error(name: str, tmp_path: Path) -> None:
    images, _ = save_images(tmp_path / "images", IMAGES, PROMPTS)
    with pytest.raises(UserError, match=rf"prompts .*{name} cannot be read"):
        api.score(images, tmp_path / name, api.Places(tmp_path, tmp_path / "runs"))
