"""The leaderboard as CSV and JSON: every value of every row, and missing values left empty."""

import csv
import io
import json
from pathlib import Path

import pytest
from boards import MODELS, make_model, write_board
from factories import with_value

from sdbench import cli, records
from sdbench.leaderboard import export, standings


@pytest.fixture
def results(tmp_path: Path) -> Path:
    write_board(tmp_path)
    missing = with_value(
        make_model(3, "scenes-odd"), "fd.scenes", state="missing", reason='no "reference",\nyet', value=None, low=None, high=None
    )
    records.write(*missing, {}, tmp_path)
    return tmp_path


def test_csv_has_a_line_with_the_state_of_each_value(results: Path) -> None:
    rows = standings.read_rows(results)
    lines = list(csv.DictReader(io.StringIO(export.csv_text(rows))))
    assert len(lines) == sum(len(row.record.values) for row in rows)
    assert list(lines[0]) == list(export.COLUMNS)
    by_key = {(line["model"], line["metric"]): line for line in lines}
    value = rows[0].record.value("clip_score.scenes")
    assert value is not None
    assert float(by_key[rows[0].record.model.name, "clip_score.scenes"]["value"]) == value.value
    absent = by_key["scenes-odd", "fd.scenes"]
    assert (absent["value"], absent["state"], absent["reason"], absent["rank"]) == ("", "missing", 'no "reference",\nyet', "")
    assert [by_key[name, "clip_score.scenes"]["rank"] for name in MODELS] == ["1", "2", "3"]


def test_json_has_the_same_values_as_csv(results: Path) -> None:
    rows = standings.read_rows(results)
    nested = json.loads(json.dumps(export.nested(rows)))
    assert {row.pop("schema_version") for row in nested} == {1}
    flattened = [{key: item for key, item in row.items() if key != "values"} | value for row in nested for value in row["values"]]
    lines = list(export.lines(rows))
    assert [line | {name: json.loads(line[name]) for name in ("sampling", "scheduler", "noise")} for line in lines] == flattened
    assert nested[0]["sampling"] == rows[0].record.sampling
    assert (nested[0]["commit"], nested[0]["dirty"]) == ("c0441e", False)


def test_leaderboard_command_writes_all_formats(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["leaderboard", "--results", str(results), "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads((results / "LEADERBOARD.json").read_text(encoding="utf-8"))
    assert (results / "LEADERBOARD.csv").read_text(encoding="utf-8") == export.csv_text(standings.read_rows(results))
    assert {path.name for path in results.glob("LEADERBOARD.*")} == {f"LEADERBOARD.{kind}" for kind in ("csv", "json", "md", "tex")}
