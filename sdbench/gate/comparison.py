"""Compare two models without a policy: the difference of each metric that both records have, with a two-sided interval of 95 %.

The bounds are the gate's, at half of alpha each. A metric is called better or worse where its interval excludes 0. Of many intervals some
do so by chance, so it is added that this "could be chance" unless it survives Holm's correction over all metrics that have an interval.
Counts are exact, and so not among them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sdbench import records, tables
from sdbench.errors import UserError
from sdbench.gate import floors, pairing, words
from sdbench.gate.pairing import Obstacle, Side
from sdbench.gate.policy import Rule
from sdbench.gate.verdicts import change_cell, finite_or_none
from sdbench.records import Kind, Value
from sdbench.stats import decisions, intervals
from sdbench.stats.decisions import Bounds
from sdbench.stats.intervals import WinRate
from sdbench.tables import Cell, Grid, Line

ALPHA = 0.05  # of each interval, and of any wrong "better" or "worse" that could not be chance
JUDGES = ("preference.scenes", "pickscore.v1", "hpsv2.1", "imagereward.v1")  # scores by which an image wins against the other model's


@dataclass(frozen=True)
class Difference:
    """How much a metric differs between two models.

    Attributes:
        a, b: the values.
        difference, low, high: b - a and its interval: in `unit` for image metrics, as a share of a for probes and counts.
        outcome: what B is, by whether the interval excludes 0.
        could_be_chance: whether a difference does not survive Holm's correction.
    """

    name: str
    kind: Kind
    direction: Literal["higher", "lower"]
    unit: str
    a: float
    b: float
    difference: float
    low: float
    high: float
    outcome: Literal["better", "worse", "no difference seen"]
    could_be_chance: bool

    @property
    def cells(self) -> Line:
        """The row of a table."""
        shown = [tables.format_count(value) if self.kind == "count" else tables.format_number(value) for value in (self.a, self.b)]
        return f"{self.name} ({self.unit}){tables.ARROWS[self.direction]}", self.judgement, self.change, *shown

    @property
    def judgement(self) -> str:
        """What B is, and whether that could be chance."""
        return self.outcome + (" (could be chance)" if self.could_be_chance else "")

    @property
    def change(self) -> Cell:
        """The difference and its interval."""
        return change_cell((self.difference, self.low, self.high), self.a, self.b, relative=self.kind in ("probe", "count"))


@dataclass(frozen=True)
class Comparison:
    """The differences between two models, B - A.

    Attributes:
        a, b: the models' names; A is the baseline, B the candidate.
        a_record, b_record: their record folders.
        suite: name, version and digest.
        wins: how often B's image is preferred to A's of the same prompt, by judge.
        not_compared: the metrics without a difference, by the reason.
        notes: what else a reader should know.
    """

    a: str
    b: str
    a_record: str
    b_record: str
    suite: str
    differences: tuple[Difference, ...]
    wins: Mapping[str, WinRate]
    not_compared: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types, and the version of this form; an infinite bound is null."""
        differences = [{key: finite_or_none(item) for key, item in asdict(each).items()} for each in self.differences]
        wins = {
            judge: {"share": rate.estimate.value, "low": rate.estimate.low, "high": rate.estimate.high}
            | {"wins": rate.wins, "ties": rate.ties, "losses": rate.losses}
            for judge, rate in self.wins.items()
        }
        changed = {"differences": differences, "wins": wins, "notes": list(self.notes)}
        return {"schema_version": tables.JSON_VERSION, **asdict(self), **changed}

    def grid(self) -> Grid:
        """The metrics, a row each."""
        return Grid(("metric", "B is", "B - A (95 % interval)", "A", "B"), tuple(each.cells for each in self.differences))

    def text(self, width: int = 160) -> str:
        """The comparison for a terminal."""
        return "\n\n".join([self._head(), tables.text(self.grid(), width), _bullets(self.remarks())]) + "\n"

    def markdown(self) -> str:
        """The comparison as Markdown, for CI pages and pull requests."""
        head, bullets = map(tables.escape_markdown, (self._head("- "), _bullets(self.remarks())))
        title = tables.escape_markdown(" ".join(f"### {self.b} compared with {self.a}".split()))
        return "\n\n".join([title, head, tables.markdown(self.grid()), bullets]) + "\n"

    __str__ = text
    _repr_markdown_ = markdown  # what a notebook shows

    def _head(self, bullet: str = "") -> str:
        lines = (f"A, the baseline: {self.a} ({self.a_record})", f"B, the candidate: {self.b} ({self.b_record})", f"suite: {self.suite}")
        return "\n".join(f"{bullet}{line}" for line in lines)

    def remarks(self) -> tuple[str, ...]:
        """The lines below the table: wins, what is not compared, and `notes`."""
        return *map(_describe_win, self.wins, self.wins.values()), *_describe_missing(self.not_compared), *self.notes


