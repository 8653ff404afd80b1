"""Charts as SVG for the page. Matplotlib draws them in stand-in colours, which are then replaced by the page's CSS variables."""

import hashlib
import io
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree as ET

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sdbench import tables
from sdbench.leaderboard import MAX_MODELS
from sdbench.leaderboard.speed import MEMORY, P50
from sdbench.leaderboard.standings import Section
from sdbench.records import Record, Value
from sdbench.records.names import BASE, STAGES, latency_of, with_setting

_TOOLTIPS = "tooltips: "  # begins the gid of marks that have tooltips, before a JSON list of these
_MARK = "{http://www.w3.org/2000/svg}use"
_HREF = "{http://www.w3.org/1999/xlink}href"
MAX_BARS = 60  # models with error bars; where there are more, they are small points without
MAX_LABELS = 12  # models with a name in a scatter; where there are more, only those on the frontier are named
# Stand-ins for the page's colours.
_COLOURS = {
    "#000001": "var(--ink)", "#000002": "var(--muted)", "#000003": "var(--line)", "#000004": "var(--accent)", "#000005": "var(--paper)",
    "#000011": "var(--stage-1)", "#000012": "var(--stage-2)", "#000013": "var(--stage-3)", "#000014": "var(--stage-4)",
    "#000015": "var(--stage-5)", "#000016": "var(--stage-6)",
}  # fmt: skip  # a table
_COLOUR = re.compile("|".join(_COLOURS))
_INK, _MUTED, _LINE, _ACCENT, _PAPER, *_STAGES = _COLOURS
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "sdbench", "text.parse_math": False, "axes.unicode_minus": True,
    "font.family": "sans-serif", "font.size": 9, "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _MUTED,
    "xtick.color": _MUTED, "ytick.color": _MUTED, "xtick.labelcolor": _INK, "ytick.labelcolor": _INK, "grid.color": _LINE,
    "grid.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
}  # fmt: skip


ET.register_namespace("", "http://www.w3.org/2000/svg")
ET.register_namespace("xlink", "http://www.w3.org/1999/xlink")


@dataclass(frozen=True)
class Chart:
    """A chart of one metric, as SVG that describes itself in words."""

    metric: str
    svg: str


@dataclass(frozen=True)
class _Point:
    """A model in a chart of a metric against a cost.

    Attributes:
        place: its rank by the metric; by the number alone, from 0, where the models have no ranks.
        low, high: the ends of the cost's interval; without one, of its measurements, if it has any.
    """

    name: str
    cost: Value
    metric: Value
    place: int
    low: float
    high: float

    @property
    def at(self) -> tuple[float, float]:
        """Where it lies."""
        return number_of(self.cost), number_of(self.metric)

    def beats(self, other: "_Point") -> bool:
        """Whether it is clearly better in one of the two, and not clearly worse in the other.

        By the metric that takes a better rank, by the cost a range that lies below the other's. The numbers alone would put a model of
        the worst rank on the frontier for a latency that is smaller by chance. Models cannot beat each other in a circle, for its places
        would all be equal: so some are not beaten.
        """
        if self.place == other.place:
            return self.high < other.low
        return self.place < other.place and self.low <= other.high


def pareto_charts(section: Section, metric: Value, title: str) -> list[Chart]:
    """Charts of a metric against latency and against memory, where at least two models have both."""
    names = [with_setting(name, section.setting) for name in (P50, *MEMORY)]
    units = {value.name: value.unit for row in section.models for value in row.record.values if value.name in names}
    charts = []
    for name in sorted(units, key=names.index)[:2]:
        points = _points(section, name, metric)
        if len(points) > 1:
            label = f"{name} ({units[name]}) ↓"
            frontier = [point for point in points if not any(other.beats(point) for other in points)]
            best = tables.join_words([point.name for point in frontier])
            words = (
                f"{title} against {label} of {len(points)} models. "
                f"On the frontier (no other model is clearly better in one and as good in the other): {best}."
            )
            charts.append(Chart(metric.name, _scatter(points, frontier, label, title, words)))
    return charts


