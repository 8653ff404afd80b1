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


def test_speed_ups_have_bounds_only_between_models_that_took_turns() -> None:
    """Of the shipped records: KOALA-700M was timed in a run of its own."""
    found = {(row["suite"], row["model"]): row for row in export.nested(standings.read_rows(Path(__file__).parents[2] / "results"))}
    teacher, vega = found["quality", "scenes-teacher"], found["quality", "scenes-vega"]
    p50 = [next(value["value"] for value in row["values"] if value["metric"] == "latency.pipeline.p50") for row in (teacher, vega)]
    assert vega["speed_up"] == pytest.approx(p50[0] / p50[1])
    assert (f"{vega['speed_up_low']:.2f}", f"{vega['speed_up_high']:.2f}") == ("1.99", "2.75")  # as in LEADERBOARD.md
    assert vega["run"] == teacher["run"]
    koala, sdxl = found["efficiency-cpu", "koala-700m"], found["efficiency-cpu", "sdxl"]
    assert koala["speed_up"] > 1
    assert koala["run"] != sdxl["run"]
    for row in (teacher, koala):
        assert (row["speed_up_low"], row["speed_up_high"]) == (None, None)
    assert found["quality", "scenes-rendered"]["speed_up"] is None


def test_leaderboard_command_writes_all_formats(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["leaderboard", "--results", str(results), "--json"]) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads((results / "LEADERBOARD.json").read_text(encoding="utf-8"))
    assert (results / "LEADERBOARD.csv").read_text(encoding="utf-8") == export.csv_text(standings.read_rows(results))
    assert {path.name for path in results.glob("LEADERBOARD.*")} == {f"LEADERBOARD.{kind}" for kind in ("csv", "json", "md", "tex")}
