"""The rows of the leaderboard: the newest record of each model, grouped into sections of comparable rows."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sdbench import records
from sdbench.errors import UserError
from sdbench.leaderboard import ranks, speed
from sdbench.leaderboard.speed import SpeedUp
from sdbench.models.catalogue import DEFAULT_SUITES, TEACHERS
from sdbench.records import NamedTeacher, Record, Scores, SuiteId, Value
from sdbench.records.names import BASE, begins_with, judge_of, natural_key, setting_of, with_setting
from sdbench.tables import Cell

# First part of a metric's name -> title of its column; also the order of the columns.
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
    "imagereward": "preference",
    "win_rate": "win rate",
    "aesthetic": "aesthetic",
    "scene_accuracy": "scene accuracy",
    "agreement": "agreement",
    "fd_to_teacher": "Frechet",
    "diversity": "diversity",
    "prdc": "",  # these names need no title
}
ABOUT = {  # what a reader must know of a family's models before any number
    "scenes": "Small models that draw simple shapes, of the family that comes with sdbench; not SDXL, SSD-1B or Vega. Do not compare their "
    "numbers with those published elsewhere.",
}
OTHER_REFERENCE = "against another reference than the values that are ranked, so not comparable with them"
_EFFICIENCY = ("latency.pipeline", "latency", "images_per_second", "energy", "memory", "parameters", "flops")


@dataclass(frozen=True)
class Row:
    """One model of a section: its newest record there."""

    folder: Path
    record: Record

    @cached_property
    def scores(self) -> Scores:
        """The record's per-image columns, read on first use.

        Raises:
            UserError: see `records.read_scores`.
        """
        return records.read_scores(self.folder)

    @cached_property
    def thumbnails(self) -> dict[str, Path]:
        """The files of the images that the record holds, by their names, see `Scores.image_names`."""
        return records.thumbnail_files(self.folder)

    @property
    def name(self) -> str:
        """The model's name, with its label where it has one."""
        return self.record.model.title

    @property
    def is_images_only(self) -> bool:
        """Whether there are only images and no model."""
        return self.record.model.is_images_only


@dataclass(frozen=True)
class Section:
    """Comparable rows: one family, suite version, suite digest and machine class.

    Attributes:
        teacher_of_other_suite: where the suite names a teacher under another suite, its row on the same machine class.
    """

    family: str
    title: str
    rows: tuple[Row, ...]
    teacher_of_other_suite: Row | None = None

    @property
    def about(self) -> str:
        """What a reader must know of the models; "" where their names say it."""
        return ABOUT.get(self.family, "")

    @property
    def records(self) -> tuple[Record, ...]:
        """The rows' records."""
        return tuple(row.record for row in self.rows)

    @cached_property
    def models(self) -> tuple[Row, ...]:
        """The rows with a model behind them."""
        return tuple(row for row in self.rows if not row.is_images_only)

    @cached_property
    def teacher(self) -> Row | None:
        """The row of the teacher that the suite names, else of the family's, if it is of this suite; random weights as a last resort."""
        named = _named_teacher(self.records)
        if named and named.suite != self.records[0].suite:
            return None
        name = named.model if named else TEACHERS.get(self.family)
        candidates = (row for row in self.rows if row.record.model.name == name)
        return min(candidates, key=lambda row: row.record.model.label, default=None)

    @property
    def speed_baseline(self) -> Record | None:
        """The record that speed-ups are relative to: the teacher's, even if it is under another suite."""
        teacher = self.teacher or self.teacher_of_other_suite
        return teacher.record if teacher else None

    @cached_property
    def setting(self) -> str:
        """The label of the setting whose latency and memory are shown first."""
        return setting_of(speed.headline(self.records))

    @cached_property
    def latency(self) -> Value | None:
        """An example value of the median latency to show first; None where no row has one."""
        name = with_setting(speed.P50, self.setting)
        return next((value for record in self.records if (value := record.value(name))), None)

    @cached_property
    def speed_ups(self) -> list[SpeedUp | Cell]:
        """How many times as fast as the teacher each row is by that latency, see `speed.speed_up`."""
        name = with_setting(speed.P50, self.setting)
        return [speed.speed_up(record, self.speed_baseline, name) for record in self.records]

    @property
    def costs(self) -> list[Value]:
        """Example values of peak memory, in that setting, and of the UNet's size, as far as any row has them."""
        names = (*(with_setting(name, self.setting) for name in speed.MEMORY), "parameters.unet")
        examples = {value.name: value for value in _all_values(self)}
        return [examples[name] for name in names if name in examples]

    @cached_property
    def comparable(self) -> dict[str, tuple[Row, ...]]:
        """The models with the same number of prompts and reference behind an image metric, by metric; the largest such group."""
        return {metric.name: tuple(self.models[place] for place in self._largest_group(metric.name)) for metric in metrics(self)}

    def _largest_group(self, metric: str) -> list[int]:
        records = [row.record for row in self.models]
        values = {place: value for place, record in enumerate(records) if (value := record.value(metric)) and value.value is not None}
        return ranks.largest_group({place: (value.n, value.reference) for place, value in values.items()}, records)

    def mark(self, value: Value) -> str:
        """A note for a value that was measured against another reference than those of `comparable`; "" for any other."""
        usual = next((row.record.value(value.name) for row in self.comparable.get(value.name, ())), None)
        return OTHER_REFERENCE if usual and usual.reference != value.reference else ""

    @cached_property
    def ranks(self) -> dict[str, dict[str, int | None]]:
        """Ranks by metric and by name of the model; win rates are left out, since they would repeat the ranks of their judge's score."""
        names = [value.name for value in metrics(self) if not judge_of(value.name)]
        by_metric = ranks.ranks([(row.record, row.scores) for row in self.models], names)
        return {name: {row.name: rank for row, rank in zip(self.models, of_models, strict=True)} for name, of_models in by_metric.items()}


