"""The leaderboard's tables match golden files, and the rules for their numbers are tested one by one."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import GPU, LAPTOP, make_record, make_scores, save_record

from sdbench import records, tables
from sdbench.errors import UserError
from sdbench.leaderboard import flat, published, standings, writing
from sdbench.leaderboard.standings import Row
from sdbench.records import Model, NamedTeacher, Record, Scores, SuiteId, Value
from sdbench.score import PROTOCOLS

MARKS = ["¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹", "¹⁰", "¹¹", "¹²"]
GOLDEN = Path(__file__).parents[1] / "golden"
IMAGES = ("clip_score.scenes", "preference.scenes", "scene_accuracy")


@pytest.fixture(autouse=True)
def _scores(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Scores for `example_rows`, which has no files: every image has its model's score, preference with added noise."""
    if "tmp_path" in request.fixturenames:
        return

    def read_scores(folder: Path) -> Scores:
        (record,) = (row.record for row in example_rows() if row.folder == folder)
        noise = {"preference.scenes": np.random.default_rng(int(folder.name[0])).normal(0, 9, 256)}
        values = {value.name: value.value for value in record.values if value.name in IMAGES and value.value is not None}
        return make_scores(128, 2, **{name: value + noise.get(name, np.zeros(256)) for name, value in values.items()})

    monkeypatch.setattr(records, "read_scores", read_scores)


def score(name: str, unit: str, value: float, low: float, high: float, **more: object) -> Value:
    plain = {"name": name, "kind": "score", "direction": "higher", "unit": unit, "value": value, "low": low, "high": high, "n": 256}
    return Value.model_validate({**plain, **more})


def probe(name: str, unit: str, value: float, low: float | None = None, high: float | None = None, **more: object) -> Value:
    return Value.model_validate(
        {"name": name, "kind": "probe", "direction": "lower", "unit": unit, "value": value, "low": low, "high": high, "n": 40, **more}
    )


def count(name: str, unit: str, value: float) -> Value:
    return Value(name=name, kind="count", direction="lower", unit=unit, value=value)


def absent(name: str, kind: str, unit: str, state: str, reason: str, *, direction: str = "lower") -> Value:
    return Value.model_validate({"name": name, "kind": kind, "direction": direction, "unit": unit, "state": state, "reason": reason})


def speeds(seconds: float) -> tuple[Value, ...]:
    return (
        probe("latency.pipeline.p50", "s", seconds, seconds * 0.99, seconds * 1.01),
        probe("latency.pipeline.p90", "s", seconds * 1.1, seconds * 1.05, seconds * 1.3),
        probe("latency.pipeline.p99", "s", seconds * 1.2),
        probe("latency.unet_step.p50", "s", seconds / 25, seconds / 25.5, seconds / 24.5),
        probe("latency.unet_step.p90", "s", seconds / 24),
        Value(
            name="images_per_second",
            kind="probe",
            direction="higher",
            unit="1/s",
            value=4 / seconds,
            low=3.9 / seconds,
            high=4.1 / seconds,
            n=40,
        ),
        probe("memory.peak_rss", "MiB", 912.4, n=1),
    )


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


def test_markdown_matches_the_golden_file() -> None:
    assert writing.markdown(example_rows()) == (GOLDEN / "leaderboard.md").read_text(encoding="utf-8")


