"""The leaderboard's tables match golden files, and what they say is tested case by case."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import GPU, make_record, make_scores, save_record
from values import absent, count, score, speeds

from sdbench import records, tables
from sdbench.errors import UserError
from sdbench.leaderboard import export, grids, provenance, published, standings, writing
from sdbench.leaderboard.standings import Row
from sdbench.records import Model, NamedTeacher, Scores, SuiteId, Value

GOLDEN = Path(__file__).parents[1] / "golden"
IMAGES = ("clip_score.scenes", "preference.scenes", "scene_accuracy")


def example_rows() -> list[Row]:
    """Four models in two families, with every case that a table must handle; deliberately out of order."""
    no_model = "images, no model"
    rendered = (
        Value(name="fd.scenes", kind="set", direction="lower", unit="distance", value=3.21, low=2.9, high=3.52, n=256, reference="4ef"),
        score("clip_score.scenes", "100 cos", 33.1234, 32.9, 33.3468),
        score("preference.scenes", "logit", 2.5, 2.45, 2.55),
        absent("win_rate.preference.scenes", "score", "share", "not_applicable", no_model, direction="higher"),
        score("scene_accuracy", "share", 1.0, 0.985, 1.0),
        absent("latency.pipeline.p50", "probe", "s", "not_applicable", no_model),
    )
    teacher = (
        Value(
            name="fd.scenes",
            kind="set",
            direction="lower",
            unit="distance",
            value=41.7,
            low=36.2,
            high=47.2,
            n=256,
            reference="4ef",
            note="descriptive: n < 5 d",
        ),
        score("clip_score.scenes", "100 cos", 30.0, 29.4, 30.6),
        score("preference.scenes", "logit", 1.9, 1.85, 1.95),
        score("win_rate.preference.scenes", "share", 0.5, 0.44, 0.56),
        score("scene_accuracy", "share", 0.93, 0.892, 0.955),
        *speeds(0.5),
        count("parameters.unet", "parameters", 7.1e6),
        count("flops.unet", "MACs", 1.25e8),
    )
    vega = (
        absent("fd.scenes", "set", "distance", "missing", "reference | not built\nyet"),
        absent("clip_score.scenes", "score", "100 cos", "failed", "3 of 256 scores are NaN", direction="higher"),
        score("preference.scenes", "logit", 1.2, 1.1, 1.3, n=255),
        score("scene_accuracy", "share", 0.0, 0.0, 0.0148),
        *speeds(0.2)[:3],
        absent("memory.peak_rss", "probe", "MiB", "failed", "the probe's process died (-9)"),
        count("parameters.unet", "parameters", 2_345_678),
    )
    sdxl = (*speeds(3.0), count("parameters.unet", "parameters", 2_567_463_684), count("flops.unet", "MACs", 3.3806e12))
    suite = SuiteId(name="efficiency", version=2, digest="e44")
    random = Model(name="sdxl", architecture="sdxl", source="random", weights_digest=None, label="random weights")
    examples = [
        make_record("scenes-vega", vega, n_images=256, sampling={"steps": 20, "guidance_scale": 5.0, "scheduler": "euler"}),
        make_record("scenes-teacher", teacher, n_images=256),
        make_record(
            "scenes-rendered",
            rendered,
            n_images=256,
            model=Model(name="scenes-rendered", architecture="none", source="rendered", weights_digest=None),
        ),
        make_record("sdxl", sdxl, family="sdxl", suite=suite, machine=GPU, n_images=0, model=random),
    ]
    return [Row(Path(f"{index}" * 4), record) for index, record in enumerate(examples)]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """The examples with scores, though they have no files: every image has its model's score, preference with added noise."""
    found = example_rows()
    record_of = {row.folder: row.record for row in found}

    def read_scores(folder: Path) -> Scores:
        noise = {"preference.scenes": np.random.default_rng(int(folder.name[0])).normal(0, 9, 256)}
        values = {value.name: value.value for value in record_of[folder].values if value.name in IMAGES and value.value is not None}
        return make_scores(128, 2, **{name: value + noise.get(name, np.zeros(256)) for name, value in values.items()})

    monkeypatch.setattr(records, "read_scores", read_scores)
    return found


def test_markdown_matches_the_golden_file(rows: list[Row]) -> None:
    assert writing.markdown(rows) == (GOLDEN / "leaderboard.md").read_text(encoding="utf-8")


