"""A record is read back unchanged, and any change to its files is detected."""

import errno
import json
import os
import re
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commandline import forbid
from factories import GPU, LAPTOP, make_measurement, make_record, make_scores, save_record
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sdbench import records
from sdbench.errors import UserError
from sdbench.records import Scores, SuiteId, Value

SUITE_ID = SuiteId(name="quality-25", version=1, digest="5017e")


@pytest.mark.parametrize(
    "optional",
    [{}, {"scheduler": {"class": "X"}, "noise": {"seed": 0}, "teacher": {"model": "t", "suite": SUITE_ID}, "groups": {"photo": 4}}],
)
def test_record_is_read_back_as_written(optional: dict[str, Any], tmp_path: Path) -> None:
    record, scores = make_measurement(**optional)
    folder = records.write(record, scores, {"p0000-0.png": b"png"}, tmp_path)
    assert folder.parent == tmp_path / "scenes" / "quality@1" / "scenes-student"
    assert folder.name == records.digest_of(folder)
    assert re.fullmatch("[0-9a-f]{16}", folder.name)
    loaded, loaded_scores = records.read(folder)
    assert loaded == record
    written = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    assert written.keys() & {"scheduler", "noise", "teacher", "groups"} == optional.keys(), "what a record lacks it does not name"
    assert loaded_scores.keys == scores.keys
    assert loaded_scores.columns.keys() == scores.columns.keys()
    for name, column in scores.columns.items():
        np.testing.assert_array_equal(loaded_scores.columns[name], column)
    assert (folder / "images" / "p0000-0.png").read_bytes() == b"png"