def compare(a: Path, b: Path, results: Path) -> Comparison:
    """Compare the record folders of two models.

    Metrics of which neither direction is better, the conditions of a measurement, are left out.

    Args:
        results: where noise floors lie, by which separate runs of one machine class differ.

    Raises:
        UserError: a folder is not an intact record, the two differ in more than the model, or no metric of theirs can be compared.
    """
    old, new = Side.read(a), Side.read(b)
    names = old.record.model.title, new.record.model.title
    if unlike := pairing.differences(new, old):
        raise UserError(
            f"the records of {names[1]} (candidate) and {names[0]} (baseline) cannot be compared: {'; '.join(unlike)}. Measure both models "
            "under one suite"
        )
    rules = {
        value.name: Rule(direction=value.direction, margin=0.0, required=False)
        for value in old.record.values
        if value.direction != "neither" and new.record.value(value.name)
    }
    between_runs = floors.between_runs(old.record, results)
    measured = {name: pairing.measure(name, rule, new, old, ALPHA / 2, between_runs.get(name)) for name, rule in rules.items()}
    bounds = {name: each for name, each in measured.items() if isinstance(each, Bounds)}
    missing = _by_reason(measured, new, old)
    if not bounds:
        why = "; ".join(_describe_missing(missing)) or "the records hold none"
        raise UserError(f"no metric of {names[1]} (candidate) and {names[0]} (baseline) can be compared: {why}")
    uncertain = [name for name in bounds if _value(new, name).kind != "count"]
    survives = dict(zip(uncertain, decisions.holm([_p_value(bounds[name]) for name in uncertain], ALPHA), strict=True))
    found = [_difference(name, rules[name], each, new, old, is_sure=survives.get(name, True)) for name, each in bounds.items()]
    n = len(uncertain)
    by_chance = f"of {n} intervals of 95 %, some exclude 0 by chance; what could be chance does not survive Holm's correction over all {n}"
    notes = (
        *(["A and B are the same record"] if new.record == old.record else []),
        *words.pair_notes({name: rules[name] for name in bounds}, new.record, old.record, between_runs, own=True),
        *words.power_notes(new.record, old.record, bounds),
        *([by_chance] if n > 1 else []),
    )
    suite = old.record.suite.title_with_digest
    return Comparison(*names, str(a), str(b), suite, tuple(found), dict(_wins(new, old)), missing, notes)