def _points(section: Section, cost: str, metric: Value) -> list[_Point]:
    pairs = [(row.name, row.record.value(cost), row.record.value(metric.name)) for row in section.comparable[metric.name]]
    complete = [(name, x, y) for name, x, y in pairs if x and y and x.value is not None and y.value is not None]
    places = {name: rank for name, rank in section.ranks.get(metric.name, {}).items() if rank}
    if not all(name in places for name, _, _ in complete):
        ordered = sorted({number_of(y) for _, _, y in complete}, reverse=metric.direction == "higher")
        places = {name: ordered.index(number_of(y)) for name, _, y in complete}
    return [_Point(name, x, y, places[name], *_ends(x)) for name, x, y in complete]


def _ends(value: Value) -> tuple[float, float]:
    if value.low is not None and value.high is not None:
        return value.low, value.high
    measured = [call for calls in value.samples or () for call in calls] or [number_of(value)]
    return min(measured), max(measured)


def _scatter(points: Sequence[_Point], frontier: Sequence[_Point], x_label: str, y_label: str, words: str) -> str:
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.2))
        axes = figure.add_axes((0.125, 0.145, 0.53, 0.76))
        axes.plot(*zip(*sorted(point.at for point in frontier), strict=True), color=_ACCENT, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
        best = {point.name for point in frontier}
        beaten = [point for point in points if point.name not in best]
        for marked, filled in ((beaten, False), (frontier, True)):
            _draw(axes, marked, filled=filled, bars=len(points) <= MAX_BARS)
        axes.grid()
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.tick_params(length=0, labelsize=8)
        axes.set_xlabel(x_label)
        axes.set_title(y_label, fontsize=9, loc="left", x=-0.19, pad=9)
        _label_points(axes, points if len(points) <= MAX_LABELS else frontier[:MAX_LABELS])
        return _svg(figure, words)


def _draw(axes: Axes, points: Sequence[_Point], *, filled: bool, bars: bool) -> None:
    """Draw points, with their intervals as error bars and their names as tooltips."""
    x, y = [number_of(point.cost) for point in points], [number_of(point.metric) for point in points]
    if bars and points:
        across, up = (
            list(zip(*map(_error_bars, values), strict=True)) for values in ([p.cost for p in points], [p.metric for p in points])
        )
        axes.errorbar(x, y, up, across, fmt="none", ecolor=_MUTED, elinewidth=0.8, zorder=2)
    (marks,) = axes.plot(x, y, "o", color=_ACCENT, markerfacecolor=_ACCENT if filled else _PAPER, markersize=6 if bars else 3, zorder=3)
    marks.set_gid(_TOOLTIPS + json.dumps([point.name for point in points]))


def number_of(value: Value) -> float:
    """The number of a value that must have one."""
    assert value.value is not None
    return value.value


def _error_bars(value: Value) -> tuple[float, float]:
    """Distances from a value down and up to the ends of its interval; 0 where it has none."""
    at = number_of(value)
    return max(0.0, at - (at if value.low is None else value.low)), max(0.0, (at if value.high is None else value.high) - at)


def _label_points(axes: Axes, points: Sequence[_Point]) -> None:
    """Write names in the margin, in the order of their points, each connected to its point by a thin line."""
    axes.autoscale_view()
    to_share = axes.transData + axes.transAxes.inverted()
    shares = [float(to_share.transform(point.at)[1]) for point in points]
    for point, place in zip(points, spread_apart(shares, 0.085), strict=True):
        axes.annotate(
            _shorten(point.name),
            xy=point.at,
            xytext=(1.06, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": _MUTED, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5)},
            annotation_clip=False,
            zorder=1,
        )


def spread_apart(places: Sequence[float], gap: float) -> list[float]:
    """Move places at least `gap` apart, in the same order: down first, then up again where they would fall below 0."""
    order = sorted(range(len(places)), key=lambda index: -places[index])
    moved = list(places)
    for above, below in itertools.pairwise(order):
        moved[below] = min(moved[below], moved[above] - gap)
    if order and moved[order[-1]] < 0:
        moved[order[-1]] = 0.0
        for below, above in itertools.pairwise(reversed(order)):
            moved[above] = max(moved[above], moved[below] + gap)
    return moved


def _shorten(name: str) -> str:
    return name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"  # names of checkpoints differ at the end


def stage_chart(section: Section) -> str | None:
    """Seconds by stage, in the setting that is shown first, a bar for each model, as SVG; None where no model has stages."""
    rows = [row for row in section.models if _stage_seconds(row.record, section.setting)][:MAX_MODELS]
    if not rows:
        return None
    parts = {row.name: _stage_seconds(row.record, section.setting) for row in rows}
    latencies = {row.name: row.record.value(with_setting(P50, section.setting)) for row in rows}
    totals = {name: f"{tables.format_number(value.value, 3)} s" for name, value in latencies.items() if value and value.value is not None}
    names = list(dict.fromkeys(name for stages_of in parts.values() for name in stages_of))
    words = "; ".join(
        f"{model}, {totals.get(model, 'total unknown')}: "
        + ", ".join(f"{stage} {tables.format_number(seconds, 3)} s" for stage, seconds in found.items())
        for model, found in parts.items()
    )
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.6, 0.75 + 0.3 * len(rows)), layout="constrained")
        axes = figure.subplots()
        _draw_bars(axes, parts, totals, names)
        axes.set_xlabel("seconds" if section.setting == BASE else f"seconds, {section.setting}")
        figure.legend(loc="outside upper left", ncols=len(names), frameon=False, fontsize=8.5, handlelength=1)
        return _svg(figure, words)


