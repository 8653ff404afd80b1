"""Charts show the values of the records, in the page's colours."""

import itertools
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from boards import make_model, stage, write_board
from factories import make_record
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.text import Annotation
from values import score

from sdbench import records
from sdbench.leaderboard import MAX_MODELS, standings
from sdbench.leaderboard.standings import Row, Section
from sdbench.records import Value
from sdbench.report import figures, sections, wins

TITLE = "{http://www.w3.org/2000/svg}title"


def probe(name: str, value: float, unit: str = "s", **more: object) -> Value:
    return Value.model_validate({"name": name, "kind": "probe", "direction": "lower", "unit": unit, "value": value, "n": 1, **more})


def failed(value: Value) -> Value:
    return value.model_copy(update={"state": "failed", "reason": "out of memory", "value": None, "low": None, "high": None})


def make_row(name: str, seconds: float, cosine: float, n: int = 4, reference: str | None = None) -> Row:
    """A model whose intervals are wider upwards."""
    clip = score("clip_score.scenes", "100 cos", cosine, cosine - 1, cosine + 3, n=n, reference=reference)
    latency = probe("latency.pipeline.p50", seconds, low=seconds - 0.25, high=seconds + 0.5)
    return Row(Path(name), make_record(name, (clip, latency)))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Axes]:
    """The axes of each chart that is drawn."""
    found, svg = list[Axes](), figures._svg

    def noted(figure: Figure, words: str) -> str:
        found.extend(figure.axes)
        return svg(figure, words)

    monkeypatch.setattr(figures, "_svg", noted)
    return found


def coordinates(line: Line2D) -> list[tuple[float, ...]]:
    return [tuple(place) for place in np.asarray(line.get_xydata()).tolist()]


def annotations(axes: Axes) -> list[Annotation]:
    return [text for text in axes.texts if isinstance(text, Annotation)]


def words_of(svg: str) -> str:
    """The description that screen readers speak."""
    return ET.fromstring(svg).attrib["aria-label"]


def make_section(*rows: Row, ranks: Mapping[str, int | None] | None = None) -> Section:
    """A section of rows without scores, and so with ranks only where they are given, by the first row's first value."""
    section = Section("scenes", "a section", rows)
    vars(section)["ranks"] = {rows[0].record.values[0].name: ranks} if ranks else {}
    return section


def frontier(section: Section) -> str:
    """The models on the frontier of the first chart, in words."""
    (chart, *_) = figures.pareto_charts(section, section.rows[0].record.values[0], "CLIP")
    return words_of(chart.svg).partition("as good in the other): ")[2]


def test_frontier_has_the_models_that_none_beats() -> None:
    places = {"slow": (3, 30), "fast": (1, 20), "beaten": (3, 25), "twin": (1, 20), "best": (2, 30), "as-fast-but-worse": (1, 15)}
    rows = [make_row(name, *place) for name, place in places.items()]
    (chart,) = figures.pareto_charts(make_section(*rows), rows[0].record.values[0], "CLIP")
    assert frontier(make_section(*rows)) == "fast, twin and best."
    assert "against latency.pipeline.p50 (s) ↓ of 6 models" in words_of(chart.svg)


def test_frontier_goes_by_ranks_and_by_intervals_of_the_cost() -> None:
    rows = make_row("good", 3, 30), make_row("student", 1, 20), make_row("pruned", 0.99, 10), make_row("tied", 2, 20.1)
    assert frontier(make_section(*rows)) == "good, student and tied.", "without ranks by the metric's numbers"
    ranks = {"good": 1, "student": 2, "pruned": 4, "tied": 2}
    assert frontier(make_section(*rows, ranks=ranks)) == "good and student."
    assert frontier(make_section(*rows, ranks=ranks | {"pruned": None})) == "good, student and tied.", "not all have ranks"


@pytest.mark.parametrize(("measured", "expected"), [((99.0, 101.0), "same."), ((99.0, 100.5), "same and smaller.")])
def test_cost_without_an_interval_ranges_over_its_measurements(measured: tuple[float, float], expected: str) -> None:
    (clip, _), of_others = make_row("any", 1, 1).record.values, ((101.0, 102.0), measured)
    rows = [
        Row(Path(name), make_record(name, (clip, probe("memory.peak_data", 100 - place, "MiB", samples=(calls,)))))
        for place, (name, calls) in enumerate(zip(("same", "smaller"), of_others, strict=True))
    ]
    assert frontier(make_section(*rows, ranks={"same": 1, "smaller": 2})) == expected