@given(rows=st.dictionaries(st.tuples(st.text(), st.integers(0, 99)), st.floats(width=64), min_size=1))
def test_scores_keep_every_key_and_bit(rows: dict[tuple[str, int], float], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("scores") / "scores.parquet"
    column = np.array(list(rows.values()))
    Scores([prompt for prompt, _ in rows], [sample for _, sample in rows], {"a.b:influence": column}).write(path)
    loaded = Scores.read(path)
    assert loaded.keys == list(rows)
    np.testing.assert_array_equal(loaded.columns["a.b:influence"], column)


def test_scores_keep_their_prompts_and_show_ids_without_them(tmp_path: Path) -> None:
    Scores(["a", "b"], [0, 0], {}, ["a cat", "a dog"]).write(tmp_path / "with.parquet")
    Scores(["a", "b"], [0, 0], {}).write(tmp_path / "without.parquet")
    found, without = (Scores.read(tmp_path / name) for name in ("with.parquet", "without.parquet"))
    assert (found.prompts, found.prompt_texts) == (("a cat", "a dog"), ["a cat", "a dog"])
    assert (without.prompts, without.prompt_texts) == (None, ["a", "b"])


def test_nan_scores_stay_nan(tmp_path: Path) -> None:
    folder = save_record((make_record(), make_scores(1, 2, fd=np.array([1.0, np.nan]))), tmp_path)
    np.testing.assert_array_equal(records.read(folder)[1].columns["fd"], [1.0, np.nan])


def test_same_record_written_twice_is_one_folder_without_leftovers(tmp_path: Path) -> None:
    first, second = (save_record(make_measurement(), tmp_path) for _ in range(2))
    assert first == second
    assert [entry.name for entry in first.parent.iterdir()] == [first.name]


def test_at_most_64_thumbnails_are_kept(tmp_path: Path) -> None:
    folder = records.write(make_record(), make_scores(), {f"{i:03}.png": b"png" for i in range(70)}, tmp_path)
    assert sorted(path.name for path in (folder / "images").iterdir()) == [f"{i:03}.png" for i in range(64)]


@pytest.mark.parametrize("name", ["record.json", "scores.parquet"])
def test_changed_file_is_detected(name: str, tmp_path: Path) -> None:
    folder = save_record(make_measurement(), tmp_path / "one")
    other = save_record(make_measurement(seed=5, sampling={"steps": 1}), tmp_path / "other")
    shutil.copy(other / name, folder / name)
    with pytest.raises(UserError, match="changed"):
        records.read(folder)


def test_record_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a machine that goes down leaves one that cannot be read, which stops all that read records."""
    flushed, replace = list[int](), Path.replace

    def replace_flushed(path: Path, target: Path) -> Path:
        assert {(path / name).stat().st_ino for name in ("record.json", "scores.parquet")} == {*flushed}
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(Path, "replace", replace_flushed)
    assert save_record(make_measurement(), tmp_path).is_dir()


def test_record_is_read_from_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_record(make_measurement(), tmp_path)
    monkeypatch.chdir(folder)
    assert records.read(Path())[0] == records.read(folder)[0]


def test_invalid_record_is_an_error(tmp_path: Path) -> None:
    folder = save_record(make_measurement(), tmp_path)
    text = (folder / "record.json").read_text(encoding="utf-8")
    invalid = {
        "unknown key": json.dumps({**json.loads(text), "surprise": 1}),
        "half a file": text[:100],
        "no text": "\udcff",
        "path as name": json.dumps({**json.loads(text), "model": {**json.loads(text)["model"], "name": "../x"}}),
        "formula as name": json.dumps({**json.loads(text), "suite": {**json.loads(text)["suite"], "name": "=1+1"}}),
        "path as family": json.dumps({**json.loads(text), "family": "../.."}),
    }
    for content in invalid.values():
        (folder / "record.json").write_bytes(content.encode("utf-8", "surrogateescape"))
        with pytest.raises(UserError, match=r"record .* cannot be read.*: [^\n]*Restore it, or delete the folder$") as error:
            records.read(folder)
        assert "pydantic" not in str(error.value)
    (folder / "record.json").write_text(text, encoding="utf-8")
    for table in (b"", b"not parquet"):
        (folder / "scores.parquet").write_bytes(table)
        with pytest.raises(UserError, match=r"record .* cannot be read"):
            records.read(folder)
    (folder / "scores.parquet").unlink()
    with pytest.raises(UserError, match=r"record .* cannot be read"):
        records.read(folder)
    with pytest.raises(UserError, match="nowhere is not a record: there is no"):
        records.read(tmp_path / "nowhere")


def test_record_of_a_later_schema_is_not_to_be_deleted(tmp_path: Path) -> None:
    folder = save_record(make_measurement(), tmp_path)
    later = {**json.loads((folder / "record.json").read_text(encoding="utf-8")), "schema_version": 2, "surprise": 1}
    (folder / "record.json").write_text(json.dumps(later), encoding="utf-8")
    with pytest.raises(UserError, match=r"of schema 1\): schema_version: .* It is of another version of sdbench: update sdbench$"):
        records.read_record(folder)


@pytest.mark.parametrize("name", ["record.json", "scores.parquet"])
def test_record_without_permission_is_not_to_be_deleted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_record(make_measurement(), tmp_path)

    def refuse(path: Path, *_: object, **__: object) -> None:  # chmod would not stop root
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_text", refuse) if name == "record.json" else monkeypatch.setattr(Scores, "read", refuse)
    with pytest.raises(UserError, match=rf"record .* cannot be read .*Permission denied: '.*{name}'\. Make it readable$"):
        records.read(folder)


def test_folder_that_cannot_be_listed_is_not_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, scores = make_measurement()
    locked = save_record((record, scores), tmp_path).parent
    forbid(locked, monkeypatch)
    with pytest.raises(PermissionError):
        records.newest_per_model(tmp_path)
    with pytest.raises(PermissionError):
        records.find(tmp_path, record.family, record.suite, record.model.name)
    assert records.newest_per_model(tmp_path, name="another") == [], "it is not asked for"


@pytest.mark.parametrize("place", ["lost+found", "scenes/quality@1/scenes-student/.writing-x"])
def test_folder_that_only_its_owner_reads_and_that_holds_no_record_is_no_error(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the root of a volume, and beside records that another user's run is writing."""
    folder = save_record(make_measurement(), tmp_path)
    (tmp_path / place).mkdir()
    forbid(tmp_path / place, monkeypatch)
    assert records.folders(tmp_path) == [folder]


@pytest.mark.parametrize(("kept", "missing"), [({"sample": [1]}, "prompt_id"), ({"prompt_id": ["p0"]}, "sample")])
def test_scores_without_keys_are_an_error(kept: dict[str, list[Any]], missing: str, tmp_path: Path) -> None:
    folder = save_record(make_measurement(), tmp_path)
    pq.write_table(pa.table(kept), folder / "scores.parquet")
    with pytest.raises(UserError, match=rf"record .* cannot be read .*: scores\.parquet has no column '{missing}'"):
        records.read(folder)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("a.b", [[1.0], [2.0]], r"column 'a\.b' of scores\.parquet holds list<.*>, expected floating-point numbers"),
        ("a.b", [1, 2], r"column 'a\.b' of scores\.parquet holds int64, expected floating-point numbers"),
        ("a.b", ["x", "y"], r"column 'a\.b' of scores\.parquet holds string, expected floating-point numbers"),
        ("prompt_id", [1, 2], r"column 'prompt_id' of scores\.parquet holds int64, expected text"),
        ("prompt", [None, None], r"column 'prompt' of scores\.parquet holds null, expected text"),
        ("sample", [0.0, 1.0], r"column 'sample' of scores\.parquet holds double, expected whole numbers"),
    ],
)
def test_column_of_another_type_is_an_error_with_file_and_column(column: str, values: list[Any], message: str, tmp_path: Path) -> None:
    folder = save_record(make_measurement(), tmp_path)
    table = {"prompt_id": ["p0", "p1"], "sample": [0, 0], "a.b": [1.0, 2.0], column: values}
    pq.write_table(pa.table(table), folder / "scores.parquet")
    with pytest.raises(UserError, match=rf"record .* cannot be read .*{message}\. Restore it"):
        records.read(folder)


