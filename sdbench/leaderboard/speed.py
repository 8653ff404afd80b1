"""Tables of probes: the effect of each setting, and ratios to the teacher, measured and published."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdbench import tables
from sdbench.leaderboard import published
from sdbench.records import Record, Value
from sdbench.records.names import BASE, STAGES, latency_of, setting_of, with_setting, without_setting
from sdbench.stats import decisions
from sdbench.stats.intervals import Estimate
from sdbench.tables import Cell, Grid, Line

P50 = latency_of("pipeline")
MEMORY = ("memory.peak_allocated", "memory.peak_data")  # a record has one of the two, by its device
# Shown for each setting; a record has only the kinds of memory that its machine has.
_PROBES = (
    P50,
    "images_per_second",
    "energy.pipeline",
    "latency.unet_step.p50",
    "latency.vae_decode.p50",
    "share.matmul.unet_step",
    "share.roofline.unet_step",
    "memory.peak_allocated",
    "memory.process",
    "memory.smallest_card",
    "memory.peak_data",
    "memory.peak_rss",
    "cold_start.first_call",
    "cold_start.first_call_compiling",
)


@dataclass(frozen=True)
class SpeedUp:
    """How many times as fast as the teacher.

    Attributes:
        is_same_run: whether the two took turns.
    """

    ratio: Estimate
    is_same_run: bool = True

    @property
    def parts(self) -> tuple[str, str]:
        """The number, and its interval or the note in its place, if any."""
        ratio = self.ratio
        if not ratio.has_interval:
            return f"{tables.format_number(ratio.value, 3)}x", "" if self.is_same_run else "(separate runs)"
        number, interval = tables.estimate_parts(ratio.value, ratio.low or None, ratio.high if math.isfinite(ratio.high) else None)
        return f"{number}x", interval


def ratio_cell(found: SpeedUp | Cell) -> Cell:
    """`1.55x ± 0.02`, or `1.55x (separate runs)` for two that did not take turns; the cell of why there is none as it is."""
    return Cell(" ".join(filter(None, found.parts))) if isinstance(found, SpeedUp) else found


def probe_cell(record: Record, name: str) -> Cell:
    """The cell of a probe or count; "no model" for images without a model, which can have none."""
    value = record.value(name)
    return Cell("no model") if value is None and record.model.is_images_only else tables.format_value(value)


def speed_up(record: Record, teacher: Record | None, name: str) -> SpeedUp | Cell:
    """How many times as fast as the teacher, by a value that both have; otherwise the reason why there is none.

    The ratio is that of the two medians shown beside it; its 95 % interval resamples rounds (`decisions.ratio_bounds`), and is from 0 to
    infinity for a single round. There is none between two runs, since the rounds of a run do not show how far two runs lie apart.
    """
    own = record.value(name)
    if not own or not own.value:
        return probe_cell(record, name)
    if teacher is None:
        return Cell("missing", "the teacher's latency was not measured on this machine")
    of_teacher = teacher.value(name)
    if not of_teacher or not of_teacher.value:
        return Cell("missing", "the teacher has no value to compare with")
    ratio = of_teacher.value / own.value
    alone = Estimate(ratio, ratio, ratio, own.n, has_interval=False)
    if record is teacher or not (own.samples and of_teacher.samples):
        return SpeedUp(alone)
    if not record.is_same_run(teacher):
        return SpeedUp(alone, is_same_run=False)
    bounds = decisions.ratio_bounds(own.samples, of_teacher.samples, level=0.975)
    ratio, low, high = (math.exp(-log) for log in (bounds.difference, bounds.high, bounds.low))
    return SpeedUp(Estimate(ratio, low, high, bounds.n))


def headline(records: Sequence[Record]) -> str:
    """The median latency to show first: in `base` or, where no record has it, in the first setting that was measured."""
    labels = _labels(records)
    return P50 if BASE in labels or not labels else with_setting(P50, labels[0])


def teacher_title(teacher: Record, records: Sequence[Record]) -> str:
    """The teacher's name with its label, and its suite where that differs from the records' suite."""
    name, suite = teacher.model.title, teacher.suite
    return name if suite == records[0].suite else f"{name} under {suite.title}"


def grids(records: Sequence[Record], teacher: Record | None) -> dict[str, Grid]:
    """Tables by title: ratios to the teacher by stage; settings with the model's own VAE; apart from these, settings with the tiny VAE."""
    labels = _labels(records)
    tiny = [label for label in labels if "tiny-vae" in label]
    full = [label for label in labels if label not in tiny]
    found = {}
    if teacher:
        found[f"Speed-up over {teacher_title(teacher, records)} by stage"] = _ratio_grid(records, teacher, full)
    if any(label != BASE for label in full):
        found["By setting"] = _setting_grid(records, full)
    found["With the tiny VAE"] = _setting_grid(records, tiny)
    return {title: grid for title, grid in found.items() if grid.rows}