def _draw_bars(axes: Axes, parts: Mapping[str, Mapping[str, float]], totals: Mapping[str, str], names: Sequence[str]) -> None:
    """Draw the stages end to end, and the whole pipeline's latency, where there is one, as a number behind them."""
    models = list(parts)
    left = [0.0] * len(models)
    for name, colour in zip(names, [*_STAGES, *[_MUTED] * len(names)], strict=False):
        widths = [parts[model].get(name, 0.0) for model in models]
        axes.barh(range(len(models)), widths, 0.62, left, color=colour, edgecolor=_PAPER, linewidth=0.8, label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, (model, end) in enumerate(zip(models, left, strict=True)):
        axes.annotate(totals.get(model, ""), (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(models)), [_shorten(model) for model in models])
    axes.set_xlim(0, 1.1 * max(left))
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")


def _stage_seconds(record: Record, setting: str) -> dict[str, float]:
    """Median seconds by stage, a step's times the number of steps; "rest" is what remains of the pipeline's median."""
    medians = {stage: value.value for stage in STAGES if (value := record.value(with_setting(latency_of(stage), setting)))}
    pipeline = medians.pop("pipeline", None)
    stages = {}
    for name, seconds in medians.items():
        steps = int(record.sampling.get("steps", 1)) if name.endswith("_step") else 1
        title = name.removesuffix("_step").replace("_", " ")
        if seconds is not None:
            stages[title if steps == 1 else f"{title}, {steps} steps"] = seconds * steps
    if stages and pipeline is not None and pipeline > sum(stages.values()):
        stages["rest"] = pipeline - sum(stages.values())
    return stages


def _svg(figure: Figure, words: str) -> str:
    """The figure as an inline SVG with a description in words, the page's colours, tooltips, and ids that are unique in the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ET.fromstring(buffer.getvalue())  # noqa: S314  # written a line above
    prefix = hashlib.sha256(buffer.getvalue().encode()).hexdigest()[:8]
    for element in [*root.iter()]:
        if element.get("id", "").startswith(_TOOLTIPS):
            names = json.loads(element.attrib.pop("id").removeprefix(_TOOLTIPS))
            for mark, name in zip(element.iter(_MARK), names, strict=True):
                ET.SubElement(mark, "title").text = name
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, f"{prefix}-{value}")
            elif key in (_HREF, "clip-path"):
                element.set(key, value.replace("#", f"#{prefix}-"))
            elif key == "style":
                element.set(key, _COLOUR.sub(lambda found: _COLOURS[found.group()], value))
    root.attrib |= {"role": "img", "aria-label": words}
    for size in ("width", "height"):
        del root.attrib[size]
    return ET.tostring(root, encoding="unicode")
