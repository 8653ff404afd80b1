"""Two records side by side, metric by metric: the bounds of each difference, or the reason why there are none."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sdbench import records, tables
from sdbench.arrays import F64
from sdbench.errors import unknown_name
from sdbench.gate.policy import Rule
from sdbench.records import Record, Value
from sdbench.records.names import is_probe
from sdbench.stats import decisions
from sdbench.stats.decisions import BetweenRuns, Bounds

# Probes that exist on one kind of machine only; any other name that no record has is a mistake.
_MACHINE_BOUND = frozenset(
    f"memory.{name}" for name in ("peak_rss", "peak_data", "peak_allocated", "peak_reserved", "process", "context", "smallest_card")
)
Samples = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Side:
    """A record, with its scores sorted by key."""

    record: Record
    keys: list[tuple[str, int]]
    columns: dict[str, F64]

    @classmethod
    def read(cls, folder: Path) -> "Side":
        """Load a record folder.

        Raises:
            UserError: see `records.read`.
        """
        record, scores = records.read(folder)
        keys = scores.keys
        order = sorted(range(len(keys)), key=keys.__getitem__)
        return cls(record, sorted(keys), {name: column[order] for name, column in scores.columns.items()})

    def metric_names(self) -> set[str]:
        """Names of the image metrics in the record, measured or not."""
        return {value.name for value in self.record.values if value.is_image_metric}


@dataclass(frozen=True)
class Obstacle:
    """Why a metric has no bounds."""

    verdict: Literal["incomparable", "skipped"]
    reason: str


def differences(new: Side, old: Side) -> list[str]:
    """Each difference that makes two records incomparable, candidate first; suites' digests only where nothing else is known to differ."""
    found = [*unequal(_identity(new.record), _identity(old.record))]
    digests = {"suite digest": new.record.suite.digest}, {"suite digest": old.record.suite.digest}
    if digests[0] != digests[1]:
        for ours, theirs in zip(_settings(new.record), _settings(old.record), strict=True):
            found += unequal(ours, theirs) if ours and theirs else ()
    if new.keys != old.keys:
        found.append(f"prompts and samples differ: {_set_difference(set(new.keys), set(old.keys)) or 'some are repeated'}")
    if new.metric_names() != old.metric_names():
        found.append(f"protocols differ: {_set_difference(new.metric_names(), old.metric_names())}")
    return found or [*unequal(*digests)]


def unequal(new: Mapping[str, Any], old: Mapping[str, Any]) -> Iterator[str]:
    """Each entry that differs, the candidate's first."""
    for key in {**new, **old}:
        if new.get(key) != old.get(key):
            yield f"{key} is {new.get(key)!r} against {old.get(key)!r}"


def _identity(record: Record) -> dict[str, Any]:
    suite = record.suite
    return {"family": record.family, "suite": suite.name, "suite version": suite.version, "number of images": record.n_images}


def _settings(record: Record) -> list[dict[str, Any]]:
    """Settings of the suite that a record holds, in groups; an older record, or one of images made elsewhere, lacks some of these."""
    teacher = record.teacher and f"{record.teacher.model} under {record.teacher.suite.title_with_digest}"
    return [
        record.sampling,
        {f"noise {key}": item for key, item in record.noise.items()},
        {"source of the prompts": record.prompts} if record.prompts else {},
        {"teacher": teacher} if teacher else {},
    ]


def _set_difference(new: set[Any], old: set[Any]) -> str:
    sides = (("candidate", sorted(new - old)), ("baseline", sorted(old - new)))
    return ", ".join(
        f"{len(only)} only in the {side} ({', '.join(map(str, only[:3]))}{', ...' if len(only) > 3 else ''})"
        for side, only in sides
        if only
    )


def measure(name: str, rule: Rule, new: Side, old: Side, alpha: float, between_runs: BetweenRuns | None = None) -> Bounds | Obstacle:
    """Bounds of a metric's difference between candidate and baseline, oriented so that plus = better, or why there are none.

    Args:
        alpha: chance that a bound is wrong, for each of the two.
        between_runs: for a probe, how far the log ratio of two runs of one model lies from 0.
    """
    new_value, old_value = new.record.value(name), old.record.value(name)
    if new_value is None or old_value is None:
        return _absence_obstacle(name, rule, new, old)
    states = _state_obstacle(rule, new_value, old_value)
    if obstacle := states or _unlike_obstacle(rule, new_value, old_value, new, old) or _margin_obstacle(rule, new_value):
        return obstacle
    if new_value.is_image_metric:
        bounds = paired_bounds(new_value, old_value, new, old, 1 - alpha)
    else:
        bounds = _probe_bounds(new_value, old_value, 1 - alpha, between_runs, in_turns=new.record.is_same_run(old.record))
    return _turn(bounds, rule) if isinstance(bounds, Bounds) else bounds