def test_terminal_table_matches_the_golden_file_in_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")  # whose width rich takes to be 80
    assert writing.text_table(example_rows(), width=150) == (GOLDEN / "leaderboard.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [60, 100, 160])
def test_many_models_go_down_in_as_many_tables_as_a_terminal_needs(width: int) -> None:
    names = [f"my-vega-lr1e-5-step-{1000 * step:06d}" for step in range(40)]
    header = ("model", *(f"clip_score.backbone-{column} (100 cos) ↑" for column in range(6)))
    grid = tables.Grid(header, tuple((name, *["0.803 (0.766..0.835)"] * 6) for name in names))
    assert grid.tall() == grid.transposed().tall() == grid
    parts = [*grid.parts(width)]
    assert [title for part in parts for title in part.header[1:]] == [*header[1:]]
    assert {part.columns()[0] for part in parts} == {("model", *names)}
    lines = [line for part in parts for line in tables.text(part, width).splitlines()]
    assert max(map(len, lines)) <= width
    assert sum(any(name in line for name in names) for line in lines) == 40 * len(parts)  # no name is broken


def test_a_table_is_cut_only_where_it_does_not_fit() -> None:
    grid = tables.Grid(("model", "a", "bb", "ccc"), (("scenes-teacher", "1", "2", "3"),))
    uncut = tables.text(grid, 80)
    width = max(map(len, uncut.splitlines())) + 1  # with the space behind the last column
    assert [tables.text(grid, given) == uncut for given in (width - 1, width)] == [False, True]
    assert max(map(len, tables.text(grid, width - 1).splitlines())) < width - 1
    assert [part.header for part in grid.parts(10)] == [("model", title) for title in ("a", "bb", "ccc")], (
        "no part is the first column alone"
    )


def test_a_square_table_is_not_turned() -> None:
    grid = tables.Grid(("model", "x"), (("a", "1"),))
    assert grid.tall() == grid


def test_a_cell_wraps_between_words_only() -> None:
    grid = tables.Grid(("model", "note"), (("a", "as measured of my-vega-lr1e-5 before"),))
    assert "my-vega-lr1e-5" in tables.text(grid, 30)


def test_a_table_too_wide_for_its_terminal_breaks_words_rather_than_lose_them() -> None:
    grid = tables.Grid(("metric", "verdict"), (("preference.scenes", "inconclusive"),))
    lines = tables.text(grid, 20).splitlines()
    assert max(map(len, lines)) <= 20
    letters = "".join(line[:11].strip() for line in lines[2:]), "".join(line[11:].strip() for line in lines[2:])
    assert letters == ("preference.scenes", "inconclusive")


def test_order_of_records_does_not_matter() -> None:
    assert writing.markdown(example_rows()[::-1]) == writing.markdown(example_rows())


def test_every_row_has_the_width_of_its_header_and_no_empty_cell() -> None:
    tables_found = re.findall(r"(?:^\|.*\n)+", writing.markdown(example_rows()), re.MULTILINE)
    assert len(tables_found) == 7
    for table in tables_found:
        cells = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in table.strip().splitlines()]
        assert {len(line) for line in cells} == {len(cells[0])}
        assert all(cell.strip() for line in cells[2:] for cell in line)


def test_machines_suite_versions_digests_and_families_never_share_a_table() -> None:
    def make(**changes: object) -> Record:
        return make_record("scenes-teacher", (score("scene_accuracy", "share", 0.5, 0.4, 0.6),), **changes)

    others = [
        make(),
        make(machine=GPU),
        make(machine=LAPTOP.model_copy(update={"torch": "2.12.0"})),
        make(family="sdxl"),
        make(suite=SuiteId(name="quality", version=2, digest="5017e")),
        make(suite=SuiteId(name="quality", version=1, digest="07e4")),
        make(suite=SuiteId(name="standard", version=1, digest="5017e")),
    ]
    found = standings.sections([Row(Path("0"), record) for record in others])
    assert [len(section.rows) for section in found] == [1] * len(others)
    titles = [section.title for section in found]
    speed_alone = Row(Path("1"), make(suite=SuiteId(name="efficiency", version=1, digest="e44"), n_images=0))
    with_speed = [section.title for section in standings.sections([speed_alone, *(Row(Path("0"), record) for record in others)])]
    (title,) = set(with_speed) - set(titles)
    assert title.startswith("scenes: efficiency@1")
    assert with_speed.index(title) == sum(record.family == "scenes" for record in others), "after all sections with images"
    assert len(set(titles)) == len(others), "sections of one suite and machine differ by their digest"
    assert [title for title in titles if "digest" in title] == [
        "scenes: quality@1 (digest 07e4) on Some CPU 3000 (8 cores), torch 2.11",
        "scenes: quality@1 (digest 5017e) on Some CPU 3000 (8 cores), torch 2.11",
    ]


