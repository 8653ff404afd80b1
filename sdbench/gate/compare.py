"""What two records have in common: each metric to bounds of its difference, or to the reason why there are none."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sdbench import records, tables
from sdbench.arrays import F64
from sdbench.errors import unknown_name
from sdbench.gate.policy import Rule
from sdbench.records import Record, Value
from sdbench.stats import decisions
from sdbench.stats.decisions import BetweenRuns, Bounds

# Probes that only one kind of machine has; any other name that no record has is a mistake.
_MACHINE_BOUND = frozenset(
    f"memory.{name}" for name in ("peak_rss", "peak_allocated", "peak_reserved", "process", "context", "smallest_card")
)


Samples = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Side:
    """A record, with its scores in the order of their keys."""

    record: Record
    keys: list[tuple[str, int]]
    columns: dict[str, F64]

    @classmethod
    def read(cls, folder: Path) -> "Side":
        """Load a record folder."""
        record, scores = records.read(folder)
        keys = scores.keys
        order = sorted(range(len(keys)), key=keys.__getitem__)
        return cls(record, sorted(keys), {name: column[order] for name, column in scores.columns.items()})

    def metrics(self) -> set[str]:
        """Protocols of the metrics (not the probes) the record knows, measured or not."""
        return {value.name for value in self.record.values if value.kind in ("score", "set")}


@dataclass(frozen=True)
class Obstacle:
    """Why a metric has no bounds."""

    verdict: Literal["incomparable", "skipped"]
    reason: str


def differences(new: Side, old: Side) -> Iterator[str]:
    """What makes two records incomparable, candidate first."""
    pairs = {
        "family": (new.record.family, old.record.family),
        "suite": (new.record.suite.name, old.record.suite.name),
        "suite version": (new.record.suite.version, old.record.suite.version),
        "suite digest": (new.record.suite.digest, old.record.suite.digest),
        "number of images": (new.record.n_images, old.record.n_images),
    }
    yield from (f"{what} is {found!r} against {expected!r}" for what, (found, expected) in pairs.items() if found != expected)
    if new.keys != old.keys:
        yield f"prompts and samples differ: {_set_difference(set(new.keys), set(old.keys)) or 'some are repeated'}"
    if new.metrics() != old.metrics():
        yield f"protocols differ: {_set_difference(new.metrics(), old.metrics())}"


def _set_difference(new: set[Any], old: set[Any]) -> str:
    sides = (("candidate", sorted(new - old)), ("baseline", sorted(old - new)))
    return ", ".join(
        f"{len(only)} only in the {side} ({', '.join(map(str, only[:3]))}{', ...' if len(only) > 3 else ''})"
        for side, only in sides
        if only
    )


def measure(name: str, rule: Rule, new: Side, old: Side, alpha: float, between_runs: BetweenRuns | None = None) -> Bounds | Obstacle:
    """Bounds of the difference, oriented so that plus = better, or why there are none.

    Args:
        between_runs: of a probe, how far the log ratio of two runs of one model lies from 0.
    """
    found, expected = new.record.value(name), old.record.value(name)
    if found is None or expected is None:
        return _absent(name, rule, new, old)
    if obstacle := _state(rule, found, expected) or _unlike(rule, found, expected, new, old) or _unlosable(rule, found):
        return obstacle
    if found.kind in ("score", "set"):
        bounds = paired(found, expected, new, old, 1 - alpha)
    else:
        bounds = _probe(found, expected, 1 - alpha, None if new.record.same_run(old.record) else between_runs)
    return -bounds if isinstance(bounds, Bounds) and rule.direction == "lower" else bounds


def _absent(name: str, rule: Rule, new: Side, old: Side) -> Obstacle:
    sides = {"candidate": new.record, "baseline": old.record}
    lacking = [side for side, record in sides.items() if record.value(name) is None]
    everywhere = len(lacking) == 2 or new.record.machine.machine_class != old.record.machine.machine_class
    if name in _MACHINE_BOUND and everywhere and not rule.required:
        return Obstacle("skipped", f"the machine of the {tables.listed(lacking)} does not have it")
    if len(lacking) == 2:
        return Obstacle("incomparable", f"in neither record: {unknown_name('metric', name, (value.name for value in new.record.values))}")
    return Obstacle("incomparable", f"not in the record of the {lacking[0]}, which was measured without it; measure both sides alike")


def _state(rule: Rule, found: Value, expected: Value) -> Obstacle | None:
    """A value that is not there never passes; one that cannot apply may be skipped."""
    bad = {side: value for side, value in (("candidate", found), ("baseline", expected)) if value.state != "ok"}
    if not bad:
        return None
    skippable = not rule.required and all(value.state == "not_applicable" for value in bad.values())
    words = "; ".join(f"{side} is {value.state.replace('_', ' ')}: {value.reason}" for side, value in bad.items())
    return Obstacle("skipped" if skippable else "incomparable", words)


def _unlike(rule: Rule, found: Value, expected: Value, new: Side, old: Side) -> Obstacle | None:
    """Two values that are there but do not mean the same."""
    if (found.kind, found.unit, found.direction) != (expected.kind, expected.unit, expected.direction):
        return Obstacle(
            "incomparable",
            f"{found.kind} in {found.unit}, {found.direction} is better, against {expected.kind} in {expected.unit}, {expected.direction}",
        )
    if found.direction != rule.direction:
        return Obstacle("incomparable", f"the policy says {rule.direction} is better, the records say {found.direction}")
    machines = [side.record.machine.machine_class for side in (new, old)]
    if found.kind == "probe" and machines[0] != machines[1]:
        return Obstacle("incomparable" if rule.required else "skipped", f"other machine class: {machines[0]} against {machines[1]}")
    if found.kind in ("score", "set") and found.n != expected.n:
        return Obstacle("incomparable", f"n is {found.n} against {expected.n}")
    if found.reference != expected.reference:
        ends = [value.reference or "what is not in its record" for value in (found, expected)]
        return Obstacle("incomparable", f"taken against {ends[0]}, that of the baseline against {ends[1]}; run both again")
    return None


def _unlosable(rule: Rule, found: Value) -> Obstacle | None:
    """A margin that no candidate could lose."""
    if is_relative(found) and rule.direction == "higher" and rule.margin >= 1:
        said = f"the policy's margin is {100 * rule.margin:g} % of the baseline; no more than all of it can be lost, take less than 100 %"
        return Obstacle("incomparable", said)
    return None


def paired(found: Value, expected: Value, new: Side, old: Side, level: float) -> Bounds | Obstacle:
    """Candidate minus baseline of a score or set metric, averaged over a prompt's samples because they are not independent."""
    column = found.name if found.kind == "score" else f"{found.name}:influence"
    for side, name in ((new, "candidate"), (old, "baseline")):
        if column not in side.columns:
            return Obstacle("incomparable", f"the scores of the {name} have no column {column!r}")
        if bad := int((~np.isfinite(side.columns[column])).sum()):
            return Obstacle("incomparable", f"{bad} of {len(side.keys)} scores of the {name} are missing or NaN")
    difference = new.columns[column] - old.columns[column]
    if found.kind == "set":
        assert found.value is not None
        assert expected.value is not None
        difference = difference + (found.value - expected.value)
    _, prompt = np.unique([prompt_id for prompt_id, _ in new.keys], return_inverse=True)
    unseen = 1.0 if found.unit == "share" and not _same_pictures(new, old) else 0.0
    return decisions.paired_mean_bounds(np.bincount(prompt, difference) / np.bincount(prompt), level, unseen=unseen)