def test_only_values_of_the_same_prompts_and_reference_share_a_frontier() -> None:
    slow, fast = make_row("slow", 3, 30), make_row("fast", 1, 20)
    better = make_row("of-a-rebuilt-reference", 0.5, 40, reference="rebuilt"), make_row("of-fewer-prompts", 0.5, 40, n=2)
    (chart,) = figures.pareto_charts(make_section(*better, slow, fast), slow.record.values[0], "CLIP")
    assert "of 2 models. On the frontier" in (words := words_of(chart.svg))
    assert words.endswith(": slow and fast.")


def test_metric_of_which_neither_more_nor_less_is_better_has_no_chart_and_judges_nothing() -> None:
    diversity = score("diversity.clip.scenes", "1 - cos", 0.2, 0.1, 0.3, direction="neither")
    plain = make_row("a", 1, 1), make_row("b", 2, 2)
    section = make_section(*(Row(row.folder, make_record(row.name, (diversity, *row.record.values))) for row in plain))
    assert {chart.metric for chart in sections._charts(section)} == {"clip_score.scenes"}
    assert wins.judges(section) == ["clip_score.scenes"]


def test_models_without_both_values_are_left_out_and_one_model_makes_no_chart() -> None:
    lone = Row(Path("lone"), make_record("lone", (probe("latency.pipeline.p50", 1.0),)))
    whole = make_row("a", 1, 1)
    clip, latency = whole.record.values
    halves = [Row(Path("half"), make_record("half", values)) for values in ((failed(clip), latency), (clip, failed(latency)))]
    rows = whole, lone, *halves
    assert figures.pareto_charts(make_section(*rows), rows[0].record.values[0], "CLIP") == []


def test_setting_that_was_measured_without_base_has_charts_and_stages(drawn: list[Axes]) -> None:
    rows = []
    for place, name in enumerate(("a", "b")):
        clip, latency = make_row(name, 1 + place, 1 + place).record.values
        timed = [latency, probe("memory.peak_data", 2.0, "MiB"), stage("unet_step", 0.02)]
        values = (clip, *(value.model_copy(update={"name": f"{value.name}@channels-last"}) for value in timed))
        rows.append(Row(Path(name), make_record(name, values)))
    charts = figures.pareto_charts(make_section(*rows), rows[0].record.values[0], "CLIP")
    costs = ("latency.pipeline.p50@channels-last (s)", "memory.peak_data@channels-last (MiB)")
    assert all(f"against {cost} ↓ of 2 models" in words_of(chart.svg) for chart, cost in zip(charts, costs, strict=True))
    assert "a, 1.00 s: unet, 20 steps 0.400 s" in words_of(figures.stage_chart(make_section(*rows)) or "")
    assert drawn[-1].get_xlabel() == "seconds, channels-last"


def test_charts_are_against_latency_and_the_more_exact_memory() -> None:
    memory = [probe(name, 2.0, "MiB") for name in ("memory.peak_data", "memory.peak_allocated")]
    rows = [replace(row, record=make_record(row.name, (*memory, *row.record.values))) for row in (make_row("a", 1, 1), make_row("b", 2, 2))]
    charts = figures.pareto_charts(make_section(*rows), rows[0].record.values[2], "CLIP")
    costs = ("latency.pipeline.p50 (s)", "memory.peak_allocated (MiB)")
    assert [cost for chart, cost in zip(charts, costs, strict=True) if f"against {cost} ↓ of 2 models" in words_of(chart.svg)] == [*costs]


