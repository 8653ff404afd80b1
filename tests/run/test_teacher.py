"""What students are compared with: which record and which images of the teacher, and what a run says where they are missing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import number
from fakes import METRICS, SUITE, prepare_in, write_again

from sdbench import machine, records, suites
from sdbench.api import Overrides
from sdbench.gate import pairing
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Rule
from sdbench.models.resolve import resolve
from sdbench.models.spec import ModelSpec
from sdbench.records import NamedTeacher, Record, Scores, Value
from sdbench.run import recording, runner
from sdbench.run.context import store_and_jobs
from sdbench.suites import Suite, Teacher
from sdbench.validation import validate

pytestmark = pytest.mark.usefixtures("fake_evaluators")
WIN_RATE = "win_rate.preference.scenes"


def measure(spec: ModelSpec, folder: Path, suite: Suite = SUITE) -> Record:
    (path,) = runner.run([spec], prepare_in(folder, suite))
    return records.read_record(path)


def win_rate(record: Record) -> Value:
    value = record.value(WIN_RATE)
    assert value
    return value


def test_teacher_is_recorded_where_a_suite_only_compares_with_it(teacher: ModelSpec, student: ModelSpec, tmp_path: Path) -> None:
    suite = SUITE.model_copy(update={"metrics": {"scenes": ("agreement.ssim",)}})
    found = [records.read_record(folder) for folder in runner.run([teacher, student], prepare_in(tmp_path, suite))]
    assert [value.state for record in found for value in record.values] == ["not_applicable", "ok"]


def test_student_has_no_win_rate_until_the_teacher_is_run(teacher: ModelSpec, student: ModelSpec, tmp_path: Path) -> None:
    suite = SUITE.model_copy(update={"metrics": {"scenes": (*METRICS, "agreement.ssim", "agreement.clip.scenes")}})
    context = prepare_in(tmp_path, suite)

    def missing(*others: ModelSpec) -> list[str]:
        return recording.missing_of_teacher([student, *others], context)

    assert win_rate(measure(student, tmp_path, suite)).state == "missing"
    record, advice = (
        f"of the teacher, scenes-teacher under {suite.id.title_with_digest}, so",
        "with it will be missing: add --model scenes-teacher",
    )
    assert missing() == [f"record {record} win rates and agreement {advice}"]
    assert missing(teacher) == []
    of_teacher = measure(teacher, tmp_path, suite)
    assert missing() == []
    store_and_jobs(of_teacher.model, context)[0].folder.rename(tmp_path / "away")
    assert missing() == [f"images {record} agreement {advice}"]
    assert win_rate(measure(student, tmp_path, suite)).value == 0.5


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


def test_teacher_record_of_another_suite_does_not_count(teacher: ModelSpec, tmp_path: Path) -> None:
    measure(teacher, tmp_path, SUITE.model_copy(update={"version": 2}))
    assert win_rate(measure(resolve("scenes-rendered"), tmp_path)).state == "missing"


def test_record_of_random_weights_is_not_used_as_the_teacher(teacher: ModelSpec, student: ModelSpec, tmp_path: Path) -> None:
    (folder,) = runner.run([teacher], prepare_in(tmp_path))
    model = records.read_record(folder).model
    write_again(folder, shift=1, model=model.model_copy(update={"source": "random", "label": "random weights"}))
    assert win_rate(measure(student, tmp_path)).value == 0.5


@pytest.fixture
def few_step_suite(tmp_path: Path) -> Suite:
    """The suite with two steps, whose teacher is that of the one-step suite, which is in a file."""
    sampling = "\n".join(f"{key} = {json.dumps(value)}" for key, value in SUITE.sampling if value is not None)
    (tmp_path / "own.toml").write_text(
        'name = "own"\nversion = 1\nfamily = "scenes"\ndescription = ""\nreference = "scenes"\n'
        f"[metrics]\nscenes = {json.dumps(METRICS)}\n[prompts]\nn = 4\n[sampling]\n{sampling}\n",
        encoding="utf-8",
    )
    assert suites.load(str(tmp_path / "own.toml")) == SUITE
    metrics: Any = {"scenes": (*METRICS, "agreement.clip.scenes")}
    changes = {"name": "few", "metrics": metrics, "teacher": Teacher(model="scenes-teacher", suite=str(tmp_path / "own.toml"))}
    return SUITE.model_copy(update={**changes, "sampling": SUITE.sampling.model_copy(update={"steps": 2, "batch": 1})})


def test_few_step_student_is_compared_with_the_teacher_at_the_teachers_own_sampling(
    teacher: ModelSpec, student: ModelSpec, few_step_suite: Suite, tmp_path: Path
) -> None:
    def found(spec: ModelSpec) -> list[Value | None]:
        record = measure(spec, tmp_path, few_step_suite)
        assert record.sampling["steps"] == 2
        assert record.teacher == NamedTeacher(model="scenes-teacher", suite=SUITE.id)
        return [record.value(name) for name in (WIN_RATE, "agreement.clip.scenes")]

    advice = f"first sdbench run --model scenes-teacher --suite {tmp_path / 'own.toml'}"
    missing = (
        f"record of the teacher, scenes-teacher under {SUITE.id.title_with_digest}, "
        f"so win rates and agreement with it will be missing: {advice}"
    )
    assert recording.missing_of_teacher([teacher], prepare_in(tmp_path, few_step_suite)) == [missing], "this run makes others"
    for value in found(student):
        assert value
        assert (value.state, "scenes-teacher under own@1" in value.reason) == ("missing", True)
    runner.run([teacher], prepare_in(tmp_path))
    of_student, itself = found(student), found(teacher)
    assert [value.state for value in (*of_student, *itself) if value] == ["ok"] * 4, "with few steps the teacher is a student of itself"
    agreement = of_student[1]
    assert agreement
    assert number(agreement) < 1 - 1e-9, "the teacher's images are not of these two steps"


def test_overrides_of_prompts_and_size_are_those_of_the_teachers_suite_too(
    teacher: ModelSpec, student: ModelSpec, few_step_suite: Suite, tmp_path: Path
) -> None:
    own = str(tmp_path / "own.toml")
    shared: dict[str, Any] = {"n": 2, "samples_per_prompt": 2, "batch": 1}
    suite = Overrides(**shared, steps=3).apply(few_step_suite)
    of_teacher = Overrides(**shared).apply(suites.load(own))
    assert suite.teacher_suite().id == of_teacher.id
    assert (of_teacher.name, suite.teacher_suite().sampling) == ("own-custom", of_teacher.sampling)
    (missing,) = recording.missing_of_teacher([student], prepare_in(tmp_path, suite))
    options = "--batch 1 --n 2 --samples-per-prompt 2"
    assert missing.startswith(f"record of the teacher, scenes-teacher under {of_teacher.id.title_with_digest}, so ")
    assert missing.endswith(f": first sdbench run --model scenes-teacher --suite {own} {options}")
    runner.run([teacher], prepare_in(tmp_path, of_teacher))
    assert recording.missing_of_teacher([student], prepare_in(tmp_path, suite)) == []
    record = measure(student, tmp_path, suite)
    assert record.teacher == NamedTeacher(model="scenes-teacher", suite=of_teacher.id)
    assert (win_rate(record).state, record.n_images) == ("ok", 4)
    agreement = record.value("agreement.clip.scenes")
    assert agreement
    assert agreement.state == "ok"


def test_overrides_of_the_students_sampling_alone_leave_the_teachers_suite(few_step_suite: Suite) -> None:
    suite = Overrides(steps=3, scheduler="euler", metrics=["agreement.clip.scenes"]).apply(few_step_suite)
    assert suite.teacher_suite() == SUITE
    assert validate(Suite, suite.model_dump(), "the same").id == suite.id
    changed = Overrides(n=2).apply(Overrides(batch=1).apply(few_step_suite))
    assert changed.teacher_suite().id == Overrides(n=2, batch=1).apply(SUITE).id
    assert validate(Suite, changed.model_dump(), "the same") == changed, "as for a run that stops at its verdict"


def test_suite_may_name_its_own_teacher(teacher: ModelSpec, tmp_path: Path) -> None:
    suite = SUITE.model_copy(update={"teacher": Teacher(model="juggernaut")})
    specs = [replace(teacher, name=name) for name in ("scenes-teacher", "juggernaut")]
    found = [win_rate(records.read_record(path)) for path in runner.run(specs, prepare_in(tmp_path, suite))]
    assert [value.state for value in found] == ["ok", "not_applicable"]


def test_values_against_different_teachers_of_the_same_name_are_incomparable(tmp_path: Path) -> None:
    names, wins = (WIN_RATE, "agreement.clip.scenes"), Rule(direction="higher", margin=1, required=True)
    suite = SUITE.model_copy(update={"metrics": {"scenes": ("preference.scenes", *names)}, "teacher": Teacher(model="rendered")})
    specs = [replace(resolve("scenes-rendered"), name=name) for name in ("rendered", "student")]
    rendered, first = runner.run(specs, prepare_in(tmp_path, suite))
    references = [value.reference for name in names if (value := records.read_record(first).value(name))]
    assert references == [rendered.name] * 2, "there are no weights to name it by"
    write_again(rendered, model=records.read_record(rendered).model.model_copy(update={"weights_digest": 16 * "07e4"}))
    (second,) = runner.run(specs[1:], prepare_in(tmp_path, suite))
    found = pairing.measure(WIN_RATE, wins, Side.read(second), Side.read(first), 0.05)
    assert isinstance(found, pairing.Obstacle)
    assert found.reason == f"the candidate was measured against {6 * '07e4'}, the baseline against {rendered.name}; run both again"


def test_win_rate_over_images_drawn_with_other_software_says_so(
    teacher: ModelSpec, student: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reference names only the teacher's weights, so a teacher run again after an upgrade could not be told from the one before."""
    here = machine.environment()
    before = here.model_copy(update={"packages": {**here.packages, "diffusers": "0.1"}})
    monkeypatch.setattr(recording, "environment", lambda: before)
    (older,) = runner.run([teacher], prepare_in(tmp_path))
    monkeypatch.setattr(recording, "environment", lambda: here)
    upgrade = f"diffusers 0.1, here {here.packages['diffusers']}"
    note = win_rate(measure(student, tmp_path)).note
    assert note == f"0 wins, 4 ties, 0 losses; the teacher's images were drawn with {upgrade}; run the teacher here too"
    runner.run([teacher], prepare_in(tmp_path))
    write_again(older, shift=-1)  # as by a colleague who has not upgraded
    found = win_rate(measure(student, tmp_path))
    assert (found.value, found.note) == (0.5, "0 wins, 4 ties, 0 losses"), "the teacher that was drawn as the student is"