def _absence_obstacle(name: str, rule: Rule, new: Side, old: Side) -> Obstacle:
    sides = {"candidate": new.record, "baseline": old.record}
    missing_in = [side for side, record in sides.items() if record.value(name) is None]
    everywhere = len(missing_in) == 2 or new.record.machine.machine_class != old.record.machine.machine_class
    skippable = name in _MACHINE_BOUND and everywhere and not rule.required
    if not any(value.is_image_metric != is_probe(name) for record in sides.values() for value in record.values):
        advice = "--only quality, or gate with --only quality" if is_probe(name) else "--only probes"
        return Obstacle("skipped" if skippable else "incomparable", f"not measured in either record; run without {advice}")
    if skippable:
        return Obstacle("skipped", f"not available on the machine of the {tables.join_words(missing_in)}")
    if len(missing_in) == 2:
        names, advice = (value.name for value in new.record.values), "Measure it, or name a policy without it with --policy."
        return Obstacle("incomparable", f"in neither record: {unknown_name('metric of these records', name, names, advice)}")
    alike = "measure both models in the same way" + (", or gate with --only quality" if is_probe(name) else "")
    return Obstacle("incomparable", f"not in the {missing_in[0]}'s record; {alike}")


def _state_obstacle(rule: Rule, new_value: Value, old_value: Value) -> Obstacle | None:
    """A missing or failed value never passes; only one that is not applicable may be skipped."""
    bad = {side: value for side, value in (("candidate", new_value), ("baseline", old_value)) if value.state != "ok"}
    if not bad:
        return None
    skippable = not rule.required and all(value.state == "not_applicable" for value in bad.values())
    words = "; ".join(f"{side} is {value.state.replace('_', ' ')}: {value.reason}" for side, value in bad.items())
    return Obstacle("skipped" if skippable else "incomparable", words)


def _unlike_obstacle(rule: Rule, new_value: Value, old_value: Value, new: Side, old: Side) -> Obstacle | None:  # noqa: PLR0911  # one for each difference
    """The reason why two values, both present, do not mean the same thing."""
    if (new_value.kind, new_value.unit, new_value.direction) != (old_value.kind, old_value.unit, old_value.direction):
        return Obstacle(
            "incomparable",
            f"{new_value.kind} in {new_value.unit}, {new_value.direction} is better, against {old_value.kind} in {old_value.unit}, "
            f"{old_value.direction}",
        )
    if new_value.direction != rule.direction:
        return Obstacle("incomparable", f"the policy says {rule.direction} is better, the records say {new_value.direction}")
    machines = [side.record.machine.machine_class for side in (new, old)]
    if new_value.kind == "probe" and machines[0] != machines[1]:
        return Obstacle("incomparable" if rule.required else "skipped", f"different machine classes: {machines[0]} against {machines[1]}")
    threads = [count.value for side in (new, old) if (count := side.record.value("machine.threads"))]
    if new_value.kind == "probe" and new.record.machine.device == "cpu" and len(set(threads)) > 1:
        words = f"PyTorch's threads are {threads[0]:g} against {threads[1]:g}; set OMP_NUM_THREADS alike and run again"
        return Obstacle("incomparable" if rule.required else "skipped", words)
    if new_value.is_image_metric and new_value.n != old_value.n:
        return Obstacle("incomparable", f"n is {new_value.n} against {old_value.n}")
    if new_value.reference != old_value.reference:
        ours, theirs = (value.reference or "a reference that its record does not name" for value in (new_value, old_value))
        return Obstacle("incomparable", f"the candidate was measured against {ours}, the baseline against {theirs}; run both again")
    return None


def _margin_obstacle(rule: Rule, value: Value) -> Obstacle | None:
    """The reason why no candidate could ever lose the margin."""
    if is_relative(value) and rule.direction == "higher" and rule.margin >= 1:
        return Obstacle(
            "incomparable",
            f"the policy's margin is {100 * rule.margin:g} % of the baseline, but a loss cannot exceed 100 %; choose a margin below 100 %",
        )
    return None