def _same_pictures(new: Side, old: Side) -> bool:
    """Whether the pictures are equal by all scores that tell any two apart, which a share does not."""
    shares = {value.name for value in new.record.values if value.unit == "share"}
    finer = [name for name in new.columns if name.removesuffix(":influence") not in shares]
    equal = [np.array_equal(new.columns[name], old.columns.get(name, ())) for name in finer]
    return new.record == old.record or (bool(equal) and all(equal))


def _probe(found: Value, expected: Value, level: float, between_runs: BetweenRuns | None) -> Bounds | Obstacle:
    """Log ratio of candidate to baseline; one measurement against itself differs by nothing, however far runs lie apart."""
    if (found.value, found.samples) == (expected.value, expected.samples):
        return Bounds(0.0, 0.0, 0.0, 0.0, max(found.n, 1))
    bounds = _log_ratio(found, expected, level)
    return decisions.widened(bounds, between_runs, level) if between_runs and isinstance(bounds, Bounds) else bounds


def _log_ratio(found: Value, expected: Value, level: float) -> Bounds | Obstacle:
    """Of the medians of raw rounds, or of two counts, which alone have no spread."""
    if not (found.value and expected.value and min(found.value, expected.value) > 0):
        return Obstacle("incomparable", f"a ratio needs values above 0, found {found.value} against {expected.value}")
    if found.samples and expected.samples:
        return _of_rounds(found.samples, expected.samples, level)
    if found.kind != "count":
        return Obstacle("incomparable", "an uncertain value without raw samples on both sides; weigh one that has them, such as a p50")
    ratio = math.log(found.value / expected.value)
    return Bounds(ratio, ratio, ratio, 0.0, 1)


def _of_rounds(found: Samples, expected: Samples, level: float) -> Bounds | Obstacle:
    if len(found) != len(expected):
        counts = f"{len(found)} of the candidate, {len(expected)} of the baseline"
        return Obstacle("incomparable", f"rounds measured: {counts}; those that failed are no measurement, run the probes again")
    try:
        return decisions.ratio_bounds(found, expected, level)
    except ValueError as error:
        return Obstacle("incomparable", str(error))


def margin(rule: Rule, value: Value | None) -> float:
    """The margin on the scale of the bounds."""
    if not is_relative(value):
        return rule.margin
    return -math.log1p(-rule.margin) if rule.direction == "higher" else math.log1p(rule.margin)


def is_relative(value: Value | None) -> bool:
    """Whether differences are shares of the baseline."""
    return value is not None and value.kind in ("probe", "count")