def read_rows(results: Path) -> list[Row]:
    """Read the newest record of each model, suite version and machine class.

    Raises:
        UserError: there are no records, or one is unreadable or was changed.
    """
    board = [Row(folder, record) for folder, record in records.newest_per_model(results)]
    if not board:
        raise UserError(
            f"there are no records in {results}, expected at FAMILY/SUITE@VERSION/MODEL/DIGEST/record.json; name the folder that holds the "
            "families with --results, or measure something first: sdbench run"
        )
    return board


def sections(board: Sequence[Row]) -> list[Section]:
    """Group rows into sections, and sort them.

    Within a family, its default suite comes first, and sections with images before those with speed alone. Within a section, images
    without a model come first, then models by the size of their UNet, the teacher before models of the same size, then by name.
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
        settings = f" (digest {digest})" if digests[of[:4]] > 1 else ""  # as for suites `<name>-custom`
        found.append(
            Section(family, f"{family}: {suite}@{version}{settings} on {machine}", members, _find_teacher_of_other_suite(members, board))
        )

    def place(section: Section) -> tuple[str, bool, bool]:
        of = section.records
        return section.family, of[0].suite.name != DEFAULT_SUITES.get(section.family), not any(record.n_images for record in of)

    return sorted(found, key=place)


def _named_teacher(of_suite: Sequence[Record]) -> NamedTeacher | None:
    return next((record.teacher for record in of_suite if record.teacher), None)


def _find_teacher_of_other_suite(members: Sequence[Row], board: Sequence[Row]) -> Row | None:
    named = _named_teacher([row.record for row in members])
    wanted = named and (named.model, "", named.suite, members[0].record.machine.machine_class)

    def key(record: Record) -> tuple[str, str, SuiteId, str]:
        return record.model.name, record.model.label, record.suite, record.machine.machine_class

    return next((row for row in board if key(row.record) == wanted), None)


def _sort_key(row: Row) -> tuple[bool, float, bool, list[str | int]]:
    record = row.record
    parameters = record.value("parameters.unet")
    size = parameters.value if parameters and parameters.value else 0.0
    return not row.is_images_only, -size, record.model.name != TEACHERS.get(record.family), natural_key(record.model.name)


def metrics(section: Section) -> list[Value]:
    """An example value of each image metric that any row has, in the order of the columns."""
    return _examples((value for value in _all_values(section) if value.is_image_metric), tuple(TITLES))


def probes(section: Section) -> list[Value]:
    """An example value of each probe and count that is shown, in the order of the lines."""
    return _examples((value for value in _all_values(section) if not value.is_image_metric and _is_shown(value.name)), _EFFICIENCY)


def _all_values(section: Section) -> Iterator[Value]:
    return itertools.chain.from_iterable(record.values for record in section.records)


def _is_shown(name: str) -> bool:
    """Whether a probe is shown: of a stage only the median; the pipeline's is in the first table, other settings in tables of their own."""
    if setting_of(name) != BASE:
        return False
    if begins_with(name, "latency") and not begins_with(name, "latency.pipeline"):
        return name.endswith(".p50")
    return name != speed.P50


def _examples(values: Iterator[Value], order: Sequence[str]) -> list[Value]:
    """The first value of each name, sorted by `order` of the names' first parts, then as they come."""
    by_name: dict[str, Value] = {}
    for value in values:
        by_name.setdefault(value.name, value)
    return sorted(by_name.values(), key=lambda value: title_rank(value.name, order))


def title_rank(name: str, order: Sequence[str]) -> int:
    """The index in `order` of the prefix that a name begins with; `len(order)` where none fits."""
    return next((place for place, start in enumerate(order) if begins_with(name, start)), len(order))
