"""Records to tables: one section for each family, suite version and machine class, because only those rows may be compared.

Reads record folders and nothing else; the same records always give the same text.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdbench import published, records, speed, tables, truth
from sdbench.errors import UserError
from sdbench.records import Record, Value
from sdbench.tables import Grid

FILE_NAME = "LEADERBOARD.md"
TEACHERS = {"sdxl": "sdxl", "scenes": "scenes-teacher"}
P50 = "latency.pipeline.p50"

# What a metric's name begins with -> the title of its column; also the order of the columns.
_TITLES = {
    "fd": "Frechet",
    "fid": "Frechet",
    "kid": "KID",
    "cmmd": "CMMD",
    "clip_score": "CLIP",
    "preference": "preference",
    "pickscore": "preference",
    "hps": "preference",
    "win_rate": "win rate",
    "scene_accuracy": "scene accuracy",
}
_EFFICIENCY = ("latency.pipeline", "latency", "images_per_second", "memory", "parameters", "flops")
_PACKAGES = ("torch", "diffusers", "transformers", "sdbench")
_NOTICE = f"<!-- {FILE_NAME} is generated from the records by `sdbench leaderboard`; do not edit it by hand. -->"
_LEGEND = (
    "`±` and `(low..high)` are 95 % intervals, the second where they are lopsided; a bare number has none: it is a count, or comes from too few calls. "
    "↑ more is better, ↓ less is better. A value that is not there says why. Rows of different sections are not comparable."
)


@dataclass(frozen=True)
class Row:
    """One model: the newest of its records in a section."""

    folder: Path
    record: Record


@dataclass(frozen=True)
class Section:
    """Rows that may be compared: one family, suite version and digest, and machine class."""

    family: str
    title: str
    rows: tuple[Row, ...]

    @property
    def records(self) -> tuple[Record, ...]:
        """The rows' records."""
        return tuple(row.record for row in self.rows)


def rows(results: Path) -> list[Row]:
    """The newest record of each model, suite version and machine class.

    Raises:
        UserError: a record is unreadable or was changed.
    """
    return [Row(folder, record) for folder, record in records.newest(results)]


def sections(board: Sequence[Row]) -> list[Section]:
    """Group and sort rows: pictures without a model first, then models by the size of their UNet, the teacher before its equals."""

    def key(row: Row) -> tuple[str, str, int, str, str]:
        record = row.record
        return record.family, record.suite.name, record.suite.version, record.machine.machine_class, record.suite.digest

    grouped = itertools.groupby(sorted(board, key=key), key)
    return [
        Section(family, f"{family}: {suite}@{version} on {machine}", tuple(sorted(group, key=_size)))
        for (family, suite, version, machine, _), group in grouped
    ]


def _size(row: Row) -> tuple[bool, float, bool, str]:
    record = row.record
    parameters = record.value("parameters.unet")
    size = parameters.value if parameters and parameters.value else 0.0
    return not _is_pictures(record), -size, record.model.name != TEACHERS.get(record.family), record.model.name


def markdown(board: Sequence[Row]) -> str:
    """The whole of LEADERBOARD.md."""
    parts = [_NOTICE, "# Leaderboard", _LEGEND]
    for family, group in itertools.groupby(sections(board), lambda section: section.family):
        of_family = list(group)
        for section in of_family:
            parts += [f"## {section.title}", tables.markdown(quality(section))]
            if (measured := efficiency(section)).rows:
                parts += ["### Efficiency", tables.markdown(measured)]
            for title, grid in speed.grids(section.records, _teacher(section)).items():
                parts += [f"### {title}", tables.markdown(grid)]
            if judged := truth.grid([(row.folder, row.record) for row in section.rows]):
                parts += ["### Against the truth", tables.markdown(judged)]
            parts += ["\n".join(f"- {line}" for line in footer(section))]
        if family == "sdxl":
            parts += [
                "## Published elsewhere",
                "Not measured here, and by protocols that differ from ours and from each other.",
                tables.markdown(published.grid()),
            ]
            for section in of_family:
                if (beside := speed.beside_published(section.records, _teacher(section))).rows:
                    parts += [f"### Beside {section.title}", tables.markdown(beside)]
    if not board:
        parts.append("There are no records yet; `sdbench run` makes them.")
    return "\n\n".join(parts) + "\n"


def text_table(board: Sequence[Row], width: int = 160) -> str:
    """The same tables for a terminal of this width; models across in both, for protocol names are wider than numbers."""
    parts = []
    for section in sections(board):
        measured = efficiency(section)
        shown = [quality(section).transposed(), *([measured] if measured.rows else [])]
        parts += [section.title, *(tables.text(grid, width) for grid in shown), "\n".join(footer(section))]
    return "\n\n".join(parts or ["There are no records yet; `sdbench run` makes them."]) + "\n"