def test_teacher_of_a_section_is_the_one_with_real_weights() -> None:
    def row(label: str) -> Row:
        model = Model(name="scenes-teacher", architecture="sdxl", source="embedded", weights_digest=None, label=label)
        return Row(Path("0"), make_record(values=speeds(2.0), model=model))

    real, random, student = row(""), row("random weights"), Row(Path("0"), make_record("scenes-vega", speeds(1.0)))
    for rows in ([real, random, student], [student, random, real]):
        (section,) = standings.sections(rows)
        assert section.teacher == real
        assert {row.name for row in section.rows} == {"scenes-teacher", "scenes-teacher (random weights)", "scenes-vega"}
    (section,) = standings.sections([student, random])
    assert section.teacher == random
    assert standings.sections([student])[0].teacher is None


def test_models_are_ordered_from_rendered_images_and_teacher_to_the_smallest_and_unknown() -> None:
    def row(name: str, parameters: float | None, source: str = "folder:x") -> Row:
        values = (count("parameters.unet", "parameters", parameters),) if parameters else ()
        return Row(
            Path("0"), make_record(name, values, model=Model(name=name, architecture="custom", source=source, weights_digest="3e16"))
        )

    shuffled = [
        row("a-small", 1e6),
        row("finetune", 7e6),
        row("an-unknown", None),
        row("scenes-rendered", None, "rendered"),
        row("scenes-teacher", 7e6),
    ]
    (section,) = standings.sections(shuffled)
    assert [record.model.name for record in section.records] == ["scenes-rendered", "scenes-teacher", "finetune", "a-small", "an-unknown"]


def test_every_metric_has_a_title_and_a_place_among_the_columns() -> None:
    assert [name for name in PROTOCOLS if standings.title_rank(name, tuple(standings.TITLES)) == len(standings.TITLES)] == []


def test_write_replaces_the_files_with_tables_of_the_records(tmp_path: Path) -> None:
    record = make_record(values=(score("scene_accuracy", "share", 0.5, 0.4, 0.6, n=4),))
    folder = save_record((record, make_scores()), tmp_path)
    (tmp_path / "LEADERBOARD.md").write_text("old", encoding="utf-8")
    rows = standings.read_rows(tmp_path)
    written = writing.write(rows, tmp_path)
    assert written == [tmp_path / f"LEADERBOARD.{kind}" for kind in ("md", "tex", "csv", "json")]
    assert rows == [Row(folder, record)]
    texts = [writing.markdown(rows), writing.latex(rows), flat.csv_text(rows), flat.json_text(rows)]
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