def test_points_lie_at_their_values_with_their_intervals(drawn: list[Axes]) -> None:
    rows = (make_row("slow", 3, 30), make_row("beaten", 2.5, 19), make_row("fast", 1, 20), make_row("near", 2, 20.1))
    figures.pareto_charts(make_section(*rows), rows[0].record.values[0], "CLIP")
    (axes,) = drawn
    (line,) = (line for line in axes.lines if line.get_linestyle() == "--")
    assert coordinates(line) == [(1, 20), (2, 20.1), (3, 30)]
    points = [line for line in axes.lines if line.get_marker() == "o"]
    assert [sorted(coordinates(line)) for line in points] == [[(2.5, 19)], [(1, 20), (2, 20.1), (3, 30)]]
    assert [line.get_markerfacecolor() == line.get_color() for line in points] == [False, True], "filled on the frontier"
    bars = {tuple(map(tuple, ends)) for lines in axes.collections if isinstance(lines, LineCollection) for ends in lines.get_segments()}
    places = [(seconds, score) for seconds, score in ((3, 30), (2.5, 19), (1, 20), (2, 20.1))]
    assert bars == {((x - 0.25, y), (x + 0.5, y)) for x, y in places} | {((x, y - 1), (x, y + 3)) for x, y in places}


def test_names_stand_at_the_height_of_their_points_but_apart(drawn: list[Axes]) -> None:
    rows = (make_row("slow", 3, 30), make_row("beaten", 2.5, 19), make_row("fast", 1, 20), make_row("near", 2, 20.1))
    figures.pareto_charts(make_section(*rows), rows[0].record.values[0], "CLIP")
    (axes,) = drawn
    heights = {text.get_text(): text.xyann[1] for text in annotations(axes)}
    at_points = {text.get_text(): axes.transAxes.inverted().transform(axes.transData.transform(text.xy))[1] for text in annotations(axes)}
    assert heights["slow"] == pytest.approx(at_points["slow"])
    assert sorted(heights, key=lambda name: heights[name]) == ["beaten", "fast", "near", "slow"]
    assert at_points["near"] - at_points["fast"] < 0.02
    assert min(upper - lower for lower, upper in itertools.pairwise(sorted(heights.values()))) > 0.08


def test_of_many_models_only_twelve_on_the_frontier_are_named_and_none_has_bars(drawn: list[Axes]) -> None:
    beaten, frontier = [make_row(f"beaten-{n}", 1 + n, 0) for n in range(50)], [make_row(f"m{n:02d}", 1 + n, 1 + n) for n in range(13)]
    for rows, names in (
        ([*beaten[:9], *frontier[:3]], {row.name for row in [*beaten[:9], *frontier[:3]]}),
        ([*beaten[:9], *frontier[:4]], {row.name for row in frontier[:4]}),
        ([*beaten, *frontier], {row.name for row in frontier[:12]}),
    ):
        (chart,) = figures.pareto_charts(make_section(*rows), rows[0].record.values[0], "CLIP")
        assert {text.get_text() for text in annotations(drawn[-1])} == names
        assert [title.text for title in ET.fromstring(chart.svg).iter(TITLE)] == [row.name for row in rows], "under the mouse"
    few, _, many = drawn
    assert few.collections
    assert not many.collections


def test_bars_of_a_model_lie_end_to_end_and_stay_in_the_picture(drawn: list[Axes]) -> None:
    slow = (probe("latency.pipeline.p50", 2.0), stage("text_encoders", 0.5), stage("unet_step", 0.05), failed(stage("vae_decode", 1.0)))
    names = ("slow", "a-name-longer-than-any-margin", *(f"m{n}" for n in range(MAX_MODELS)))
    rows = [Row(Path(name), make_record(name, (stage("unet_step", 0.025),) if place else slow)) for place, name in enumerate(names)]
    chart = figures.stage_chart(make_section(*rows))
    (axes,) = drawn
    assert chart
    assert words_of(chart).startswith(
        "slow, 2.00 s: text encoders 0.500 s, unet, 20 steps 1.00 s, rest 0.500 s; a-name-longer-than-any-margin, total unknown: unet"
    )
    bars = [bar for bar in axes.patches if isinstance(bar, Rectangle) and bar.get_width()]
    of_first, of_second = (
        [(bar.get_x(), bar.get_width()) for bar in bars if round(bar.get_y() + bar.get_height() / 2) == n] for n in (0, 1)
    )
    assert of_first == [(0, 0.5), (0.5, 1), (1.5, 0.5)]
    assert of_second == [(0, 0.5)]
    assert [text.get_text() for text in annotations(axes)][:2] == ["2.00 s", ""], "no total of a pipeline that was not timed"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["slow", "a-name-long…n-any-margin", *names[2:MAX_MODELS]]
    assert axes.yaxis_inverted(), "the first model on top"
    assert [*axes.get_xlim()] == pytest.approx([0, 2.2]), "room for the total"


