"""The leaderboard's files and tables, a few tables for each section.

Only record folders are read, and the same records always give the same text.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sdbench import tables
from sdbench.disk import write_bytes
from sdbench.leaderboard import flat, groups, published, ranks, speed, truth
from sdbench.leaderboard.standings import TITLES, Row, Section, metrics, probes, sections, title_rank
from sdbench.models.catalogue import TEACHERS
from sdbench.records import Record, Value
from sdbench.tables import Grid

FILE_NAME = "LEADERBOARD.md"
_PACKAGES = ("torch", "diffusers", "transformers", "sdbench")
_NOTICE = f"<!-- {FILE_NAME} is generated from the records by `sdbench leaderboard`; do not edit it by hand. -->"
BIAS = "Frechet distances and CMMD, like their intervals, depend on the number of images: with more images they would be lower."
_LEGEND = (
    "`±` and `(low..high)` are 95 % intervals, the latter where they are asymmetric; a bare number has none: it is a count, or comes from too few calls. "
    "`separate runs` marks a ratio of two models that were not measured in turns; it has no interval, because rounds do not show how much separate runs vary. "
    "↑ higher is better, ↓ lower is better. A note below the table says why a value is missing. Rows of different sections are not comparable. "
    f"{BIAS}"
)


def markdown(board: Sequence[Row]) -> str:
    """The content of `LEADERBOARD.md`.

    Raises:
        UserError: see `records.read_scores`.
    """
    parts = [_NOTICE, "# Leaderboard", _LEGEND]
    for family, group in itertools.groupby(sections(board), lambda section: section.family):
        of_family = list(group)
        parts += itertools.chain.from_iterable(map(_section, of_family))
        if family == "sdxl":
            parts += _published(of_family)
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield from (f"## {section.title}", tables.markdown(quality_grid(section)))
    if section.ranks:
        yield from ("### Ranks", ranks.EXPLANATION, tables.markdown(rank_grid(section)))
    for title, grid in group_grids(section).items():
        yield from (f"### {title}", tables.markdown(grid))
    if (efficiency := efficiency_grid(section)).rows:
        yield from ("### Efficiency", tables.markdown(efficiency))
    for title, grid in speed.grids(section.records, section.speed_baseline).items():
        yield from (f"### {title}", tables.markdown(grid))
    if correlations := truth.grid([(row.record, row.scores) for row in section.models]):
        yield from ("### Against the truth", tables.markdown(correlations))
    yield "\n".join(f"- {tables.escape_markdown(line)}" for line in footer_lines(section))


def _published(of_family: Sequence[Section]) -> Iterator[str]:
    yield "## Published elsewhere"
    yield "Not measured here; the protocols differ from ours and from each other."
    yield tables.markdown(published.grid())
    for section in of_family:
        if (beside := speed.published_grid(section.records, section.teacher.record if section.teacher else None)).rows:
            yield from (f"### Published and measured: {section.title}", tables.markdown(beside))


def text_table(board: Sequence[Row], width: int) -> str:
    """The tables for a terminal `width` characters wide."""
    parts = []
    for section in sections(board):
        parts += [section.title, *(tables.text(grid, width) for grid in _tall_grids(section)), "\n".join(footer_lines(section))]
    return "\n\n".join(parts) + "\n"


def latex(board: Sequence[Row]) -> str:
    """The tables of quality and efficiency for a paper; they need the package booktabs. Comments say how the numbers were made."""
    parts = [f"% {_NOTICE.strip('<!-> ').replace(FILE_NAME, 'This file')}\n% \\usepackage{{booktabs}}"]
    for section in sections(board):
        tabulars = (
            f"\\begin{{table}}\n\\caption{{{tables.escape_latex(section.title)}}}\n{tables.latex(grid)}\n\\end{{table}}"
            for grid in _tall_grids(section)
        )
        parts += [*tabulars, "\n".join(f"% {line}" for line in footer_lines(section))]
    return "\n\n".join(parts) + "\n"


def _tall_grids(section: Section) -> Iterator[Grid]:
    """The tables of quality and efficiency, with models across unless there are many."""
    yield quality_grid(section).tall()
    if (efficiency := efficiency_grid(section)).rows:
        yield efficiency.tall()


def write(board: Sequence[Row], results: Path) -> list[Path]:
    """Write `LEADERBOARD.md`, `.tex`, `.csv` and `.json`, each whole or not at all, and return their paths.

    Raises:
        UserError: a file cannot be written.
    """
    texts = {".md": markdown(board), ".tex": latex(board), ".csv": flat.csv_text(board), ".json": flat.json_text(board)}
    return [write_bytes((results / FILE_NAME).with_suffix(suffix), text.encode()) for suffix, text in texts.items()]


def quality_grid(section: Section) -> Grid:
    """The first table: models down, image metrics across, then median latency and speed-up; without what no model has."""
    columns: dict[str, Callable[[Row], str]] = {"model": lambda row: row.name}
    if any(record.n_images for record in section.records):
        columns["images"] = _images_cell
    for metric in metrics(section):
        columns[metric_title(metric)] = partial(_metric_cell, name=metric.name)
    latency, teacher = speed.headline(section.records), section.speed_baseline
    if any(record.value(latency) for record in section.records):
        setting = latency.partition("@")[2]
        columns[f"{setting} latency p50 (s) ↓".strip()] = partial(probe_cell, name=latency)
        over = speed.teacher_title(teacher, section.records) if teacher else TEACHERS.get(section.family, "the teacher")
        columns[f"speed-up over {over} ↑"] = partial(_speed_up_cell, teacher=teacher, latency=latency)
    return Grid(tuple(columns), tuple(tuple(cell(row) for cell in columns.values()) for row in section.rows))


def _images_cell(row: Row) -> str:
    n, samples = row.record.n_images, row.record.samples
    return f"{n} ({samples} per prompt)" if samples > 1 else str(n)


def _metric_cell(row: Row, name: str) -> str:
    return tables.format_value(row.record.value(name), row.record.n_prompts)


def _speed_up_cell(row: Row, teacher: Record | None, latency: str) -> str:
    times = speed_up(row, teacher, latency)
    return times if isinstance(times, str) else str(times)  # str() would drop the note of a cell


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
    lines = ((probe_title(value), *(probe_cell(row, value.name) for row in section.rows)) for value in probes(section))
    return Grid(header, tuple(lines))


def probe_cell(row: Row, name: str) -> str:
    """The cell of a probe or count; "no model" for images without a model, which can have none."""
    value = row.record.value(name)
    return "no model" if value is None and row.is_images_only else tables.format_value(value)


def footer_lines(section: Section) -> list[str]:
    """How the numbers were made; a line names models only where they differ, and is left out where no record has it."""

    def line(what: str, describe: Callable[[Record], str]) -> str:
        models: dict[str, list[str]] = {}
        for record in section.records:
            models.setdefault(describe(record) or "not in the record", []).append(record.model.name)
        if len(models) == 1:
            return f"{what}: {next(iter(models))}"
        return f"{what}: " + "; ".join(f"{description} ({tables.join_words(names)})" for description, names in models.items())

    about: dict[str, Callable[[Record], str]] = {
        "suite digest": lambda record: record.suite.digest,
        "prompts": lambda record: record.prompts,
        "sampling": lambda record: _format_settings(record.sampling) or f"unknown, made elsewhere ({record.model.source})",
        "scheduler": lambda record: _format_settings(record.scheduler),
        "noise": lambda record: _format_settings(record.noise),
        "references": _references,
        "device": _device,
        "versions": _versions,
        "commit": lambda record: (
            (record.environment.commit or "unknown") + (" with uncommitted changes" if record.environment.dirty else "")
        ),
    }
    lines = [line(what, describe) for what, describe in about.items() if any(map(describe, section.records))]
    return [
        *lines,
        "records: " + ", ".join(f"{row.record.model.name} {row.folder.name} ({row.record.created:%Y-%m-%d})" for row in section.rows),
    ]


def _format_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in sorted(settings.items()))


def _references(record: Record) -> str:
    names: dict[str, list[str]] = {}
    for value in record.values:
        if value.reference:
            names.setdefault(value.reference, []).append(value.name)
    return "; ".join(f"{tables.join_words(of_reference)} against {reference}" for reference, of_reference in names.items()) or "none"


def _device(record: Record) -> str:
    machine = record.machine
    gpu = f"driver {machine.driver or 'unknown'}, CUDA {machine.cuda}, " if machine.cuda else ""
    return f"{machine.device}, {gpu}{machine.cpu}, {machine.cores} cores, {machine.ram_gib:.0f} GiB"


def _versions(record: Record) -> str:
    packages = record.environment.packages
    return f"python {record.environment.python}, " + ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if name in packages)


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


def speed_up(row: Row, teacher: Record | None, latency: str) -> speed.SpeedUp | str:
    """How many times as fast as the teacher by a latency of this name, or why that is not known."""
    own = row.record.value(latency)
    if not own or not own.value:
        return probe_cell(row, latency)
    if teacher is None:
        return tables.format_absent("missing", "the teacher's latency was not measured on this machine")
    return speed.speed_up(row.record, teacher, latency)