def test_latex_has_every_cell_of_the_leaderboard() -> None:
    text = writing.latex(example_rows())
    cells = {cell for section in standings.sections(example_rows()) for row in writing.quality_grid(section).rows for cell in row}
    parts = {part for cell in cells for part in ((cell.short, cell.note) if isinstance(cell, tables.Noted) else (cell,))}
    assert all(tables.escape_latex(part) in text for part in parts)
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\caption{") >= 2
    printed = [line for line in text.splitlines() if not line.startswith("%")]
    assert not [line for line in printed if re.search(r"(?<!\\)[%#_]|[±↑↓]|(?<!\$)\^", line)], "LaTeX cannot print these unescaped"


def test_notes_stand_below_the_table_each_once() -> None:
    few, lost = tables.Noted("2 (n is 3)", "2", "n is 3"), tables.Noted("missing: a_b | c", "missing", "a_b | c")
    grid = tables.Grid(("model", "x", "y"), (("a", few, lost), ("b", "1", few)))
    assert tables.markdown(grid).splitlines()[2:] == ["| a | 2 ¹ | missing ² |", "| b | 1 | 2 ¹ |", "", "¹ n is 3; ² a_b | c"]
    assert tables.markdown(grid.transposed()).splitlines()[2:4] == ["| x | 2 ¹ | 1 |", "| y | missing ² | 2 ¹ |"]
    assert tables.latex(grid).splitlines()[-1] == r"{\par\smallskip\footnotesize $^1$ n is 3; $^2$ a\_b | c\par}"
    many = tables.Grid(("x",), tuple((tables.Noted("", "x", str(number)),) for number in range(12)))
    assert tables.markdown(many).splitlines()[-3:] == ["| x ¹² |", "", "; ".join(f"{mark} {n}" for n, mark in enumerate(MARKS))]


def test_latex_escapes_cells() -> None:
    grid = tables.Grid(("model", "a_b ↑"), (("x & y", "1 ± 2 %"), ("back\\slash", "<{~^}>")))
    assert tables.latex(grid).splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"model & a\_b $\uparrow$ \\",
        r"\midrule",
        r"x \& y & 1 $\pm$ 2 \% \\",
        r"back\textbackslash{}slash & $<$\{\textasciitilde{}\textasciicircum{}\}$>$ \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_other_settings_and_quantiles_of_stages_are_not_among_the_efficiency_lines() -> None:
    other = probe("latency.pipeline.p90@b8", "s", 2.0)
    (section,) = standings.sections([Row(Path("0"), make_record(values=(*speeds(1.0), other)))])
    assert [value.name for value in standings.probes(section)] == [
        "latency.pipeline.p90",
        "latency.pipeline.p99",
        "latency.unet_step.p50",
        "images_per_second",
        "memory.peak_rss",
    ]


def test_noise_is_in_the_footer_if_a_record_has_it() -> None:
    with_noise = make_record("new", noise={"kind": "per_image", "seed": 7})
    (section,) = standings.sections([Row(Path("a"), with_noise), Row(Path("b"), make_record("old"))])
    assert 'noise: kind "per_image", seed 7 (new); not in the record (old)' in writing.footer_lines(section)
    (section,) = standings.sections([Row(Path("b"), make_record("old"))])
    assert not [line for line in writing.footer_lines(section) if line.startswith("noise")]


def test_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write"):
        writing.write([], tmp_path / "file")


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (12.3456, 11.3456, 13.3456, "12.3 ± 1.0"),
        (0.51234, 0.51134, 0.51334, "0.5123 ± 0.0010"),
        (1234.5, 1000.5, 1468.5, "1234 ± 234"),
        (0.93, 0.892, 0.955, "0.930 (0.892..0.955)"),
        (1.2, 1.1, None, "1.20 (1.10..?)"),
        (1.0, 0.985, 1.0, "1.000 (0.985..1.000)"),
        (0.5, 0.5, 0.5, "0.5000"),
        (3.25, None, None, "3.250"),
        (0.0, None, None, "0"),
        (-0.0, None, None, "0"),
        (float("nan"), None, None, "nan"),
        (-3.25, None, None, "-3.250"),
        (1.23456e-5, None, None, "0.00001235"),
        (123456.7, None, None, "123457"),
        (6.517e-12, None, None, "6.517e-12"),
        (-2.0, -2.5, -1.5, "-2.00 ± 0.50"),
    ],
)
def test_numbers_have_two_digits_of_their_uncertainty(value: float, low: float | None, high: float | None, expected: str) -> None:
    assert tables.format_estimate(value, low, high) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [(0, "0"), (999, "999"), (1000, "1 k"), (745_225_604, "745.2 M"), (3.3806e12, "3.381 T"), (5e21, "5e+06 P")]
)
def test_counts_have_a_thousands_suffix(value: float, expected: str) -> None:
    assert tables.format_count(value) == expected


def test_ordinals_are_written_as_in_english() -> None:
    numbers = (1, 2, 3, 4, 11, 12, 13, 21, 112)
    assert [tables.format_ordinal(number) for number in numbers] == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th"]


