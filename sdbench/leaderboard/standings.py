"""The rows of a leaderboard: the newest record of each model, in sections within which they may be compared."""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sdbench import records
from sdbench.errors import UserError
from sdbench.leaderboard import ranks
from sdbench.leaderboard.speed import P50
from sdbench.models.catalogue import TEACHERS
from sdbench.records import NamedTeacher, Record, Scores, SuiteId, Value

# What a metric's name begins with -> the title of its column; also the order of the columns.
TITLES = {
    "fd": "Frechet",
    "fid": "Frechet",
    "fid_infinity": "Frechet",
    "kid": "KID",
    "cmmd": "CMMD",
    "clip_score": "CLIP",
    "preference": "preference",
    "pickscore": "preference",
    "hpsv2": "preference",
    "win_rate": "win rate",
    "scene_accuracy": "scene accuracy",
    "agreement": "agreement",
    "fd_to_teacher": "Frechet to the teacher",
    "prdc": "",  # the names say what they are
}
_EFFICIENCY = ("latency.pipeline", "latency", "images_per_second", "memory", "parameters", "flops")


@dataclass(frozen=True)
class Row:
    """One model: the newest of its records in a section."""

    folder: Path
    record: Record

    @cached_property
    def scores(self) -> Scores:
        """Its per-image columns, read when they are first asked for."""
        return records.read_scores(self.folder)

    @property
    def name(self) -> str:
        """The model's name, and its label where it has one."""
        return self.record.model.title

    @property
    def is_pictures_only(self) -> bool:
        """Whether there are pictures without a model."""
        return self.record.model.is_pictures_only


@dataclass(frozen=True)
class Section:
    """Rows that may be compared: one family, suite version and digest, and machine class.

    Attributes:
        teacher_of_other_suite: the row of the teacher that the suite names under another suite, on the same machine class.
    """

    family: str
    title: str
    rows: tuple[Row, ...]
    teacher_of_other_suite: Row | None = None

    @property
    def records(self) -> tuple[Record, ...]:
        """The rows' records."""
        return tuple(row.record for row in self.rows)

    @property
    def models(self) -> tuple[Row, ...]:
        """The rows behind which there is a model."""
        return tuple(row for row in self.rows if not row.is_pictures_only)

    @property
    def teacher(self) -> Row | None:
        """The row of the teacher, the suite's or the family's, if it is of this suite; of one with random weights only where there is no other."""
        named = _named_teacher(self.records)
        if named and named.suite != self.records[0].suite:
            return None
        found = (row for row in self.rows if row.record.model.name == (named.model if named else TEACHERS.get(self.family)))
        return min(found, key=lambda row: row.record.model.label, default=None)

    @property
    def speed_baseline(self) -> Row | None:
        """The row that speed-ups are over: the teacher's, under its own suite where that is another."""
        return self.teacher or self.teacher_of_other_suite

    @cached_property
    def ranks(self) -> dict[str, dict[str, int | None]]:
        """Metric -> name of each model -> its rank; a win rate is its judge's ranking over again, so it has none."""
        names = [value.name for value in metrics(self) if not value.name.startswith("win_rate.")]
        found = ranks.ranks([(row.record, row.scores) for row in self.models], names)
        return {name: {row.name: place for row, place in zip(self.models, places, strict=True)} for name, places in found.items()}


def read_rows(results: Path) -> list[Row]:
    """The newest record of each model, suite version and machine class.

    Raises:
        UserError: there is none, or one is unreadable or was changed.
    """
    found = [Row(folder, record) for folder, record in records.newest_per_model(results)]
    if not found:
        raise UserError(
            f"there are no records in {results}, where they would be FAMILY/SUITE@VERSION/MODEL/DIGEST/record.json; name the folder that holds the "
            "families with --results, or measure something first: sdbench run"
        )
    return found


def sections(board: Sequence[Row]) -> list[Section]:
    """Group and sort rows.

    Within a family sections with pictures come before those of speed alone; in a section pictures without a model
    first, then models by the size of their UNet, the teacher before its equals.
    """

    def key(row: Row) -> tuple[str, str, int, str, str]:
        record = row.record
        return record.family, record.suite.name, record.suite.version, record.machine.machine_class, record.suite.digest

    grouped = itertools.groupby(sorted(board, key=key), key)
    sorted_rows = {of: tuple(sorted(group, key=_sort_key)) for of, group in grouped}
    digests = Counter(of[:4] for of in sorted_rows)
    found = []
    for of, members in sorted_rows.items():
        family, suite, version, machine, digest = of
        settings = f" (digest {digest})" if digests[of[:4]] > 1 else ""  # such as those of `<name>-custom`
        found.append(
            Section(family, f"{family}: {suite}@{version}{settings} on {machine}", members, _find_teacher_of_other_suite(members, board))
        )
    return sorted(found, key=lambda section: (section.family, not any(record.n_images for record in section.records)))


def _named_teacher(of_suite: Sequence[Record]) -> NamedTeacher | None:
    return next((record.teacher for record in of_suite if record.teacher), None)


def _find_teacher_of_other_suite(members: Sequence[Row], board: Sequence[Row]) -> Row | None:
    named = _named_teacher([row.record for row in members])
    wanted = named and (named.model, "", named.suite, members[0].record.machine.machine_class)

    def key(record: Record) -> tuple[str, str, SuiteId, str]:
        return record.model.name, record.model.label, record.suite, record.machine.machine_class

    return next((row for row in board if key(row.record) == wanted), None)


def _sort_key(row: Row) -> tuple[bool, float, bool, str]:
    record = row.record
    parameters = record.value("parameters.unet")
    size = parameters.value if parameters and parameters.value else 0.0
    return not row.is_pictures_only, -size, record.model.name != TEACHERS.get(record.family), record.model.name


def metrics(section: Section) -> list[Value]:
    """One value of each metric of pictures that any row has, in the order of their columns."""
    return _columns(section, ("set", "score"), tuple(TITLES))


def probes(section: Section) -> list[Value]:
    """Likewise of what is shown of probes and counts."""
    return [value for value in _columns(section, ("probe", "count"), _EFFICIENCY) if _is_shown(value.name)]


def _is_shown(name: str) -> bool:
    """Of the stages, the median; the pipeline's own median stands in the first table, other settings in tables of their own."""
    if "@" in name:
        return False
    if name.startswith("latency.") and not name.startswith("latency.pipeline."):
        return name.endswith(".p50")
    return name != P50


def _columns(section: Section, kinds: Sequence[str], order: Sequence[str]) -> list[Value]:
    """One value of each name that any record of the section has, by `order` of the names' beginnings, then as the records have them."""
    found: dict[str, Value] = {}
    for value in itertools.chain.from_iterable(record.values for record in section.records):
        if value.kind in kinds:
            found.setdefault(value.name, value)
    return sorted(found.values(), key=lambda value: title_rank(value.name, order))


def title_rank(name: str, order: Sequence[str]) -> int:
    """The place of the beginning of a name in `order`; behind all where none fits."""
    return next((place for place, start in enumerate(order) if name == start or name.startswith(f"{start}.")), len(order))
