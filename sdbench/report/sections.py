"""The view of a leaderboard section for the page's template."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from sdbench import tables
from sdbench.errors import UserError
from sdbench.gate import floors, weighing
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Policy
from sdbench.leaderboard import MAX_MODELS, grids, provenance, speed, standings, truth
from sdbench.leaderboard.speed import SpeedUp
from sdbench.leaderboard.standings import Row, Section
from sdbench.records import Direction, Value
from sdbench.records.names import is_against_images, judge_of
from sdbench.report import figures, wins, worst
from sdbench.report.image_wall import Album, Wall
from sdbench.report.worst import Case, Worst

_PARTS = {  # id of a part of the page -> its title, and the entries of the view that it shows
    "table": ("Table", ("rows",)),
    "trade": ("Trade-offs", ("charts",)),
    "groups": ("By group of prompts", ("groups",)),
    "stages": ("Time, memory and work", ("stages", "efficiency", "settings")),
    "wins": ("Who beats whom", ("matrices",)),
    "truth": ("Against the truth", ("truth",)),
    "gate": ("Verdicts", ("verdicts",)),
    "worst": ("Worst images", ("regressions", "costly")),
    "images": ("Image wall", ("wall",)),
    "made": ("How the numbers were made", ("footer",)),
}
_FIGURE_SPACE, _PUNCTUATION_SPACE = "\u2007", "\u2008"  # as wide as a digit and as a point


@dataclass(frozen=True)
class PageCell:
    """A number with its interval, or the state of one that is absent; and a note, in the view only its mark.

    Attributes:
        sort: the sort key in its column; None where there is no number.
    """

    text: str
    sort: float | None = None
    interval: str = ""
    note: str = ""
    rank: int | None = None

    @property
    def is_absent(self) -> bool:
        """Whether there is no number."""
        return self.sort is None


@dataclass(frozen=True)
class Column:
    """A column of the table: its title and cells."""

    title: str
    unit: str
    direction: Direction
    cells: tuple[PageCell, ...]

    @property
    def arrow(self) -> str:
        """An arrow that shows which direction is better."""
        return tables.ARROWS[self.direction]


def build_album(section: Section) -> Album:
    """The section's images, with the worst ones."""
    return Album(section, worst.find(section, wins.judges(section)))


def build_view(section: Section, number: int, wall: Wall, album: Album, policy: Policy, results: Path) -> dict[str, Any]:
    """Everything that the template needs of a section, except the link to the rest of the images.

    Args:
        number: the section's place on the page, from 1.
        album: the images that the section's records hold.
        results: the folder of the noise floors.

    Raises:
        UserError: a record or a noise floor cannot be read.
    """
    keys = {(image.model, shot.name): image.key for shot in wall.shots for image in shot.images if image}
    columns, notes = _with_notes_below(_columns(section))
    has_room, footer, efficiency = len(section.rows) <= MAX_MODELS, provenance.footer_lines(section), grids.efficiency_grid(section)
    view = {
        "about": section.about,
        "columns": columns,
        "notes": notes,
        "rows": [
            {"name": row.name, "role": _role(section, row), "cells": [column.cells[place] for column in columns]}
            for place, row in enumerate(section.rows)
        ],
        "ranked": bool(section.ranks),
        "separate": any(isinstance(found, SpeedUp) and not found.is_same_run for found in section.speed_ups),
        "charts": (charts := _charts(section)),
        "chart_metrics": list(dict.fromkeys(chart.metric for chart in charts)),
        "charts_left": len(section.models) > figures.MAX_LABELS,
        "groups": grids.group_grids(section) if has_room else {},
        "stages": figures.stage_chart(section),
        "efficiency": efficiency if has_room and efficiency.rows else None,
        "settings": speed.grids(section.records, section.speed_baseline),
        "matrices": [found for judge in wins.judges(section) if (found := wins.matrix(section, judge))],
        "truth": truth.grid([(row.record, row.scores) for row in section.models]),
        "verdicts": list(_verdicts(section, policy, results)),
        "limit": None if has_room else MAX_MODELS,
        "regressions": [_worst_view(one, keys, section.teacher) for one in album.worst.regressions],
        "costly": [_worst_view(one, keys, None) for one in album.worst.costliest],
        "worst_note": _worst_note(section),
        "wall": wall if album.names else None,
        "wall_note": _wall_note(wall, album),
        "footer": footer if has_room else footer[:1],
        "teacher": section.teacher.name if section.teacher else "",
    }
    parts = [(title, part) for part, (title, entries) in _PARTS.items() if any(view[entry] for entry in entries)]
    return {"id": f"s{number}", "title": section.title, "only_wall": False, "beside": "", "parts": parts, **view}


