"""The tables of a section: quality, ranks, scores by group, efficiency; and the titles of their columns and lines."""

from collections.abc import Sequence

from sdbench import tables
from sdbench.leaderboard import groups, speed
from sdbench.leaderboard.standings import TITLES, Section, metrics, probes, title_rank
from sdbench.models.catalogue import TEACHERS
from sdbench.records import Record, Value
from sdbench.records.names import BASE
from sdbench.tables import Cell, Grid, Line

METHODS = "What each number is, and how it is made: docs/methods.md of sdbench."
BIAS = "Frechet distances and CMMD, like their intervals, depend on the number of images: with more images they would be lower."


def quality_grid(section: Section) -> Grid:
    """The first table: models down, image metrics across, then median latency, speed-up, memory and size; without what no model has."""
    columns: dict[str, Sequence[str | Cell]] = {"model": [row.name for row in section.rows]}
    if any(record.n_images for record in section.records):
        columns["images"] = [images_cell(record) for record in section.records]
    for metric in metrics(section):
        columns[metric_title(metric)] = [_metric_cell(section, record, metric.name) for record in section.records]
    if latency := section.latency:
        teacher = section.speed_baseline
        title = "latency p50 (s) ↓" if section.setting == BASE else f"{section.setting} latency p50 (s) ↓"
        columns[title] = [speed.probe_cell(record, latency.name) for record in section.records]
        over = speed.teacher_title(teacher, section.records) if teacher else TEACHERS.get(section.family, "the teacher")
        columns[f"speed-up over {over} ↑"] = [*map(speed.ratio_cell, section.speed_ups)]
    for cost in section.costs:
        columns[probe_title(cost)] = [speed.probe_cell(record, cost.name) for record in section.records]
    return Grid(tuple(columns), tuple(zip(*columns.values(), strict=True)))


def images_cell(record: Record) -> str:
    """The number of images, and of each prompt where that is more than one."""
    n, samples = record.n_images, record.samples
    return f"{n} ({samples} per prompt)" if samples > 1 else str(n)


def _metric_cell(section: Section, record: Record, name: str) -> Cell:
    value = record.value(name)
    return tables.format_value(value and value.with_note(section.mark(value)), record.n_prompts)


def rank_grid(section: Section) -> Grid:
    """The ranks: models down, metrics across."""
    titles = {value.name: metric_title(value) for value in metrics(section)}
    header = ("model", *(titles[name].rstrip(" ↑↓") for name in section.ranks))
    cells = ((row.name, *(str(places[row.name] or "not ranked") for places in section.ranks.values())) for row in section.models)
    return Grid(header, tuple(cells))


def group_grids(section: Section) -> dict[str, Grid]:
    """For a suite whose prompts have groups, a table of each score by group, by its title."""
    newest = max((record for record in section.records if record.groups), key=lambda record: record.created, default=None)
    if newest is None:
        return {}
    models = [(row.record, row.scores) for row in section.rows]  # older ones too: a suite's digest stands for the same prompts
    scores = [value for value in metrics(section) if value.kind == "score"]
    return {f"{metric_title(value)} by group of prompts": groups.grid(models, newest.groups, value.name) for value in scores}


def efficiency_grid(section: Section) -> Grid:
    """Probes and counts down, models across, without those of the first table: tails of the latency, its stages, memory and work."""
    header, costs = ("", *(row.name for row in section.rows)), {cost.name for cost in section.costs}
    shown = [value for value in probes(section) if value.name not in costs]
    lines: list[Line] = [(probe_title(value), *(speed.probe_cell(record, value.name) for record in section.records)) for value in shown]
    return Grid(header, tuple(lines))


def metric_title(value: Value) -> str:
    """The title of a metric's column, with its unit and direction: `Frechet: fd.scenes (distance) ↓`."""
    return _title(titled_name(value), value)


def titled_name(value: Value) -> str:
    """A metric's name behind what it is: `Frechet: fd.scenes`, without the first part where the name begins with it."""
    rank = title_rank(value.name, tuple(TITLES))
    title = list(TITLES.values())[rank] if rank < len(TITLES) else value.name
    is_in_name = value.name.startswith(title.lower().replace(" ", "_"))
    return value.name if is_in_name else f"{title}: {value.name}"


def probe_title(value: Value) -> str:
    """A probe's name, unit and direction."""
    return _title(value.name, value)


def _title(title: str, value: Value) -> str:
    return f"{title} ({value.unit}){tables.ARROWS[value.direction]}"
