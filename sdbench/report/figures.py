"""Charts as SVG for the page. Matplotlib draws them in stand-in colours, which are then replaced by the page's CSS variables."""

import hashlib
import io
import itertools
import re
from collections.abc import Sequence
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
from sdbench.leaderboard.standings import Row, Section
from sdbench.records import Record, Value
from sdbench.records.names import STAGES, latency_of

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
    name: str
    x: Value
    y: Value
    best: bool


def pareto_charts(section: Section, metric: Value, title: str) -> list[Chart]:
    """Charts of a metric against latency and against memory, where at least two models have both."""
    costs = [value for row in section.models for value in row.record.values if value.name in (P50, *MEMORY)]
    names = sorted({value.name for value in costs}, key=(P50, *MEMORY).index)[:2]
    units = {value.name: value.unit for value in costs}
    charts = []
    for name in names:
        points = _points(section.comparable[metric.name], name, metric)
        if len(points) > 1:
            label = f"{name} ({units[name]}) ↓"
            best = tables.join_words([point.name for point in points if point.best])
            words = f"{title} against {label} of {len(points)} models. On the frontier (no other model is better in both): {best}."
            charts.append(Chart(metric.name, _scatter(points, label, title, words)))
    return charts


def _points(rows: Sequence[Row], cost: str, metric: Value) -> list[_Point]:
    pairs = [(row.name, row.record.value(cost), row.record.value(metric.name)) for row in rows]
    complete = [(name, x, y) for name, x, y in pairs if x and y and x.value is not None and y.value is not None]
    places = [(_oriented(x), _oriented(y)) for _, x, y in complete]
    return [
        _Point(name, x, y, best=not any(other != place and other[0] >= place[0] and other[1] >= place[1] for other in places))
        for (name, x, y), place in zip(complete, places, strict=True)
    ]


def _oriented(value: Value) -> float:
    """The number, with the sign with which more is better."""
    return -number_of(value) if value.direction == "lower" else number_of(value)


def _scatter(points: Sequence[_Point], x_label: str, y_label: str, words: str) -> str:
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.6, 3.2))
        axes = figure.add_axes((0.125, 0.145, 0.53, 0.76))
        frontier = sorted((number_of(point.x), number_of(point.y)) for point in points if point.best)
        axes.plot(*zip(*frontier, strict=True), color=_ACCENT, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
        for best in (False, True):
            _draw(axes, [point for point in points if point.best is best], bars=len(points) <= MAX_BARS)
        axes.grid()
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.tick_params(length=0, labelsize=8)
        axes.set_xlabel(x_label)
        axes.set_title(y_label, fontsize=9, loc="left", x=-0.19, pad=9)
        _label_points(axes, points)
        return _svg(figure, words)


def _draw(axes: Axes, points: Sequence[_Point], *, bars: bool) -> None:
    """Draw points, filled where they are on the frontier, with their intervals as error bars."""
    x, y = [number_of(point.x) for point in points], [number_of(point.y) for point in points]
    if bars and points:
        across, up = (list(zip(*map(_error_bars, values), strict=True)) for values in ([p.x for p in points], [p.y for p in points]))
        axes.errorbar(x, y, up, across, fmt="none", ecolor=_MUTED, elinewidth=0.8, zorder=2)
    filled = _ACCENT if points and points[0].best else _PAPER
    axes.plot(x, y, "o", color=_ACCENT, markerfacecolor=filled, markersize=6 if bars else 3, zorder=3)


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
    named = [point for point in points if len(points) <= MAX_LABELS or point.best][:MAX_LABELS]
    axes.autoscale_view()
    to_share = axes.transData + axes.transAxes.inverted()
    shares = [float(to_share.transform((number_of(point.x), number_of(point.y)))[1]) for point in named]
    for point, place in zip(named, spread_apart(shares, 0.085), strict=True):
        axes.annotate(
            _shorten(point.name),
            xy=(number_of(point.x), number_of(point.y)),
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
    """Seconds per image by stage, a bar for each model, as SVG; None where no model has stages."""
    rows = [row for row in section.models if _stage_seconds(row.record)][:MAX_MODELS]
    if not rows:
        return None
    parts = {row.name: _stage_seconds(row.record) for row in rows}
    names = list(dict.fromkeys(name for stages_of in parts.values() for name in stages_of))
    words = "; ".join(
        f"{model}: " + ", ".join(f"{stage} {tables.format_number(seconds, 3)} s" for stage, seconds in found.items())
        for model, found in parts.items()
    )
    with rc_context(_STYLE):
        figure = Figure(figsize=(6.6, 0.75 + 0.3 * len(rows)), layout="constrained")
        _draw_bars(figure.subplots(), parts, names)
        figure.legend(loc="outside upper left", ncols=len(names), frameon=False, fontsize=8.5, handlelength=1)
        return _svg(figure, words)


def _draw_bars(axes: Axes, parts: dict[str, dict[str, float]], names: Sequence[str]) -> None:
    models = list(parts)
    left = [0.0] * len(models)
    for name, colour in zip(names, [*_STAGES, *[_MUTED] * len(names)], strict=False):
        widths = [parts[model].get(name, 0.0) for model in models]
        axes.barh(range(len(models)), widths, 0.62, left, color=colour, edgecolor=_PAPER, linewidth=0.8, label=name)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, total in enumerate(left):
        axes.annotate(f"{tables.format_number(total, 3)}", (total, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(range(len(models)), [_shorten(model) for model in models])
    axes.set_xlim(0, 1.1 * max(left))
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel("seconds per image")


def _stage_seconds(record: Record) -> dict[str, float]:
    """Median seconds per image by stage, a step's times the number of steps; "rest" is what remains of the pipeline's median."""
    medians = {stage: value.value for stage in STAGES if (value := record.value(latency_of(stage)))}
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
    """The figure as an inline SVG with a description in words, the page's colours, and ids that are unique in the page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    root = ET.fromstring(buffer.getvalue())  # noqa: S314  # written a line above
    prefix = hashlib.sha256(buffer.getvalue().encode()).hexdigest()[:8]
    for element in root.iter():
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