def test_stages_and_the_rest_add_up_to_the_pipeline(drawn: list[Axes]) -> None:
    others = (probe("latency.pipeline.p90", 9.0), probe("latency.unet_step.p50@b2", 9.0))
    values = (probe("latency.pipeline.p50", 1.0), stage("unet_step", 0.04), stage("vae_decode", 0.1), *others)
    chart = figures.stage_chart(make_section(Row(Path("m"), make_record("m", values))))
    assert chart is not None
    assert words_of(chart) == "m, 1.00 s: unet, 20 steps 0.800 s, vae decode 0.100 s, rest 0.100 s"
    assert figures.stage_chart(make_section(Row(Path("m"), make_record("m", values[:1])))) is None
    faster = figures.stage_chart(make_section(Row(Path("m"), make_record("m", (probe("latency.pipeline.p50", 0.5), *values[1:])))))
    assert faster is not None
    assert "rest" not in words_of(faster)
    assert [text.get_text() for text in annotations(drawn[-1])] == ["0.500 s"], "the pipeline's median, not the sum of 0.9 s"


def test_charts_use_the_colours_of_the_page_and_unique_ids(tmp_path: Path) -> None:
    write_board(tmp_path)
    (section,) = standings.sections(standings.read_rows(tmp_path))
    metrics = standings.metrics(section)
    charts = [chart for value in metrics[:2] for chart in figures.pareto_charts(section, value, value.name)]
    ids = [re.findall(r'\bid="([^"]*)"', chart.svg) for chart in charts]
    assert len(charts) == 4
    assert sum(map(len, ids)) == len({name for each in ids for name in each})
    for chart in charts:
        root = ET.fromstring(chart.svg)
        assert root.get("role") == "img"
        assert root.get("viewBox")
        assert not {"width", "height"} & root.attrib.keys(), "as wide as the page has room for"
        assert " models. On the frontier" in root.attrib["aria-label"]
        assert set(re.findall(r"#[0-9a-f]{6}\b", chart.svg)) == set()
        assert "var(--accent)" in chart.svg
        references = set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', chart.svg))
        assert {one or other for one, other in references} <= set(re.findall(r'\bid="([^"]*)"', chart.svg))


def test_names_are_plain_text_in_a_chart(tmp_path: Path) -> None:
    names = ("$x^2$", "<b>&amp;", "an endless name that no margin could ever hold", "of just 24 characters :-")
    rows = []
    for place, name in enumerate(names):
        record, scores = make_model(place, f"m{place}")
        record = record.model_copy(update={"model": record.model.model_copy(update={"name": name})})
        rows.append(
            Row(
                records.write(
                    record.model_copy(update={"model": record.model.model_copy(update={"name": f"m{place}"})}), scores, {}, tmp_path
                ),
                record,
            )
        )
    (chart, *_) = figures.pareto_charts(make_section(*rows), standings.metrics(make_section(*rows))[0], "Frechet")
    texts = [element.text for element in ET.fromstring(chart.svg).iter("{http://www.w3.org/2000/svg}text")]
    assert {"$x^2$", "<b>&amp;", "an endless …ld ever hold", names[3]} <= set(texts)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=11))
def test_labels_keep_their_order_and_distance(places: list[float]) -> None:
    found = figures.spread_apart(places, 0.085)
    ordered = sorted(found)
    assert all(after - before > 0.085 - 1e-9 for before, after in itertools.pairwise(ordered))
    assert min(found) >= -1e-9
    assert all(found[a] > found[b] for a in range(len(places)) for b in range(len(places)) if places[a] > places[b])
    assert max(found) < 1 + 1e-9 or len(places) * 0.085 > 1 or max(places) > 0.9


@pytest.mark.parametrize("n", [0, 1])
def test_one_label_or_none_stays_in_place(n: int) -> None:
    assert figures.spread_apart([0.5] * n, 0.1) == [0.5] * n
