"""What a record takes over from an earlier one: the rest of the suite, of the same weights, machine and software alone."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import LATENCY, METRICS, PROBED, SUITE, fail_if_called, prepare_in, replace_probes, write_again

from sdbench import machine, records
from sdbench.errors import UserError
from sdbench.models.resolve import resolve
from sdbench.models.spec import ModelSpec
from sdbench.probes import driver
from sdbench.probes.driver import ProbeResult
from sdbench.records import Record, Value
from sdbench.records import files as record_files
from sdbench.run import recording, runner
from sdbench.run.context import RunContext, prepare
from sdbench.settings import Probes, Setting

pytestmark = pytest.mark.usefixtures("fake_evaluators")
SIZE = Value(name="parameters.unet", kind="count", direction="lower", unit="parameters", value=7)


def test_weights_measured_before_keep_their_earlier_values(teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = runner.run([teacher, resolve("scenes-rendered")], prepare_in(tmp_path))
    record = records.read_record(first)
    write_again(first, model=record.model.model_copy(update={"weights_digest": "of another checkpoint"}), values=())
    models_read, head, probes_only = set[str](), record_files.read_record, replace(prepare_in(tmp_path), only="probes")

    def recorded(folder: Path) -> Record:
        models_read.add(folder.parent.name)
        return head(folder)

    monkeypatch.setattr(record_files, "read_record", recorded)
    (again,) = runner.run([teacher], probes_only)
    assert models_read == {"scenes-teacher"}, "records of other models are not read"
    found = records.read(again)[0]
    assert (found.model, found.values, found.n_images) == (record.model, record.values, 4)
    assert again in [folder for folder, _ in records.newest_per_model(tmp_path / "results")]


def test_a_name_whose_row_is_now_of_other_weights_is_noted(teacher: ModelSpec, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def notes() -> list[str]:
        runner.run([teacher], prepare_in(tmp_path))
        return [line for line in capsys.readouterr().err.splitlines() if "other weights" in line]

    assert notes() == []
    ((first, record),) = records.newest_per_model(tmp_path / "results")
    other = write_again(first, model=record.model.model_copy(update={"weights_digest": "of another training"})).name
    assert notes() == [
        (
            f"scenes-teacher now stands for other weights: record {other} is no longer its row (for both rows, measure it with another "
            "--name, or both models in one run)"
        )
    ]
    assert notes() == [], "the row is kept"


def test_older_record_without_noise_and_scheduler_is_kept(teacher: ModelSpec, tmp_path: Path) -> None:
    (folder,) = runner.run([teacher], prepare_in(tmp_path))
    record, scores = records.read(folder)
    older = records.write(record.model_copy(update={"noise": {}, "scheduler": {}}), scores, {}, tmp_path / "older" / "results")
    assert '"noise"' not in (older / "record.json").read_text(encoding="utf-8")
    (tmp_path / "runs").rename(tmp_path / "older" / "runs")
    assert runner.run([teacher], prepare_in(tmp_path / "older")) == [older]


def test_values_of_another_machine_are_not_taken_over(teacher: ModelSpec, tmp_path: Path) -> None:
    (here,) = runner.run([teacher], prepare_in(tmp_path))
    record, scores = records.read(here)
    shutil.rmtree(tmp_path / "results")
    there = {"machine": record.machine.model_copy(update={"device": "Some GPU", "cuda": "12.8"}), "values": (*record.values, LATENCY)}
    records.write(record.model_copy(update=there), scores, {}, tmp_path / "results")
    (again,) = runner.run([teacher], prepare_in(tmp_path))
    assert records.read_record(again).values == record.values


def test_run_of_probes_keeps_the_quality_values_of_the_record(teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace_probes(monkeypatch, SIZE)
    (images,) = runner.run([teacher], prepare_in(tmp_path, PROBED))
    (tmp_path / "moved").symlink_to(teacher.location)
    moved = replace(teacher, location=str(tmp_path / "moved"))  # the same weights
    (both,) = runner.run([moved], prepare_in(tmp_path, PROBED, "probes"))
    assert both != images
    record, scores = records.read(both)
    before, columns = records.read(images)
    assert record.values == (*before.values, SIZE)
    assert record.n_images == before.n_images > 0
    thumbnails, kept = records.thumbnail_files(images), records.thumbnail_files(both)
    assert {name: file.read_bytes() for name, file in kept.items()} == {name: file.read_bytes() for name, file in thumbnails.items()} != {}
    assert (before.run, record.run) == ("", "turns")
    assert {name: column.tolist() for name, column in scores.columns.items()} == {
        name: column.tolist() for name, column in columns.columns.items()
    }
    assert runner.run([moved], prepare_in(tmp_path, PROBED)) == [both]
    larger = SIZE.model_copy(update={"value": 8})
    replace_probes(monkeypatch, larger)
    (again,) = runner.run([moved], prepare_in(tmp_path, PROBED, "probes"))
    assert records.read_record(again).values == (*before.values, larger), "the new value in place of the old one"


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
    def measured(only: str | None = "quality") -> tuple[Value, ...]:
        (folder,) = runner.run([teacher], prepare_in(tmp_path, PROBED, only))
        return records.read_record(folder).values

    replace_probes(monkeypatch, LATENCY)
    here = machine.environment()
    there = here.model_copy(update={name: {**getattr(here, name), **values} for name, values in change.items()})
    monkeypatch.setattr(recording, "environment", lambda: there)
    measured()
    monkeypatch.setattr(recording, "environment", lambda: here)
    assert measured("probes") == (LATENCY,)
    assert "clip_score.scenes, fd.scenes" in capsys.readouterr().err
    assert {value.name for value in measured()} == {*METRICS, LATENCY.name}
    monkeypatch.setattr(recording, "environment", lambda: there)
    assert LATENCY not in measured()


def test_a_run_says_which_values_only_other_software_measured(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work, here = SIZE.model_copy(update={"name": "flops.unet"}), machine.environment()
    there = here.model_copy(update={"packages": {**here.packages, "diffusers": "0.1"}})
    said = []
    for software, measured in ((there, [SIZE]), (there, [SIZE, work]), (here, [SIZE]), (here, [SIZE, work]), (here, [SIZE])):
        monkeypatch.setattr(recording, "environment", lambda software=software: software)
        replace_probes(monkeypatch, *measured)
        runner.run([teacher], prepare_in(tmp_path, PROBED, "probes"))
        said.append(capsys.readouterr().err)
    lacking = (
        "scenes-teacher: its new record lacks flops.unet, which other versions or environment variables measured; "
        "run the whole suite again\n"
    )
    assert said == ["", "", lacking, "", ""]


def test_settings_measured_in_separate_runs_are_merged_into_one_record(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds, turns, p50 = iter(range(1, 9)), iter("abcdef"), LATENCY.name
    found = list[str]()

    def fake_measure(specs: list[ModelSpec], *_: Any, settings: tuple[str, ...], **__: Any) -> ProbeResult:
        names = [p50 if label == "base" else f"{p50}@{label}" for label in settings or ("base", "b2")]
        values = [
            [*(Value(name=name, kind="probe", direction="lower", unit="s", value=next(seconds)) for name in names), SIZE] for _ in specs
        ]
        return ProbeResult(dict(zip([spec.name for spec in specs], values, strict=True)), next(turns))

    monkeypatch.setattr(driver, "measure", fake_measure)
    monkeypatch.setattr(runner, "load", fail_if_called)
    suite = SUITE.model_copy(update={"metrics": {}, "probes": Probes(rounds=1, calls=2, warmup=0, settings=(Setting(batch=2),))})

    def run(*settings: str) -> dict[str, float | None]:
        context = RunContext(suite, "cpu", tmp_path / "results", tmp_path / "runs", settings=settings)
        prepare(context)
        (folder,) = runner.run([teacher], context)
        record = records.read_record(folder)
        found.append(record.run)
        return {value.name: value.value for value in record.values}

    assert run("base") == {p50: 1, SIZE.name: 7}
    assert run("b2") == {p50: 1, SIZE.name: 7, f"{p50}@b2": 2}
    assert run("base") == {p50: 3, SIZE.name: 7, f"{p50}@b2": 2}
    assert list(run("b2")) == list(run("base")) == [p50, SIZE.name, f"{p50}@b2"], "in the suite's order, whichever came last"
    assert run() == {p50: 6, SIZE.name: 7, f"{p50}@b2": 7}
    assert found == ["a", "", "", "", "", "f"], "settings that were not measured in turns belong to no one run"
    with pytest.raises(UserError, match="unknown setting 'b3'"):
        run("b3")