def paired_bounds(new_value: Value, old_value: Value, new: Side, old: Side, level: float) -> Bounds | Obstacle:
    """Bounds of candidate minus baseline for an image metric, paired by prompt, or why there are none."""
    for side, name in ((new, "candidate"), (old, "baseline")):
        if new_value.column not in side.columns:
            return Obstacle("incomparable", f"the scores of the {name} have no column {new_value.column!r}")
        if bad := int((~np.isfinite(side.columns[new_value.column])).sum()):
            return Obstacle("incomparable", f"{bad} of {len(side.keys)} scores of the {name} are missing or NaN")
    difference = new.columns[new_value.column] - old.columns[new_value.column]
    if new_value.kind == "set":
        assert new_value.value is not None
        assert old_value.value is not None
        difference = difference + (new_value.value - old_value.value)
    _, by_prompt = records.mean_per_prompt([prompt_id for prompt_id, _ in new.keys], difference)
    unseen = 1.0 if new_value.unit == "share" and not _are_same_images(new, old) else 0.0
    return decisions.paired_mean_bounds(by_prompt, level, unseen=unseen)


def _are_same_images(new: Side, old: Side) -> bool:
    """Whether the images are equal by every score that can tell two images apart; a share cannot."""
    shares = {value.column for value in new.record.values if value.is_image_metric and value.unit == "share"}
    finer = [name for name in new.columns if name not in shares]
    equal = [np.array_equal(new.columns[name], old.columns.get(name, ())) for name in finer]
    return new.record == old.record or (bool(equal) and all(equal))


def _probe_bounds(
    new_value: Value, old_value: Value, level: float, between_runs: BetweenRuns | None, *, in_turns: bool
) -> Bounds | Obstacle:
    """Bounds of the log ratio of candidate to baseline; exactly 0 where both are the same measurement, however far runs lie apart."""
    if (new_value.value, new_value.samples) == (old_value.value, old_value.samples):
        return Bounds(0.0, 0.0, 0.0, 0.0, max(new_value.n, 1))
    bounds = _log_ratio_bounds(new_value, old_value, level, in_turns=in_turns)
    return decisions.widen(bounds, between_runs, level) if between_runs and not in_turns and isinstance(bounds, Bounds) else bounds


def _log_ratio_bounds(new_value: Value, old_value: Value, level: float, *, in_turns: bool) -> Bounds | Obstacle:
    """Bounds of the log ratio over raw rounds, or of two counts, which have no spread."""
    if not (new_value.value and old_value.value and min(new_value.value, old_value.value) > 0):
        return Obstacle("incomparable", f"a ratio needs values above 0, found {new_value.value} against {old_value.value}")
    if new_value.samples and old_value.samples:
        return _round_bounds(new_value.samples, old_value.samples, level, in_turns=in_turns)
    if new_value.kind != "count":
        return Obstacle(
            "incomparable", "its spread is unknown, because not both records hold raw samples; take a value that has them, such as a p50"
        )
    ratio = math.log(new_value.value / old_value.value)
    return Bounds(ratio, ratio, ratio, 0.0, 1)


def _round_bounds(new_rounds: Samples, old_rounds: Samples, level: float, *, in_turns: bool) -> Bounds | Obstacle:
    if len(new_rounds) != len(old_rounds):
        counts = f"{len(new_rounds)} for the candidate, {len(old_rounds)} for the baseline"
        return Obstacle("incomparable", f"rounds measured: {counts}; failed rounds do not count; run the probes again")
    try:
        return (decisions.paired_ratio_bounds if in_turns else decisions.ratio_bounds)(new_rounds, old_rounds, level)
    except ValueError as error:
        return Obstacle("incomparable", str(error))


def scaled_margin(rule: Rule, value: Value | None) -> float:
    """The margin on the scale of the bounds: in the metric's unit, or as a log ratio."""
    if not is_relative(value):
        return rule.margin
    return -math.log1p(-rule.margin) if rule.direction == "higher" else math.log1p(rule.margin)


def as_change(bounds: Bounds, rule: Rule, value: Value) -> tuple[float, float, float]:
    """Candidate minus baseline, low, high, from bounds with plus = better: in the metric's unit, or as shares of the baseline."""
    turned = _turn(bounds, rule)
    low, difference, high = (math.expm1(end) if is_relative(value) else end for end in (turned.low, turned.difference, turned.high))
    return difference, low, high


def _turn(bounds: Bounds, rule: Rule) -> Bounds:
    """Bounds of candidate minus baseline from those with plus = better, and back."""
    return -bounds if rule.direction == "lower" else bounds


def is_relative(value: Value | None) -> bool:
    """Whether differences are shares of the baseline, as for probes and counts."""
    return value is not None and not value.is_image_metric