def write(results: Path) -> Path:
    """Write `results/LEADERBOARD.md`, whole or not at all => its path.

    Raises:
        UserError: a record is unreadable, or the file cannot be written.
    """
    path, beside = results / FILE_NAME, results / f".{FILE_NAME}.{os.getpid()}"
    board = markdown(rows(results))
    try:
        beside.write_text(board, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise UserError(f"cannot write {path}: {error}. Make {results} a writable folder, or name another with --results.") from error
    return path


def quality(section: Section) -> Grid:
    """Models down, metrics across; then the median latency."""
    columns = _columns(section, ("set", "score"), tuple(_TITLES))
    teacher = TEACHERS.get(section.family, "the teacher")
    header = ("model", "images", *map(_metric_title, columns), "latency p50 (s) ↓", f"speed-up over {teacher} ↑")
    return Grid(header, tuple(_quality_row(row.record, columns, _teacher(section)) for row in section.rows))


def _quality_row(record: Record, columns: Sequence[Value], teacher: Record | None) -> tuple[str, ...]:
    metrics = (tables.cell(record.value(column.name), record.n_images) for column in columns)
    return _name(record), str(record.n_images), *metrics, _probe(record, P50), _speed_up(record, teacher)


def efficiency(section: Section) -> Grid:
    """Probes and counts down, models across: the tails of the latency, its stages, memory, size and work."""
    columns = [value for value in _columns(section, ("probe", "count"), _EFFICIENCY) if _is_shown(value.name)]
    header = ("", *map(_name, section.records))
    return Grid(
        header,
        tuple((_title(value.name, value), *(_probe(record, value.name) for record in section.records)) for value in columns),
    )


def _probe(record: Record, name: str) -> str:
    """A probe's or count's cell; pictures without a model have none to be missing."""
    value = record.value(name)
    return "no model" if value is None and _is_pictures(record) else tables.cell(value)


def _is_pictures(record: Record) -> bool:
    return record.model.source.startswith(("rendered", "images:"))


def _is_shown(name: str) -> bool:
    """Of the stages, the median; the pipeline's own median stands in the first table, other settings in tables of their own."""
    if "@" in name:
        return False
    if name.startswith("latency.") and not name.startswith("latency.pipeline."):
        return name.endswith(".p50")
    return name != P50


def footer(section: Section) -> list[str]:
    """How the numbers were made; a line names models only where they differ."""

    def line(what: str, say: Callable[[Record], str]) -> str:
        said: dict[str, list[str]] = {}
        for record in section.records:
            said.setdefault(say(record), []).append(record.model.name)
        if len(said) == 1:
            return f"{what}: {next(iter(said))}"
        return f"{what}: " + "; ".join(f"{words} ({tables.listed(names)})" for words, names in said.items())

    return [
        line("suite digest", lambda record: record.suite.digest),
        *([line("prompts", lambda record: record.prompts)] if any(record.prompts for record in section.records) else []),
        line(
            "sampling",
            lambda record: ", ".join(f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in sorted(record.sampling.items())),
        ),
        line("references", _references),
        line("device", _device),
        line("versions", _versions),
        line(
            "commit",
            lambda record: (record.environment.commit or "unknown") + (" with uncommitted changes" if record.environment.dirty else ""),
        ),
        "records: " + ", ".join(f"{row.record.model.name} {row.folder.name} ({row.record.created:%Y-%m-%d})" for row in section.rows),
    ]


def _references(record: Record) -> str:
    return ", ".join(f"{value.name} against {value.reference}" for value in record.values if value.reference) or "none"


def _device(record: Record) -> str:
    machine = record.machine
    gpu = f"driver {machine.driver}, CUDA {machine.cuda}, " if machine.cuda else ""
    return f"{machine.device}, {gpu}{machine.cpu}, {machine.cores} cores, {machine.ram_gib:.0f} GiB"


def _versions(record: Record) -> str:
    packages = record.environment.packages
    return f"python {record.environment.python}, " + ", ".join(f"{name} {packages[name]}" for name in _PACKAGES if name in packages)


def _columns(section: Section, kinds: Sequence[str], order: Sequence[str]) -> list[Value]:
    """One value of each name that any record of the section has, by `order` of the names' beginnings, then as the records have them."""
    found: dict[str, Value] = {}
    for value in itertools.chain.from_iterable(record.values for record in section.records):
        if value.kind in kinds:
            found.setdefault(value.name, value)
    return sorted(found.values(), key=lambda value: _rank(value.name, order))


def _rank(name: str, order: Sequence[str]) -> int:
    return next((place for place, start in enumerate(order) if name == start or name.startswith(f"{start}.")), len(order))


def _metric_title(value: Value) -> str:
    """The protocol's name, and what it is where the name does not say so: `Frechet: fd.scenes (distance) ↓`."""
    rank = _rank(value.name, tuple(_TITLES))
    title = list(_TITLES.values())[rank] if rank < len(_TITLES) else value.name
    says_so = value.name.startswith(title.lower().replace(" ", "_"))
    return _title(value.name if says_so else f"{title}: {value.name}", value)


def _title(title: str, value: Value) -> str:
    return f"{title} ({value.unit}){tables.arrow(value.direction)}"


def _name(record: Record) -> str:
    return f"{record.model.name} ({record.model.label})" if record.model.label else record.model.name


def _teacher(section: Section) -> Record | None:
    return next((record for record in section.records if record.model.name == TEACHERS.get(section.family)), None)


def _speed_up(record: Record, teacher: Record | None) -> str:
    own = record.value(P50)
    if not own or not own.value:
        return _probe(record, P50)
    return speed.speed_up(record, teacher, P50) if teacher else "missing: no latency of the teacher on this machine"