def side_by_side(comparisons: Sequence[Comparison], width: int = 160) -> str:
    """Comparisons of several models with one baseline, for a terminal: a column of differences for each, and what is said of them.

    Each is by itself, so that Holm's correction is over the metrics of one model.

    Raises:
        UserError: they are of different records of the baseline.
    """
    first = comparisons[0]
    if other := next((own for own in comparisons if own.a_record != first.a_record), None):
        raise UserError(
            f"{first.b} is comparable with another record of {first.a} ({first.a_record}) than {other.b} ({other.a_record}); choose a "
            "suite with --suite, or name record folders"
        )
    columns = [{each.name: each for each in own.differences} for own in comparisons]
    starts = {each.name: (each.cells[0], each.cells[3]) for own in comparisons for each in own.differences}
    rows = tuple((*start, *(_column_cell(own.get(name)) for own in columns)) for name, start in starts.items())
    said = dict[str, list[str]]()
    for own in comparisons:
        for line in own.remarks():
            said.setdefault(line, []).append(own.b)
    remarks = (
        line if len(names) == len(comparisons) else f"{tables.join_words(names)} as B: {line}"
        for line, names in sorted(said.items(), key=lambda item: len(item[1]))
    )
    head = (
        f"A, the baseline: {first.a} ({first.a_record})",
        *(f"B, a candidate: {own.b} ({own.b_record})" for own in comparisons),
        f"suite: {first.suite}",
        "in each candidate's column: B - A (95 % interval), and what B is where a difference is seen",
    )
    grid = Grid(("metric", "A", *(own.b for own in comparisons)), rows)
    return "\n\n".join(["\n".join(head), tables.text(grid, width), _bullets(remarks)]) + "\n"


def _column_cell(found: Difference | None) -> Cell:
    if not found:
        return Cell("not compared")
    outcome = "" if found.outcome == "no difference seen" else f" {found.judgement}"
    return Cell(f"{found.change.text}{outcome}", found.change.note)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)


def _value(side: Side, name: str) -> Value:
    value = side.record.value(name)
    assert value is not None
    return value


def _p_value(bounds: Bounds) -> float:
    """Two-sided p value of the hypothesis "no difference"."""
    return min(1.0, 2 * min(decisions.regression_p_value(each, 0.0) for each in (bounds, -bounds)))


def _difference(name: str, rule: Rule, bounds: Bounds, new: Side, old: Side, *, is_sure: bool) -> Difference:
    """A metric's row; the bounds come as plus = better."""
    a, b = _value(old, name), _value(new, name)
    assert a.value is not None
    assert b.value is not None
    outcome: Literal["better", "worse", "no difference seen"] = (
        "better" if bounds.low > 0 else "worse" if bounds.high < 0 else "no difference seen"
    )
    change, low, high = pairing.as_change(bounds, rule, a)
    could_be_chance = outcome != "no difference seen" and not is_sure
    return Difference(name, a.kind, rule.direction, a.unit, a.value, b.value, change, low, high, outcome, could_be_chance)


def _by_reason(measured: Mapping[str, Bounds | Obstacle], new: Side, old: Side) -> dict[str, tuple[str, ...]]:
    """The metrics without a difference, by the reason."""
    found: dict[str, tuple[str, ...]] = {}
    for name, each in measured.items():
        if isinstance(each, Obstacle):
            found[each.reason] = (*found.get(each.reason, ()), name)
    for side, own, other in (("baseline", old, new), ("candidate", new, old)):
        if only := tuple(value.name for value in own.record.values if other.record.value(value.name) is None):
            found[f"only in the record of the {side}"] = only
    return found


def _describe_missing(by_reason: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for reason, names in by_reason.items():
        yield f"not compared: {words.name_some(names)}: {reason}"


def _wins(new: Side, old: Side) -> Iterator[tuple[str, WinRate]]:
    """How often the candidate's image has the higher score of the two of a prompt, by judge."""
    ids = [prompt_id for prompt_id, _ in new.keys]
    for judge in JUDGES:
        columns = [side.columns[judge] for side in (new, old) if judge in side.columns]
        if len(columns) == 2 and np.isfinite(columns).all():
            yield judge, intervals.wins_interval(*(records.mean_per_prompt(ids, column)[1] for column in columns))


def _describe_win(judge: str, rate: WinRate) -> str:
    share = tables.format_estimate(rate.estimate.value, rate.estimate.low, rate.estimate.high)
    return f"win rate of B over A by {judge}: {share} ({rate.wins} wins, {rate.ties} ties, {rate.losses} losses)"
