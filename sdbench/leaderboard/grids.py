"""The tables of a section: quality, ranks, scores by group, efficiency; and the titles of their columns and lines."""

from collections.abc import Sequence

from sdbench import tables
from sdbench.leaderboard import groups, speed
from sdbench.leaderboard.standings import TITLES, Row, Section, metrics, probes, title_rank
from sdbench.models.catalogue import TEACHERS
from sdbench.records import Record, Value
from sdbench.tables import Grid

BIAS = "Frechet distances and CMMD, like their intervals, depend on the number of images: with more images they would be lower."


def quality_grid(section: Section) -> Grid:
    """The first table: models down, image metrics across, then median latency and speed-up, unless no model was timed."""
    columns, latency = metrics(section), speed.headline(section.records)
    header: tuple[str, ...] = ("model", "images", *map(metric_title, columns))
    rows = [_quality_cells(row, columns) for row in section.rows]
    if any(record.value(latency) for record in section.records):
        header += _speed_titles(section, latency)
        rows = [cells + _speed_cells(section, row.record, latency) for row, cells in zip(section.rows, rows, strict=True)]
    return Grid(header, tuple(rows))


def _quality_cells(row: Row, columns: Sequence[Value]) -> tuple[str, ...]:
    record = row.record
    images = f"{record.n_images} ({record.samples} per prompt)" if record.samples > 1 else str(record.n_images)
    return row.name, images, *(tables.format_value(record.value(column.name), record.n_prompts) for column in columns)


def _speed_titles(section: Section, latency: str) -> tuple[str, str]:
    setting, teacher = latency.partition("@")[2], section.speed_baseline
    over = speed.teacher_title(teacher, section.records) if teacher else TEACHERS.get(section.family, "the teacher")
    return f"{f'{setting} ' if setting else ''}latency p50 (s) ↓", f"speed-up over {over} ↑"


def _speed_cells(section: Section, record: Record, latency: str) -> tuple[str, str]:
    times = speed.speed_up(record, section.speed_baseline, latency)
    return speed.probe_cell(record, latency), times if isinstance(times, str) else str(times)


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
    """Probes and counts down, models across: tails of the latency, its stages, memory, size and work."""
    header = ("", *(row.name for row in section.rows))
    lines = ((probe_title(value), *(speed.probe_cell(record, value.name) for record in section.records)) for value in probes(section))
    return Grid(header, tuple(lines))


def metric_title(value: Value) -> str:
    """The title of a metric's column: `Frechet: fd.scenes (distance) ↓`, without the first part where the name begins with it."""
    rank = title_rank(value.name, tuple(TITLES))
    title = list(TITLES.values())[rank] if rank < len(TITLES) else value.name
    is_in_name = value.name.startswith(title.lower().replace(" ", "_"))
    return _title(value.name if is_in_name else f"{title}: {value.name}", value)


def probe_title(value: Value) -> str:
    """A probe's name, unit and direction."""
    return _title(value.name, value)


def _title(title: str, value: Value) -> str:
    return f"{title} ({value.unit}){tables.ARROWS[value.direction]}"