def test_terminal_table_matches_the_golden_file_in_any_terminal(rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")  # whose width rich takes to be 80
    assert writing.text_table(rows, width=150) == (GOLDEN / "leaderboard.txt").read_text(encoding="utf-8")


def test_order_of_records_does_not_matter(rows: list[Row]) -> None:
    assert writing.markdown(rows[::-1]) == writing.markdown(rows)


def test_every_row_has_the_width_of_its_header_and_no_empty_cell(rows: list[Row]) -> None:
    tables_found = re.findall(r"(?:^\|.*\n)+", writing.markdown(rows), re.MULTILINE)
    assert len(tables_found) == 7
    for table in tables_found:
        cells = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in table.strip().splitlines()]
        assert {len(line) for line in cells} == {len(cells[0])}
        assert all(cell.strip() for line in cells[2:] for cell in line)


def test_write_replaces_the_files_with_tables_of_the_records(tmp_path: Path) -> None:
    record = make_record(values=(score("scene_accuracy", "share", 0.5, 0.4, 0.6, n=4),))
    folder = save_record((record, make_scores()), tmp_path)
    (tmp_path / "LEADERBOARD.md").write_text("old", encoding="utf-8")
    rows = standings.read_rows(tmp_path)
    written = writing.write(rows, tmp_path)
    assert written == [tmp_path / f"LEADERBOARD.{kind}" for kind in ("md", "tex", "csv", "json")]
    assert rows == [Row(folder, record)]
    texts = [writing.markdown(rows), writing.latex(rows), export.csv_text(rows), export.json_text(rows)]
    assert [path.read_text(encoding="utf-8") for path in written] == texts
    assert {entry.name for entry in tmp_path.iterdir()} == {*(path.name for path in written), "scenes"}


def test_gpu_whose_driver_could_not_be_asked_has_an_unknown_one(tmp_path: Path) -> None:
    record = make_record(machine=GPU.model_copy(update={"driver": None}))
    row = Row(save_record((record, make_scores()), tmp_path), record)
    assert "device: Some GPU 80GB, driver unknown, CUDA 12.8" in writing.markdown([row])