def _role(section: Section, row: Row) -> str:
    """What the row is of, below its name."""
    n_images = f"{grids.images_cell(row.record)} images" if row.record.n_images else ""
    what = "no model" if row.is_images_only else "the teacher" if row is section.teacher else ""
    return ", ".join(filter(None, [n_images, what]))


def _columns(section: Section) -> list[Column]:
    """Metrics, median latency, speed-up, memory, size; last, as a screen may not hold them, comparisons with the teacher's images."""
    metrics = standings.metrics(section)
    own, paired = ([_column(section, metric) for metric in metrics if is_against_images(metric.name) is last] for last in (False, True))
    times = [_column(section, section.latency), _speed_ups(section)] if section.latency else []
    sizes = [_column(section, cost) for cost in section.costs]
    return [*own, *times, *sizes, *paired]


def _with_notes_below(columns: Sequence[Column]) -> tuple[list[Column], str]:
    """The columns with marks in place of notes, and the notes."""
    notes = tables.Footnotes()
    rows = zip(*(column.cells for column in columns), strict=True)
    marked = [[replace(cell, note=notes.mark(cell.note)) if cell.note else cell for cell in row] for row in rows]
    return [replace(column, cells=cells) for column, cells in zip(columns, zip(*marked, strict=True), strict=True)], str(notes)


def _column(section: Section, value: Value) -> Column:
    places = section.ranks.get(value.name, {})
    cells = [_cell(section, row, value.name, places.get(row.name)) for row in section.rows]
    title = grids.titled_name(value) if value.is_image_metric else value.name
    return Column(title, value.unit, value.direction, _align(cells))


def _speed_ups(section: Section) -> Column:
    teacher = section.speed_baseline
    over = speed.teacher_title(teacher, section.records) if teacher and not section.teacher else "the teacher"
    return Column("speed-up", f"over {over}", "higher", _align([*map(_speed_up, section.speed_ups)]))


def _speed_up(found: SpeedUp | tables.Cell) -> PageCell:
    if isinstance(found, tables.Cell):
        return _absent(found)
    number, interval = found.parts
    return PageCell(number, found.ratio.value, _interval(interval))


def _cell(section: Section, row: Row, name: str, rank: int | None) -> PageCell:
    value = row.record.value(name)
    if value is None or value.value is None:
        return _absent(speed.probe_cell(row.record, name))
    if value.kind == "count":
        return PageCell(tables.format_count(value.value), value.value)
    number, interval = tables.estimate_parts(value.value, value.low, value.high)
    few = f"n = {value.n}" if value.is_image_metric and value.n != row.record.n_prompts else ""
    own = "" if judge_of(name) else value.note  # a win rate's note, wins and losses, is in the matrix
    note = "; ".join(filter(None, [own, section.mark(value)]))
    return PageCell(number, value.value, ", ".join(filter(None, [_interval(interval), few])), note, rank)


def _absent(cell: tables.Cell) -> PageCell:
    return PageCell(cell.text, note=cell.note)


def _interval(text: str) -> str:
    return text.strip("()").replace("..", " to ")


