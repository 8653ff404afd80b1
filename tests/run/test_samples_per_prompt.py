"""Several samples of a prompt, end to end: what is stored, which records and verdicts it gives, and that intervals count prompts."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import judge_folders
from fakes import RULES, SUITE, prepare_in
from PIL import Image

from sdbench import api, records, suites
from sdbench.api.places import Places
from sdbench.errors import UserError
from sdbench.leaderboard import standings, writing
from sdbench.models.resolve import resolve
from sdbench.models.spec import ModelSpec
from sdbench.records import mean_per_prompt
from sdbench.report import card, page, sections
from sdbench.run import recording, runner, until_verdict
from sdbench.run.context import store_and_jobs
from sdbench.run.plan import plan
from sdbench.run.thumbnails import thumbnail
from sdbench.stats import intervals
from sdbench.suites import Prompts, Suite, Teacher

pytestmark = pytest.mark.usefixtures("fake_evaluators")
AGREEMENT = ("agreement.ssim", "fd_to_teacher.scenes")


def sampled(samples: int, n: int = 5, **changes: object) -> Suite:
    """The suite of the tests with several samples; batches are of 2, so that the last one of each sample is short."""
    metrics = {"scenes": (*SUITE.own_metrics, *AGREEMENT)}
    return SUITE.model_copy(update={"prompts": Prompts(n=n, samples=samples), "metrics": metrics, **changes})


def test_record_counts_prompts_and_pairs_images_by_prompt_and_sample(teacher: ModelSpec, tmp_path: Path) -> None:
    suite = sampled(3)
    rendered = resolve("scenes-rendered")
    _, folder = runner.run([teacher, replace(teacher, name="copy")], prepare_in(tmp_path, suite))
    _, of_images = runner.run([teacher, rendered], prepare_in(tmp_path, suite))
    record, scores = records.read(folder)
    assert (record.n_images, record.samples, record.n_prompts) == (15, 3, 5)
    assert {value.n for value in record.values} == {5}
    assert (value := record.value("agreement.ssim"))
    assert value.value == 1, "each image is compared with the teacher's of the same noise"
    assert (value := record.value("fd_to_teacher.scenes"))
    assert value.value == pytest.approx(0, abs=1e-6)
    assert (value := record.value("win_rate.preference.scenes"))
    assert (value.value, value.note) == (0.5, "0 wins, 15 ties, 0 losses")
    assert (value := record.value("clip_score.scenes"))
    expected = intervals.mean_interval(mean_per_prompt(scores.prompt_ids, scores.columns["clip_score.scenes"])[1])
    assert (value.value, value.low, value.high) == (expected.value, expected.low, expected.high)

    other, of_other = records.read(of_images)
    accuracy = other.value("scene_accuracy")
    assert accuracy
    assert accuracy.n == 5
    store, jobs = store_and_jobs(other.model, prepare_in(tmp_path, suite))
    pixels = store.read([job.image_id for job in jobs])
    assert len({image.tobytes() for image in pixels}) == 15, "the renderer draws each sample anew"
    assert of_other.keys == [(job.prompt_id, job.sample) for job in jobs]


def test_thumbnails_of_samples_have_names_of_their_own_and_are_shown(teacher: ModelSpec, tmp_path: Path) -> None:
    context = prepare_in(tmp_path, sampled(2))
    folder, _ = runner.run([teacher, resolve("scenes-rendered")], context)
    record, scores = records.read(folder)
    shown = records.thumbnail_files(folder)
    assert sorted(shown) == sorted(scores.image_names)
    store, jobs = store_and_jobs(record.model, context)
    (last,) = store.read([jobs[-1].image_id])
    assert shown[f"{jobs[-1].prompt_id}.1"].read_bytes() == thumbnail(last)

    board = standings.read_rows(tmp_path / "results")
    (section,) = standings.sections(board)
    album = sections.build_album(section)
    assert album.names == sorted(scores.image_names)
    assert album.shot(f"{jobs[-1].prompt_id}.1").prompt == f"{jobs[-1].prompt} (sample 2)"
    images = album.shot(f"{jobs[-1].prompt_id}.1").images
    row = scores.image_names.index(f"{jobs[-1].prompt_id}.1")
    mine = next(image for image in images if image and image.model == "scenes-teacher")
    assert f"clip_score.scenes {scores.columns['clip_score.scenes'][row]:.2f}" in mine.scores
    table = writing.markdown(board)
    assert "| 10 (2 per prompt) |" in table
    assert "[n=" not in table
    assert "own@1, 5 prompts" in card.write(tmp_path, board, [board[0]]).read_text(encoding="utf-8")
    out = tmp_path / "report.html"
    page.write(tmp_path / "results", out, RULES)
    assert "(sample 2)" in out.read_text(encoding="utf-8")


def test_gate_passes_a_record_against_itself_and_refuses_another_number_of_samples(teacher: ModelSpec, tmp_path: Path) -> None:
    (one,) = runner.run([teacher], prepare_in(tmp_path, sampled(1)))
    (two,) = runner.run([teacher], prepare_in(tmp_path, sampled(2)))
    assert judge_folders(two, two, RULES).verdict == "pass"
    report = judge_folders(two, one, RULES)
    assert report.verdict == "incomparable"
    assert report.differences[0] == "number of images is 10 against 5"
    (more,) = runner.run([teacher], prepare_in(tmp_path, sampled(1, n=10)))
    assert judge_folders(two, more, RULES).verdict == "incomparable", "as many images, but of other prompts"


def test_looks_take_all_samples_of_a_prompt(teacher: ModelSpec, student: ModelSpec, tmp_path: Path) -> None:
    suite = sampled(2, n=6)
    (baseline,) = runner.run([teacher], prepare_in(tmp_path, suite))
    path, report = until_verdict.run_until_verdict(student, prepare_in(tmp_path, suite), baseline, RULES, {})
    assert (report.verdict, report.notes[0]) == ("pass", "stopped after 4 of 6 prompts, at the 2nd look")
    for result in report.results:
        assert (result.difference, result.low, result.high) == pytest.approx((0, 0, 0), abs=1e-6), "each image against that of its noise"
    record, scores = records.read(path)
    assert (record.n_images, record.samples, record.looks and record.looks.prompts) == (8, 2, (2, 4))
    of_baseline = records.read_scores(baseline)
    ids = sorted(suites.look_order(of_baseline.prompt_ids[:6], 2)[:4])
    assert scores.keys == [(prompt_id, sample) for sample in (0, 1) for prompt_id in ids]
    for name in ("clip_score.scenes", "preference.scenes"):
        assert scores.columns[name].tolist() == of_baseline.column_for(scores.keys, name).tolist()
    drawn = [(path.name, path.read_bytes()) for path in (tmp_path / "runs").rglob("images/*.png")]
    assert (len(drawn), len(set(drawn))) == (12 + 8, 12), "the same bytes as those of the baseline, in a store of its own"
    again = suite.model_copy(update={"name": "own-sequential", "prompts": Prompts(n=6, samples=2, looked=4)})
    assert again.id == record.suite
    at_the_end = RULES.model_copy(update={"suites": {"own": {"fd.scenes": RULES.suites["own"]["fd.scenes"]}}})
    path, report = until_verdict.run_until_verdict(student, prepare_in(tmp_path, suite), baseline, at_the_end, {})
    (result,) = report.results
    assert (result.difference, result.low, result.high) == pytest.approx((0, 0, 0), abs=1e-6), "against the influences in the record"
    assert records.read_record(path).n_images == 12


def test_teacher_of_another_suite_needs_as_many_samples(
    teacher: ModelSpec, student: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"three": sampled(3, name="three"), "one": sampled(1, name="one")}
    monkeypatch.setattr("sdbench.suites.suite.load", others.__getitem__)
    runner.run([teacher], prepare_in(tmp_path, others["three"]))
    suite = sampled(2, teacher=Teacher(model="scenes-teacher", suite="three"))
    (folder,) = runner.run([student], prepare_in(tmp_path, suite))
    assert (value := records.read_record(folder).value("agreement.ssim"))
    assert value.value == 1
    with pytest.raises(UserError, match="'one', which draws fewer images of a prompt, 1 against 2; give both as many"):
        prepare_in(tmp_path, sampled(2, teacher=Teacher(model="scenes-teacher", suite="one")))
    context = prepare_in(tmp_path, sampled(2))
    assert recording.missing_of_teacher([student], context), "records of other numbers of samples do not count"


def test_images_made_elsewhere_are_samples_of_the_prompts_that_they_share(tmp_path: Path) -> None:
    """Two programs' worth of images of each caption, one after the other in the folder."""
    suite, places = sampled(2, n=3), Places(tmp_path / "results", tmp_path / "runs")
    captions = [caption for caption in suite.prompt_list().values() for _ in range(2)]
    folder, prompts = tmp_path / "images", tmp_path / "prompts.txt"
    folder.mkdir()
    for row in range(6):
        Image.fromarray(np.full((64, 64, 3), 20 + 40 * row, np.uint8)).save(folder / f"{row}.png")
    prompts.write_text("\n".join(captions), encoding="utf-8")
    record, scores = records.read(api.record_images(folder, prompts, suite, name="dall-e", places=places, device="cpu"))
    assert (record.suite, record.n_images, record.samples, record.n_prompts) == (suite.id, 6, 2, 3)
    assert scores.keys == [(prompt_id, sample) for sample in (0, 1) for prompt_id in suite.prompt_list()]
    values, unrecorded = api.score(folder, prompts, suite, places=places, device="cpu")
    assert {value.n for value in values if value.name == "clip_score.scenes"} == {3}
    assert unrecorded.keys == [(f"{2 * row:05d}", sample) for row in range(3) for sample in (0, 1)]
    recorded = scores.columns["clip_score.scenes"]
    assert unrecorded.columns["clip_score.scenes"].tolist() == [recorded[3 * sample + row] for row in range(3) for sample in (0, 1)]
    prompts.write_text("\n".join([*captions[:5], captions[0]]), encoding="utf-8")
    with pytest.raises(UserError, match=r"takes 2 images of each of its 3 prompts, but the 6 images in .* have other captions"):
        api.record_images(folder, prompts, suite, name="dall-e", places=places, device="cpu")