def test_unwritable_place_is_an_error_with_the_model(tmp_path: Path) -> None:
    (tmp_path / "scenes").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write the record of 'scenes-student'"):
        save_record(make_measurement(), tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_record_is_readable_by_other_users(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        folder = save_record(make_measurement(), tmp_path)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == 0o755
    assert (folder / "record.json").stat().st_mode & 0o777 == 0o644


def test_row_is_the_newest_record_of_model_suite_version_and_machine_class(tmp_path: Path) -> None:
    old = make_record()
    later: dict[str, Any] = {"created": old.created + timedelta(days=1)}
    newest = [
        make_record(**later),
        make_record("scenes-vega"),
        make_record(machine=GPU),
        make_record(suite=SuiteId(name="quality", version=2, digest="5017e")),
        make_record(family="sdxl"),
    ]
    same_class = LAPTOP.model_copy(update={"ram_gib": 64.0, "torch": "2.11.1"})
    older = [old, make_record(machine=same_class, created=old.created - timedelta(days=1))]
    for record in (*newest, *older):
        save_record((record, make_scores()), tmp_path)
    rows = records.newest_per_model(tmp_path)
    assert [record for _, record in rows] == sorted(
        newest, key=lambda r: (r.family, r.suite.version, r.model.name, r.machine.machine_class)
    )
    assert all(records.read(folder)[0] == record for folder, record in rows)
    assert [record.family for _, record in records.newest_per_model(tmp_path, "sdxl")] == ["sdxl"]
    assert records.newest_per_model(tmp_path / "nowhere") == []


def test_random_weights_and_other_settings_do_not_hide_other_rows(tmp_path: Path) -> None:
    real = make_record()
    random = real.model.model_copy(update={"source": "random", "weights_digest": None, "label": "random weights"})
    later: dict[str, Any] = {"created": real.created + timedelta(days=1)}
    others = [make_record(model=random, **later), make_record(suite=SuiteId(name="quality", version=1, digest="0"), **later)]
    for record in (real, *others):
        save_record((record, make_scores()), tmp_path)
    assert [record for _, record in records.newest_per_model(tmp_path)] == [others[1], real, others[0]]
    assert [record for _, record in records.find(tmp_path, "scenes", real.suite, real.model.name)] == [real]
    assert [record for _, record in records.find(tmp_path, "scenes", real.suite, real.model.name, "random weights")] == [others[0]]


def test_half_written_record_is_ignored(tmp_path: Path) -> None:
    folder = save_record((make_record(), make_scores()), tmp_path)
    shutil.copytree(folder, folder.parent / ".writing-x" / "record")
    assert len(records.newest_per_model(tmp_path)) == 1


def test_one_changed_record_makes_reading_all_fail(tmp_path: Path) -> None:
    folder = save_record((make_record(), make_scores()), tmp_path)
    save_record((make_record("scenes-vega"), make_scores()), tmp_path)
    with (folder / "record.json").open("a", encoding="utf-8") as file:
        file.write("\n")
    with pytest.raises(UserError, match="changed"):
        records.newest_per_model(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"value": None},
        {"value": float("nan")},
        {"value": float("inf")},
        {"value": 1, "low": float("-inf")},
        {"state": "missing", "reason": ""},
        {"state": "failed", "reason": "x", "value": 0},
        *({"state": "missing", "reason": "x", end: 0} for end in ("low", "high")),
        {"state": "lost", "reason": "x"},
        {"value": 1, "unknown": 1},
    ],
)
def test_value_must_be_finite_or_have_a_reason(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Value.model_validate({"name": "fd", "kind": "set", "direction": "lower", "unit": "distance", **fields})


def test_samples_must_be_finite() -> None:
    with pytest.raises(ValidationError):
        Value(name="latency", kind="probe", direction="lower", unit="s", value=1, samples=((1.0, float("nan")),))


def test_machine_class_changes_only_with_what_affects_speed() -> None:
    assert GPU.machine_class == "Some GPU 80GB, driver 550, torch 2.11, CUDA 12.8, Some CPU 3000"
    assert ", driver unknown, " in GPU.model_copy(update={"driver": None}).machine_class
    assert LAPTOP.machine_class == "Some CPU 3000 (8 cores), torch 2.11"
    same = {"driver": "550.90.07", "torch": "2.11.3+cu128", "ram_gib": 64.0, "cores": 32}
    assert GPU.model_copy(update=same).machine_class == GPU.machine_class
    for change in ({"driver": "560.1"}, {"torch": "2.12.0"}, {"cuda": "12.9"}, {"device": "Other GPU"}, {"cpu": "Slower CPU"}):
        assert GPU.model_copy(update=change).machine_class != GPU.machine_class


def test_image_metric_and_influence_column_refer_to_each_other() -> None:
    fields = {"direction": "lower", "unit": "1", "value": 1}
    values = [Value.model_validate({"name": "fd", "kind": kind, **fields}) for kind in ("score", "set", "probe", "count")]
    assert [value.is_image_metric for value in values] == [True, True, False, False]
    assert [value.column for value in values[:2]] == ["fd", "fd:influence"]
    assert [records.influenced_metric(value.column) for value in values[:2]] == [None, "fd"]


def test_mean_per_prompt_is_over_its_samples_in_any_order() -> None:
    prompts, means = records.mean_per_prompt(["b", "a", "b", "c"], np.array([1.0, 5.0, 2.0, -1.0]))
    assert (prompts.tolist(), means.tolist()) == (["a", "b", "c"], [5.0, 1.5, -1.0])
