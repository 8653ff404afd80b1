"""Charts show the values of the records, in the page's colours."""

import itertools
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from boards import make_model, stage, write_board
from factories import make_record
from hypothesis import given
from hypothesis import strategies as st

from sdbench import records
from sdbench.leaderboard import standings
from sdbench.leaderboard.standings import Row, Section
from sdbench.records import Value
from sdbench.report import figures


def probe(name: str, value: float, unit: str = "s", **more: object) -> Value:
    return Value.model_validate({"name": name, "kind": "probe", "direction": "lower", "unit": unit, "value": value, "n": 1, **more})


def make_row(name: str, seconds: float, score: float) -> Row:
    clip = Value(
        name="clip_score.scenes", kind="score", direction="higher", unit="100 cos", value=score, low=score - 1, high=score + 1, n=4
    )
    return Row(Path(name), make_record(name, (clip, probe("latency.pipeline.p50", seconds))))


def words_of(svg: str) -> str:
    """The description that screen readers speak."""
    return ET.fromstring(svg).attrib["aria-label"]


def make_section(*rows: Row) -> Section:
    return Section("scenes", "a section", rows)


def test_pareto_frontier_has_the_models_that_none_beats_in_both() -> None:
    rows = (make_row("slow", 3, 30), make_row("fast", 1, 20), make_row("beaten", 3, 25), make_row("twin", 1, 20), make_row("best", 2, 30))
    (chart,) = figures.pareto_charts(make_section(*rows), rows[0].record.values[0], "CLIP")
    words = words_of(chart.svg)
    assert words.endswith("is better in both): fast, twin and best.")
    assert "against latency.pipeline.p50 (s) ↓ of 5 models" in words


def test_models_without_both_values_are_left_out_and_one_model_makes_no_chart() -> None:
    lone = Row(Path("lone"), make_record("lone", (probe("latency.pipeline.p50", 1.0),)))
    rows = make_row("a", 1, 1), lone
    assert figures.pareto_charts(make_section(*rows), rows[0].record.values[0], "CLIP") == []


def test_stages_and_the_rest_add_up_to_the_pipeline() -> None:
    values = (probe("latency.pipeline.p50", 1.0), stage("unet_step", 0.04), stage("vae_decode", 0.1), probe("latency.pipeline.p90", 9.0))
    chart = figures.stage_chart(make_section(Row(Path("m"), make_record("m", values))))
    assert chart is not None
    assert words_of(chart) == "m: unet, 20 steps 0.800 s, vae decode 0.100 s, rest 0.100 s"
    assert figures.stage_chart(make_section(Row(Path("m"), make_record("m", values[:1])))) is None


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
        assert " models. On the frontier" in root.attrib["aria-label"]
        assert set(re.findall(r"#[0-9a-f]{6}\b", chart.svg)) == set()
        assert "var(--accent)" in chart.svg
        references = set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', chart.svg))
        assert {one or other for one, other in references} <= set(re.findall(r'\bid="([^"]*)"', chart.svg))


def test_names_are_plain_text_in_a_chart(tmp_path: Path) -> None:
    names = ("$x^2$", "<b>&amp;", "an endless name that no margin could ever hold")
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
    assert {"$x^2$", "<b>&amp;", "an endless …ld ever hold"} <= set(texts)


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
