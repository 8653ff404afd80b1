"""Named baselines: one command moves a name, and its history is kept."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from factories import make_measurement, save_record

from sdbench import cli
from sdbench.errors import UserError
from sdbench.gate import baselines, lookup
from sdbench.records import SuiteId


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def test_name_refers_to_its_newest_record_and_keeps_the_history(results: Path) -> None:
    assert baselines.read(results) == {}
    assert baselines.find("production", results) is None
    first, second = save_record(make_measurement("one"), results), save_record(make_measurement("two", seed=2), results)
    baselines.set_baseline("production", first, "the first release", results)
    baselines.set_baseline("nightly", first, "something to begin with", results)
    baselines.set_baseline("production", second, "release 2", results)
    assert baselines.find("production", results) == second
    assert baselines.find("nightly", results) == first
    moves = baselines.read(results)["production"]
    assert [(move.model, move.suite, move.why) for move in moves] == [
        ("one", "quality@1", "the first release"),
        ("two", "quality@1", "release 2"),
    ]
    assert moves[0].when <= moves[1].when
    assert moves[0].when.tzinfo


@pytest.mark.parametrize(
    ("name", "why", "message"),
    [
        ("../x", "because", "not a valid baseline name"),
        ("--x", "because", "a letter or digit first"),
        ("scenes-vega", "because", "is a model in the catalogue, which a baseline of the same name would hide"),
        ("x", " ", "--why"),
    ],
)
def test_invalid_name_or_empty_reason_is_rejected(name: str, why: str, message: str, results: Path) -> None:
    with pytest.raises(UserError, match=message):
        baselines.set_baseline(name, save_record(make_measurement(), results), why, results)
    assert baselines.read(results) == {}


def test_removed_name_stands_for_nothing_and_its_history_says_why(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_record(make_measurement(), results)
    baselines.set_baseline("prodution", folder, "release 1", results)
    baselines.set_baseline("production", folder, "release 1", results)
    words = ["--results", str(results)]
    assert cli.main(["baseline", "remove", "prodution", "--why", "a typo", *words]) == 0
    newest, earlier = [line for line in capsys.readouterr().out.splitlines() if "production " not in line]
    assert newest.startswith("prodution ")
    assert newest.endswith("  removed: a typo")
    assert "release 1" in earlier
    assert baselines.find("prodution", results) is None
    assert baselines.find("production", results) == folder
    assert cli.main(["gate", str(folder), "--baseline", "prodution", *words]) == 2
    assert "baselines.toml has production; did you mean 'production'?" in capsys.readouterr().err
    for name in ("prodution", "nightly"):
        with pytest.raises(UserError, match=f"unknown baseline '{name}'"):
            baselines.remove_baseline(name, "a typo", results)
    with pytest.raises(UserError, match="--why"):
        baselines.remove_baseline("production", " ", results)
    baselines.remove_baseline("production", "no release yet", results)
    with pytest.raises(
        UserError,
        match="names none; name the folder of results with --results, or set a baseline: sdbench baseline set NAME RECORD --why TEXT",
    ):
        baselines.remove_baseline("production", "again", results)
    assert [move.removed for move in baselines.read(results)["production"]] == [False, True]
    baselines.set_baseline("production", folder, "release 2", results)
    assert baselines.find("production", results) == folder


@pytest.mark.parametrize("lines", ["", "record = 'y'\nremoved = true\n"])
def test_move_is_to_a_record_or_a_removal(lines: str, results: Path) -> None:
    results.mkdir()
    (results / "baselines.toml").write_text(f"[[x]]\nwhen = 2025-01-01T00:00:00Z\nwhy = 'y'\n{lines}", encoding="utf-8")
    with pytest.raises(UserError, match="one of 'record' and 'removed'"):
        baselines.read(results)


def test_record_to_name_may_be_given_by_the_name_of_its_model(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenes-vega").mkdir()  # the measured checkpoint
    words = ["baseline", "set", "production", "scenes-vega", "--why", "release 1", "--results", str(results)]
    folder = save_record(make_measurement("scenes-vega"), results)
    assert cli.main(words) == 0
    assert baselines.find("production", results) == folder
    other = save_record(make_measurement("scenes-vega", suite=SuiteId(name="standard", version=1, digest="0")), results)
    assert cli.main(words) == 2
    assert f"there are 2 records of 'scenes-vega'; name one of them: {folder}, {other}" in capsys.readouterr().err
    assert cli.main([*words[:3], "scenes-vegas", *words[4:]]) == 2
    assert "scenes-vegas is not a record" in capsys.readouterr().err
    assert len(baselines.read(results)["production"]) == 1


def test_record_outside_the_results_or_no_record_is_rejected(results: Path, tmp_path: Path) -> None:
    results.mkdir()
    with pytest.raises(UserError, match="can name only records inside it"):
        baselines.set_baseline("x", save_record(make_measurement(), tmp_path / "elsewhere"), "because", results)
    with pytest.raises(UserError, match=r"is not a record: there is no .*record\.json\.$"):
        baselines.set_baseline("x", results, "because", results)


def test_folder_of_records_is_not_taken_for_a_record_or_a_checkpoint(results: Path) -> None:
    newest = save_record(make_measurement(created=datetime(2025, 3, 1, tzinfo=UTC)), results)
    with pytest.raises(UserError, match=rf"is not a record.* It holds one; name that: {newest}$"):
        baselines.set_baseline("x", newest.parent, "because", results)
    save_record(make_measurement(created=datetime(2025, 2, 1, tzinfo=UTC)), results)

    for call in (
        lambda: baselines.set_baseline("x", newest.parent, "because", results),
        lambda: lookup.find_candidate(str(newest.parent), results),
    ):
        with pytest.raises(UserError, match=rf"is not a record.* It holds 2 records; name one of them, such as the newest, {newest}$"):
            call()


def test_folder_that_cannot_be_written_is_reported(results: Path) -> None:
    folder = save_record(make_measurement(), results)
    (results / ".baselines.lock").mkdir()
    with pytest.raises(UserError, match=r"cannot lock .*baselines\.lock: .*Make its folder writable"):
        baselines.set_baseline("production", folder, "release 1", results)


def test_missing_record_and_unreadable_file_are_reported(results: Path) -> None:
    folder = save_record(make_measurement(), results)
    baselines.set_baseline("x", folder, "because", results)
    folder.rename(folder.with_name("gone"))
    with pytest.raises(UserError, match="which does not exist"):
        baselines.find("x", results)
    (results / "baselines.toml").write_text("[[x]]\nrecrod = 'y'\n", encoding="utf-8")
    with pytest.raises(UserError, match="cannot read the baselines"):
        baselines.read(results)


def test_gate_resolves_a_baseline_name_before_names_of_records(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = (
        save_record(make_measurement(worse="clip_score.scenes", by=2), results),
        save_record(make_measurement("scenes-teacher", seed=2), results),
    )
    words = ["--results", str(results)]
    assert cli.main(["baseline", "set", "scenes-student", str(teacher), "--why", "a name like a model's", *words]) == 0
    assert "a name like a model's" in capsys.readouterr().out
    assert cli.main(["gate", str(student), "--baseline", "scenes-student", *words]) == 1
    assert "worse than scenes-teacher" in capsys.readouterr().out
    for command in (["baseline", *words, "--json", "list"], ["baseline", "list", "--json", *words]):
        assert cli.main(command) == 0
        assert '"why": "a name like a model\'s"' in capsys.readouterr().out


def test_misspelt_name_is_reported_with_the_known_names(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_record(make_measurement(), results)
    baselines.set_baseline("production", folder, "because", results)

    def error_message(*words: str) -> str:
        assert cli.main(["gate", str(folder), "--baseline", "prodution", *words]) == 2
        return capsys.readouterr().err

    assert f"Nor is it the name of a baseline: {results / 'baselines.toml'} has production; did you mean 'production'?" in error_message(
        "--results", str(results)
    )
    assert (
        f"there is no {tmp_path / 'baselines.toml'}; name the folder of results with --results, or set a baseline: sdbench baseline set"
        in error_message("--results", str(tmp_path))
    )
    with pytest.raises(UserError, match="is not a checkpoint") as error:
        lookup.find_baseline(str(tmp_path), results)  # the folder exists
    assert "baseline" not in str(error.value)
