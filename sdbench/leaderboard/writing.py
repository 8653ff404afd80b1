"""The leaderboard's files and tables, a few tables for each section.

Only record folders are read, and the same records always give the same text.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """The first table: models down, image metrics across, then median latency and speed-up, unless no model was timed."""
    columns, latency = metrics(section), speed.headline(section.records)
    setting, teacher = latency.partition("@")[2], section.speed_baseline
    over = speed.teacher_title(teacher, section.records) if teacher else TEACHERS.get(section.family, "the teacher")
    header = (
        "model",
        "images",
        *map(metric_title, columns),
        f"{f'{setting} ' if setting else ''}latency p50 (s) ↓",
        f"speed-up over {over} ↑",
    )
    width = len(header) if any(record.value(latency) for record in section.records) else -2
    return Grid(header[:width], tuple(_quality_row(row, columns, latency, teacher)[:width] for row in section.rows))


def _quality_row(row: Row, columns: Sequence[Value], latency: str, teacher: Record | None) -> tuple[str, ...]:
    n, samples = row.record.n_images, row.record.samples
    cells = (tables.format_value(row.record.value(column.name), row.record.n_prompts) for column in columns)
    times = speed.speed_up(row.record, teacher, latency)
    return (
        row.name,
        f"{n} ({samples} per prompt)" if samples > 1 else str(n),
        *cells,
        speed.probe_cell(row.record, latency),
        times if isinstance(times, str) else str(times),
    )


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