def test_names_are_escaped_in_tables() -> None:
    grid = tables.Grid(("model",), (("[red]a|b</td>\nc",),))
    assert tables.markdown(grid).splitlines()[2] == "| [red]a\\|b&lt;/td> c |"
    assert "[red]a|b</td>" in tables.text(grid, 80)


def test_text_of_records_cannot_become_a_tag_below_the_tables() -> None:
    rows = [replace(row, record=row.record.model_copy(update={"prompts": "<img src=x>"})) for row in example_rows()]
    assert "- prompts: &lt;img src=x>" in writing.markdown(rows).splitlines()


def test_published_numbers_have_a_source_and_stay_out_of_measured_tables() -> None:
    assert all(claim.source and claim.protocol and claim.values for claim in published.load_claims())
    measured, elsewhere = writing.markdown(example_rows()).split("## Published elsewhere")
    assert "23.4805" in elsewhere
    assert "23.4805" not in measured
    assert "Published" not in writing.markdown([row for row in example_rows() if row.record.family == "scenes"])


def test_speed_up_of_a_few_step_student_is_over_the_teacher_in_its_own_suite() -> None:
    full, few = SuiteId(name="standard", version=3, digest="a"), SuiteId(name="few-step", version=1, digest="b")
    few_step = {"family": "sdxl", "suite": few, "teacher": NamedTeacher(model="sdxl", suite=full)}
    teacher = make_record("sdxl", speeds(6.0), family="sdxl", suite=full)
    student, few_step_teacher = make_record("lcm", speeds(1.0), **few_step), make_record("sdxl", speeds(2.0), **few_step)
    rows = [Row(Path(str(number)), record) for number, record in enumerate((teacher, student, few_step_teacher))]
    (section,) = (found for found in standings.sections(rows) if "few-step" in found.title)
    assert section.teacher is None, "the teacher in 4 steps is not the teacher of the section"
    grid = writing.quality_grid(section)
    assert grid.header[-1] == "speed-up over sdxl under standard@4 ↑"
    assert {row[0]: row[-1] for row in grid.rows} == {"lcm": "6.00x", "sdxl": "3.00x"}
    (elsewhere,) = standings.sections([rows[1], Row(Path("3"), teacher.model_copy(update={"machine": GPU}))])[:1]
    assert elsewhere.speed_baseline is None, "measured on another machine"


def test_suite_that_times_nothing_has_no_columns_of_speed() -> None:
    untimed = [Row(Path(name), make_record(name, ())) for name in ("scenes-teacher", "scenes-vega")]
    (section,) = standings.sections(untimed)
    grid = writing.quality_grid(section)
    assert (grid.header, grid.rows[0]) == (("model", "images"), ("scenes-teacher", str(untimed[0].record.n_images)))
    (section,) = standings.sections([untimed[0], Row(Path("timed"), make_record("scenes-vega", speeds(1.0)))])
    assert [row[-2] for row in writing.quality_grid(section).rows].count("missing: not in this record") == 1


def test_setting_that_was_measured_without_base_is_shown_under_its_name() -> None:
    rows = [
        Row(
            Path(name),
            make_record(name, tuple(value.model_copy(update={"name": f"{value.name}@channels-last"}) for value in speeds(seconds))),
        )
        for name, seconds in (("scenes-teacher", 3.0), ("scenes-vega", 1.5))
    ]
    (section,) = standings.sections(rows)
    grid = writing.quality_grid(section)
    assert grid.header[-2:] == ("channels-last latency p50 (s) ↓", "speed-up over scenes-teacher ↑")
    assert [row[-1] for row in grid.rows] == ["1.00x", "2.00x"]


def test_teacher_named_by_the_suite_is_the_teacher_of_its_section() -> None:
    own = SuiteId(name="mine", version=1, digest="a")
    records = [
        make_record(name, speeds(1.0), suite=own, teacher=NamedTeacher(model="big", suite=own)) for name in ("big", "scenes-teacher")
    ]
    (section,) = standings.sections([Row(Path(str(number)), record) for number, record in enumerate(records)])
    assert section.teacher
    assert section.teacher.name == "big"