def published_grid(records: Sequence[Record], teacher: Record | None) -> Grid:
    """Published ratios to the teacher beside the same ratios measured here, in `base`, else in the first setting measured.

    There are no rows where nothing was measured.
    """
    header = ("published", "source", "model", "measured as", "ratio published", "ratio measured here")
    if teacher is None:
        return Grid(header, ())
    nearest, rows = setting_of(headline(records)), []
    for claim in published.load_claims():
        for (probe, numbers), record in itertools.product(claim.numbers.items(), records):
            name = with_setting(probe, nearest) if setting_of(probe) == BASE else probe
            if record is not teacher and record.value(name) and record.model.name in claim.values:
                ratio = _published_ratio(numbers, record.model.name) or claim.values[record.model.name]
                what = f"{claim.what}: {claim.protocol}"
                rows.append((what, claim.source, record.model.title, name, ratio, ratio_cell(speed_up(record, teacher, name))))
    return Grid(header, tuple(rows))


def _published_ratio(numbers: dict[published.Name, float], model: str) -> str:
    by_name = {str(name): number for name, number in numbers.items()}
    return f"{tables.format_number(by_name['sdxl'] / by_name[model], 3)}x" if {"sdxl", model} <= by_name.keys() else ""


def _labels(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(setting_of(value.name) for record in records for value in latencies(record)))


def _ratio_grid(records: Sequence[Record], teacher: Record, labels: Sequence[str]) -> Grid:
    students = [record for record in _with_latency(records) if record is not teacher]
    header = ("stage", "setting", *(record.model.title for record in students))
    if not students:
        return Grid(header, ())
    rows: list[Line] = [
        (stage, label, *(ratio_cell(speed_up(record, teacher, name)) for record in students))
        for stage, label in itertools.product(STAGES, labels)
        if teacher.value(name := with_setting(latency_of(stage), label))
    ]
    if teacher.value("flops.unet"):
        cells = (ratio_cell(speed_up(record, teacher, "flops.unet")) for record in students)
        rows.append(("multiply-accumulates of the UNet", "any", *cells))
    return Grid(header, tuple(rows))


def _setting_grid(records: Sequence[Record], labels: Sequence[str]) -> Grid:
    measured = _with_latency(records)
    rows = list[Line]()
    for probe, label in itertools.product(_PROBES, labels):
        values = [record.value(with_setting(probe, label)) for record in measured]
        if example := next(filter(None, values), None):
            rows.append((f"{probe} ({example.unit}){tables.ARROWS[example.direction]}", label, *map(tables.format_value, values)))
    return Grid(("probe", "setting", *(record.model.title for record in measured)), tuple(rows))


def _with_latency(records: Sequence[Record]) -> list[Record]:
    return [record for record in records if any(value.state != "not_applicable" for value in latencies(record))]


def latencies(record: Record) -> list[Value]:
    """The pipeline's median latency in each setting."""
    return [value for value in record.values if without_setting(value.name) == P50]