def _align(cells: Sequence[PageCell]) -> tuple[PageCell, ...]:
    """Numbers padded with spaces as wide as digits, so that their decimal points are aligned."""
    decimals = [len(cell.text.partition(".")[2]) for cell in cells if not cell.is_absent and cell.text[-1].isdigit()]
    most = max(decimals, default=0)
    return tuple(replace(cell, text=_pad(cell.text, most)) if not cell.is_absent and cell.text[-1].isdigit() else cell for cell in cells)


def _pad(text: str, decimals: int) -> str:
    present = len(text.partition(".")[2])
    return text + (_PUNCTUATION_SPACE if decimals and not present else "") + _FIGURE_SPACE * (decimals - present)


def _charts(section: Section) -> list[figures.Chart]:
    metrics = [value for value in standings.metrics(section) if not judge_of(value.name) and value.direction != "neither"]
    return list(chain.from_iterable(figures.pareto_charts(section, value, grids.metric_title(value)) for value in metrics))


def _verdicts(section: Section, policy: Policy, results: Path) -> Iterator[dict[str, Any]]:
    """The gate's verdicts on the first models, with the teacher as their baseline; none for a suite of which the policy weighs nothing."""
    if section.teacher is None:
        return
    teacher = section.teacher.record
    try:
        weighing.leave_out_probes(policy, teacher.suite.name, None, (teacher,))
    except UserError:
        return
    between_runs, baseline = floors.between_runs(teacher, results), Side.read(section.teacher.folder)
    for row in [row for row in section.models if row is not section.teacher][:MAX_MODELS]:
        report = weighing.judge(Side.read(row.folder), baseline, policy, between_runs)
        yield {"candidate": row.name, "verdict": report.verdict, "why": report.why, "grid": report.grid(), "notes": report.notes}


def _worst_view(found: Worst, keys: Mapping[tuple[str, str], str], teacher: Row | None) -> dict[str, Any]:
    """A list of the worst images, each with the images of it that are on the wall."""

    def one(case: Case) -> dict[str, Any]:
        names = [name for name in (teacher.name if teacher else None, found.model) if name]
        has_own = (found.model, case.name) in keys  # the teacher's alone would show no loss
        images = [(name, keys[name, case.name]) for name in names if has_own and (name, case.name) in keys]
        return {"prompt": case.prompt, "numbers": _format_case(case), "images": images}

    return {"model": found.model, "metric": found.metric, "cases": [one(case) for case in found.cases]}


def _format_case(case: Case) -> str:
    amount = f"{'+' if case.amount > 0 else ''}{tables.format_number(case.amount, 3)}"
    if case.own is None or case.teacher is None:
        return amount
    return f"{tables.format_number(case.teacher)} → {tables.format_number(case.own)} ({amount})"


def _worst_note(section: Section) -> str:
    losses = f"The {worst.MAX_CASES} worst images of each model. Scores: the teacher's → the model's (the difference)."
    costs = "Distances: what an image adds to the distance of its set, to first order (its influence divided by n)."
    images = "Images are shown where the records hold them."
    return " ".join([losses if section.teacher else "", costs, images]).strip()


def _wall_note(wall: Wall, album: Album) -> str:
    total = max((len(row.scores.keys) for row in album.rows), default=0)
    bad = sum(shot.worst for shot in wall.shots)
    return (
        "Each row has one prompt and one initial noise for all models. "
        f"The records hold {len(album.names)} of {total} such rows; {len(wall.shots)} are shown here: "
        f"{bad} because some model did badly on them, {len(wall.shots) - bad} drawn at random."
    )


def build_rest_view(section: Section, number: int, wall: Wall) -> dict[str, Any]:
    """The view of a section with only the images that the main page has no room for."""
    return {"id": f"s{number}", "title": section.title, "about": section.about, "only_wall": True, "wall": wall}
