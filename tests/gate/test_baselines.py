"""Names of baselines: moved by one command, with their history."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from factories import make_measured, saved

from sdbench import cli
from sdbench.errors import UserError
from sdbench.gate import baselines, lookup


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return tmp_path / "results"


def test_a_name_stands_for_its_newest_record_and_keeps_the_older_ones(results: Path) -> None:
    assert baselines.read(results) == {}
    assert baselines.find("production", results) is None
    first, second = saved(make_measured("one"), results), saved(make_measured("two", seed=2), results)
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
    ("name", "why", "said"),
    [("../x", "because", "not a valid baseline name"), ("--x", "because", "not a valid baseline name"), ("x", " ", "--why")],
)
def test_a_name_and_a_reason_are_asked_for(name: str, why: str, said: str, results: Path) -> None:
    with pytest.raises(UserError, match=said):
        baselines.set_baseline(name, saved(make_measured(), results), why, results)
    assert baselines.read(results) == {}


def test_a_record_from_elsewhere_or_none_is_refused(results: Path, tmp_path: Path) -> None:
    results.mkdir()
    with pytest.raises(UserError, match="can only name records there"):
        baselines.set_baseline("x", saved(make_measured(), tmp_path / "elsewhere"), "because", results)
    with pytest.raises(UserError, match=r"is not a record: there is no .*record\.json\.$"):
        baselines.set_baseline("x", results, "because", results)


def test_a_folder_of_records_is_told_apart_from_a_record_and_from_a_checkpoint(results: Path) -> None:
    newest = saved(make_measured(created=datetime(2025, 3, 1, tzinfo=UTC)), results)
    saved(make_measured(created=datetime(2025, 2, 1, tzinfo=UTC)), results)
    for refused in (
        lambda: baselines.set_baseline("x", newest.parent, "because", results),
        lambda: lookup.find_candidate(str(newest.parent)),
    ):
        with pytest.raises(UserError, match=rf"is not a record.* It holds 2 records; name one of them, such as the newest, {newest}$"):
            refused()


def test_a_lost_record_and_a_broken_file_are_said(results: Path) -> None:
    folder = saved(make_measured(), results)
    baselines.set_baseline("x", folder, "because", results)
    folder.rename(folder.with_name("gone"))
    with pytest.raises(UserError, match="which is not there"):
        baselines.find("x", results)
    (results / "baselines.toml").write_text("[[x]]\nrecrod = 'y'\n")
    with pytest.raises(UserError, match="cannot read the baselines"):
        baselines.read(results)


def test_the_gate_takes_a_name_before_all_else(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    student, teacher = (
        saved(make_measured(worse="clip_score.scenes", by=2), results),
        saved(make_measured("scenes-teacher", seed=2), results),
    )
    words = ["--results", str(results)]
    assert cli.main(["baseline", "set", "scenes-vega", str(teacher), "--why", "a name like a model's", *words]) == 0
    assert "a name like a model's" in capsys.readouterr().out
    assert cli.main(["gate", str(student), "--baseline", "scenes-vega", *words]) == 1
    assert "worse than scenes-teacher" in capsys.readouterr().out
    for order in (["baseline", *words, "--json", "list"], ["baseline", "list", "--json", *words]):
        assert cli.main(order) == 0
        assert '"why": "a name like a model\'s"' in capsys.readouterr().out


def test_a_misspelt_name_is_told_with_those_that_there_are(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = saved(make_measured(), results)
    baselines.set_baseline("production", folder, "because", results)

    def said(*words: str) -> str:
        assert cli.main(["gate", str(folder), "--baseline", "prodution", *words]) == 2
        return capsys.readouterr().err

    assert f"Nor is it the name of a baseline: {results / 'baselines.toml'} has production." in said("--results", str(results))
    assert f"there is no {tmp_path / 'baselines.toml'}; name its folder with --results" in said("--results", str(tmp_path))
    with pytest.raises(UserError, match="is no checkpoint") as error:
        lookup.find_baseline(str(tmp_path), results)  # which is there
    assert "baseline" not in str(error.value)