def test_shipped_leaderboard_is_what_the_shipped_records_make(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "results"
    for path in writing.write(standings.read_rows(shipped), tmp_path):
        assert path.read_text(encoding="utf-8") == (shipped / path.name).read_text(encoding="utf-8"), (
            f"{path.name}: run `sdbench leaderboard`"
        )


def test_latex_has_every_cell_of_the_leaderboard(rows: list[Row]) -> None:
    text = writing.latex(rows)
    cells = {cell for section in standings.sections(rows) for row in grids.quality_grid(section).rows for cell in row}
    parts = {part for cell in cells for part in ((cell.text, cell.note) if isinstance(cell, tables.Cell) else (cell,))}
    assert all(tables.escape_latex(part) in text for part in parts)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\caption{") >= 2
    captions = [line for line in text.splitlines() if line.startswith(r"\caption")]
    assert [standings.ABOUT["scenes"] in caption for caption in captions] == [True, True, False, False], "not of full-size models"
    printed = [line for line in text.splitlines() if not line.startswith("%")]
    assert not [line for line in printed if re.search(r"(?<!\\)[%#_]|[±↑↓]|(?<!\$)\^", line)], "LaTeX cannot print these unescaped"


def test_noise_is_in_the_footer_if_a_record_has_it() -> None:
    with_noise = make_record("new", noise={"kind": "per_image", "seed": 7})
    (section,) = standings.sections([Row(Path("a"), with_noise), Row(Path("b"), make_record("old"))])
    assert 'noise: kind "per_image", seed 7 (new); not in the record (old)' in provenance.footer_lines(section)
    (section,) = standings.sections([Row(Path("b"), make_record("old"))])
    assert not [line for line in provenance.footer_lines(section) if line.startswith("noise")]


def test_rounds_and_calls_are_in_the_footer() -> None:
    def row(name: str, *values: Value) -> Row:
        return Row(Path(name), make_record(name, values))

    p50 = speeds(1.0)[0]
    alike = p50.model_copy(update={"samples": ((1.0, 1.0, 1.1),) * 2})
    failed_once = p50.model_copy(update={"name": f"{p50.name}@b8", "samples": ((8.0, 8.1, 8.2),)})
    (section,) = standings.sections([row("a", alike), row("b", alike, failed_once)])
    assert "rounds x calls of each stage: 2 x 3 (a); 2 x 3, 1 x 3 (b)" in provenance.footer_lines(section)


def test_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write"):
        writing.write([], tmp_path / "file")


def test_text_of_records_cannot_become_a_tag_below_the_tables(rows: list[Row]) -> None:
    rows = [replace(row, record=row.record.model_copy(update={"prompts": "<img src=x>"})) for row in rows]
    assert "- prompts: &lt;img src=x>" in writing.markdown(rows).splitlines()


def test_published_numbers_have_a_source_and_stay_out_of_measured_tables(rows: list[Row]) -> None:
    assert all(claim.source and claim.protocol and claim.values for claim in published.load_claims())
    measured, elsewhere = writing.markdown(rows).split("## Published elsewhere")
    assert "23.4805" in elsewhere
    assert "23.4805" not in measured
    assert "Published" not in writing.markdown([row for row in rows if row.record.family == "scenes"])


def test_speed_up_of_a_few_step_student_is_over_the_teacher_in_its_own_suite() -> None:
    full, few = SuiteId(name="standard", version=3, digest="a"), SuiteId(name="few-step", version=1, digest="b")
    few_step = {"family": "sdxl", "suite": few, "teacher": NamedTeacher(model="sdxl", suite=full)}
    teacher = make_record("sdxl", speeds(6.0), family="sdxl", suite=full)
    student, few_step_teacher = make_record("lcm", speeds(1.0), **few_step), make_record("sdxl", speeds(2.0), **few_step)
    rows = [Row(Path(str(number)), record) for number, record in enumerate((teacher, student, few_step_teacher))]
    (section,) = (found for found in standings.sections(rows) if "few-step" in found.title)
    assert section.teacher is None, "the teacher in 4 steps is not the teacher of the section"
    grid = grids.quality_grid(section)
    assert grid.header[-1] == "speed-up over sdxl under standard@3 ↑"
    assert {row[0]: row[-1] for row in grid.rows} == {"lcm": tables.Cell("6.00x"), "sdxl": tables.Cell("3.00x")}
    random = teacher.model.model_copy(update={"label": "random weights"})
    for change in ({"machine": GPU}, {"model": random}):
        without = standings.sections([rows[1], Row(Path("3"), teacher.model_copy(update=change))])
        (alone,) = (found for found in without if "few-step" in found.title)
        assert alone.speed_baseline is None, "measured on another machine, or with random weights"


def test_value_against_another_reference_than_most_is_marked_below_the_table() -> None:
    def row(name: str, reference: str, state: str = "ok") -> Row:
        number = {"value": 3.0} if state == "ok" else {"reason": "no weights"}
        plain = {"name": "fd.scenes", "kind": "set", "direction": "lower", "unit": "distance", "state": state, "n": 4, "note": "few"}
        return Row(Path(name), make_record(name, (Value.model_validate({**plain, **number, "reference": reference}),)))

    rows = [row("scenes-teacher", "rebuilt"), row("a", "first"), row("b", "first"), row("c", "rebuilt", "missing")]
    (section,) = standings.sections(rows)
    notes = {name: cell.note for name, _, cell in grids.quality_grid(section).rows if isinstance(cell, tables.Cell)}
    assert notes == {"scenes-teacher": f"few; {standings.OTHER_REFERENCE}", "a": "few", "b": "few", "c": "no weights"}


def test_suite_that_times_nothing_has_no_columns_of_speed() -> None:
    untimed = [Row(Path(name), make_record(name, ())) for name in ("scenes-teacher", "scenes-vega")]
    (section,) = standings.sections(untimed)
    grid = grids.quality_grid(section)
    assert (grid.header, grid.rows[0]) == (("model", "images"), ("scenes-teacher", str(untimed[0].record.n_images)))
    (section,) = standings.sections([untimed[0], Row(Path("timed"), make_record("scenes-vega", speeds(1.0)))])
    assert [row[-2] for row in grids.quality_grid(section).rows].count(tables.Cell("missing", "not in this record")) == 1


def test_setting_that_was_measured_without_base_is_shown_under_its_name() -> None:
    rows = [
        Row(
            Path(name),
            make_record(name, tuple(value.model_copy(update={"name": f"{value.name}@channels-last"}) for value in speeds(seconds))),
        )
        for name, seconds in (("scenes-teacher", 3.0), ("scenes-vega", 1.5))
    ]
    (section,) = standings.sections(rows)
    grid = grids.quality_grid(section)
    assert grid.header[-2:] == ("channels-last latency p50 (s) ↓", "speed-up over scenes-teacher ↑")
    assert [row[-1] for row in grid.rows] == [tables.Cell("1.00x"), tables.Cell("2.00x")]