def test_devices_of_a_kind_draw_alike_and_images_without_a_model_anywhere(teacher: ModelSpec, tmp_path: Path) -> None:
    drawn, rendered = map(records.read_record, runner.run([teacher, resolve("scenes-rendered")], prepare_in(tmp_path)))
    on_a_card = drawn.model_copy(update={"machine": drawn.machine.model_copy(update={"cuda": "12.8"})})
    here = replace(prepare_in(tmp_path), device="cuda:1")
    assert recording._drawing_differences(on_a_card, here) == recording._drawing_differences(rendered, here) == []
    assert recording._drawing_differences(drawn, here) == ["device cpu, here cuda"]
    on_a_mac = drawn.model_copy(update={"machine": drawn.machine.model_copy(update={"device": "mps"})})
    assert recording._drawing_differences(on_a_mac, replace(here, device="mps")) == []
    assert recording._drawing_differences(on_a_mac, replace(here, device="cpu")) == ["device mps, here cpu"]


def test_win_rate_is_against_the_newest_weights_of_the_teacher_that_have_images(
    teacher: ModelSpec, student: ModelSpec, tmp_path: Path
) -> None:
    (first,) = runner.run([teacher], prepare_in(tmp_path))
    record = records.read_record(first)
    model = record.model.model_copy(update={"weights_digest": 16 * "07e4"})
    environment = record.environment.model_copy(update={"packages": {**record.environment.packages, "diffusers": "0.1"}})
    write_again(first, shift=-1, model=model, environment=environment)
    of_probes: dict[str, Any] = {"created": records.now(), "n_images": 0, "values": ()}
    records.write(record.model_copy(update=of_probes), Scores([], [], {}), {}, tmp_path / "results")
    rate = win_rate(measure(student, tmp_path))
    assert (rate.value, rate.reference) == (1, 6 * "07e4")