def test_noise_floor_of_several_samples_is_over_prompts(teacher: ModelSpec, tmp_path: Path) -> None:
    _, floor = api.noise(teacher, sampled(2), seeds=2, places=Places(tmp_path / "results", tmp_path / "runs"), device="cpu", only="quality")
    folders = [next((tmp_path / "runs/noise/scenes-teacher" / f"{seed}").rglob("scores.parquet")).parent for seed in (0, 1)]
    assert [records.read_record(folder).noise["seed"] for folder in folders] == [0, 1]
    one, other = (records.read_scores(folder) for folder in folders)
    difference = one.columns["clip_score.scenes"] - other.columns["clip_score.scenes"]
    assert difference.all(), "each run has noise of its own"
    by_prompt = mean_per_prompt(one.prompt_ids, difference)[1]
    assert 0 < floor.metrics["clip_score.scenes"].noise == pytest.approx(by_prompt.std(ddof=1) / np.sqrt(5))
    assert floor.n == 10


def test_dry_run_counts_images_and_prompts(teacher: ModelSpec, tmp_path: Path) -> None:
    one, four = (plan([teacher], prepare_in(tmp_path, sampled(samples))) for samples in (1, 4))
    assert "): 20 images a model, 4 for each of 5 prompts\n" in four["text"]
    assert "): 5 images a model\n" in one["text"]
    assert four["disk_bytes"] == 4 * one["disk_bytes"]
