"""Two records to a verdict: is the candidate as good as the baseline, within the margins of a policy?

Reads record folders and nothing else. Scores and set metrics are compared prompt by prompt, probes by the ratio of their
medians; every bound is one-sided. The candidate passes only if every weighed metric surely lost less than its margin.
What cannot be compared is refused with what differs: a gate that measured nothing must not look like one that passed.
"""

import math
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from sdbench import compare, stats, tables
from sdbench.compare import Obstacle, Side
from sdbench.policy import Policy, Rule
from sdbench.records import Record
from sdbench.stats import Bounds, Verdict
from sdbench.tables import Grid

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "regressed": 1, "incomparable": 2, "inconclusive": 3}


@dataclass(frozen=True)
class Result:
    """One weighed metric.

    Attributes:
        reason: why the verdict is what it is, in words.
        relative: difference, low, high and margin are shares of the baseline, not in `unit`.
        difference, low, high: candidate minus baseline and its one-sided bounds.
        needed_n: how many prompts (rounds for a probe) would decide it; only where it is inconclusive, and any number would.
    """

    name: str
    verdict: Verdict | Literal["skipped"]
    reason: str
    direction: str
    margin: float
    required: bool
    unit: str = ""
    relative: bool = False
    candidate: float | None = None
    baseline: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    needed_n: int | None = None


@dataclass(frozen=True)
class Report:
    """What the gate says.

    Attributes:
        why: the verdict in a sentence.
        differences: what makes the records incomparable as a whole.
        notes: what a reader should know though the gate does not weigh it.
    """

    verdict: Verdict
    why: str
    candidate: str
    baseline: str
    results: tuple[Result, ...] = ()
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regressed, 2 incomparable, 3 inconclusive."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types; an infinite bound is null."""
        results = [{key: _finite(item) for key, item in asdict(result).items()} for result in self.results]
        return {
            **asdict(self),
            "results": results,
            "differences": list(self.differences),
            "notes": list(self.notes),
            "exit_code": self.exit_code,
        }

    def grid(self) -> Grid:
        """The metrics, a line each."""
        header = ("metric", "verdict", "candidate", "baseline", "candidate - baseline", "margin", "why")
        return Grid(header, tuple(map(_line, self.results)))

    def text(self, width: int = 160) -> str:
        """For people: why, then the metrics."""
        table = tables.text(self.grid(), width) if self.results else ""
        listed = "\n".join(f"- {line}" for line in (*self.differences, *self.notes))
        return "\n\n".join(filter(None, [f"{self.verdict}: {self.why}", table, listed])) + "\n"


def gate(candidate: Path, baseline: Path, policy: Policy) -> Report:
    """Compare the record folder of a candidate with that of a baseline.

    Raises:
        UserError: a folder is no intact record, or the policy knows nothing of the suite.
    """
    new, old = Side.read(candidate), Side.read(baseline)
    names = _label(new.record), _label(old.record)
    if differences := tuple(compare.differences(new, old)):
        return Report(
            "incomparable",
            f"the records of {names[0]} and {names[1]} cannot be compared: {'; '.join(differences)}.",
            *names,
            (),
            differences,
        )
    rules = policy.rules(new.record.suite.name)
    measured = {name: compare.measure(name, rule, new, old, policy.alpha) for name, rule in rules.items()}
    bounded = {name: found for name, found in measured.items() if isinstance(found, Bounds)}
    rejected = stats.holm(
        [stats.regression_p(found, compare.margin(rules[name], new.record.value(name))) for name, found in bounded.items()], policy.alpha
    )
    surely_worse = {name for name, is_rejected in zip(bounded, rejected, strict=True) if is_rejected}
    results = tuple(_result(name, rules[name], found, new, old, surely_worse=name in surely_worse) for name, found in measured.items())
    verdict = _overall(results)
    return Report(verdict, _why(verdict, results, *names), *names, results, (), tuple(_notes(rules, new.record, old.record)))


def _label(record: Record) -> str:
    return f"{record.model.name} ({record.model.label})" if record.model.label else record.model.name


def _result(name: str, rule: Rule, measured: Bounds | Obstacle, new: Side, old: Side, *, surely_worse: bool) -> Result:
    """A metric's verdict, its numbers turned back from "plus = better" to candidate minus baseline."""
    found, expected = new.record.value(name), old.record.value(name)
    about = found or expected
    result = Result(
        name,
        "incomparable",
        "",
        rule.direction,
        rule.margin,
        rule.required,
        unit=about.unit if about else "",
        relative=compare.is_relative(about),
        candidate=found.value if found else None,
        baseline=expected.value if expected else None,
    )
    if isinstance(measured, Obstacle):
        return replace(result, verdict=measured.verdict, reason=measured.reason)
    natural = -measured if rule.direction == "lower" else measured
    difference, low, high = (math.expm1(end) if result.relative else end for end in (natural.difference, natural.low, natural.high))
    result = replace(result, difference=difference, low=low, high=high)
    return _judged(result, measured, compare.margin(rule, about), surely_worse=surely_worse)


def _judged(result: Result, bounds: Bounds, margin: float, *, surely_worse: bool) -> Result:
    """The verdict on a metric's bounds; "regressed" must also survive Holm's correction."""
    verdict = stats.decide(bounds, margin)
    if verdict == "pass":
        return replace(result, verdict=verdict, reason="surely lost less than the margin")
    if verdict == "regressed":
        if surely_worse:
            return replace(result, verdict=verdict, reason="surely lost more than the margin")
        return replace(result, verdict="inconclusive", reason="lost more than the margin, but not surely so among so many metrics (Holm)")
    needed, unit = stats.needed_n(bounds, margin), "rounds" if result.relative else "prompts"
    unknown = (
        f"a single one of them shows no spread, measure more {unit}" if bounds.n == 1 else f"no number of {unit} is known to decide it"
    )
    outlook = f"about {needed} would decide it" if needed else unknown
    return replace(result, verdict="inconclusive", reason=f"{bounds.n} {unit} leave it open; {outlook}", needed_n=needed)


def _overall(results: tuple[Result, ...]) -> Verdict:
    """The worst of the metrics; a gate that skipped them all has measured nothing."""
    verdicts = {result.verdict for result in results}
    order: tuple[Verdict, ...] = ("incomparable", "regressed", "inconclusive", "pass")
    return next((verdict for verdict in order if verdict in verdicts), "incomparable")


def _why(verdict: Verdict, results: tuple[Result, ...], candidate: str, baseline: str) -> str:
    """The verdict in a sentence."""
    chosen = [result for result in results if result.verdict == verdict]
    skipped = [result.name for result in results if result.verdict == "skipped"]
    also = f" Not compared: {tables.listed(skipped)}." if skipped else ""
    if not chosen:
        return f"every metric of the policy was skipped, so nothing was compared.{also}"
    if verdict == "pass":
        return f"{candidate} lost less than the margin against {baseline} in all {len(chosen)} metrics compared.{also}"
    if verdict == "regressed":
        return f"{candidate} is worse than {baseline} by more than the margin in {tables.listed([f'{r.name} ({_shown(r)})' for r in chosen])}.{also}"
    found = "; ".join(f"{result.name}: {result.reason}" for result in chosen)
    if verdict == "inconclusive":
        return f"{candidate} is neither surely as good as {baseline} nor surely worse: {found}.{also}"
    return f"{candidate} and {baseline} cannot be compared: {found}.{also}"


def _notes(rules: Container[str], new: Record, old: Record) -> Iterator[str]:
    """What the gate does not weigh and a reader should know."""
    for key in sorted(new.sampling.keys() | old.sampling.keys()):
        if new.sampling.get(key) != old.sampling.get(key):
            yield f"sampling differs: {key} is {new.sampling.get(key)!r} against {old.sampling.get(key)!r}"
    for side, record in (("candidate", new), ("baseline", old)):
        yield from (f"{value.name} of the {side}: {value.note}" for value in record.values if value.note and value.name in rules)


def _line(result: Result) -> tuple[str, ...]:
    values = (tables.significant(value) if value is not None else "none" for value in (result.candidate, result.baseline))
    margin = f"{100 * result.margin:g} %" if result.relative else f"{result.margin:g}"
    return f"{result.name} ({result.unit})" if result.unit else result.name, result.verdict, *values, _shown(result), margin, result.reason


def _shown(result: Result) -> str:
    """The difference and its bounds, such as `+1.2 (+0.9..+1.5)`."""
    if result.difference is None or result.low is None or result.high is None:
        return "none"
    ends = [_signed(end, result.relative) for end in (result.difference, result.low, result.high)]
    return ends[0] if result.low == result.high else f"{ends[0]} ({ends[1]}..{ends[2]})"


def _signed(number: float, relative: bool) -> str:
    return f"{100 * number:+.1f} %" if relative else f"{number:+.3g}"


def _finite(item: Any) -> Any:
    return None if isinstance(item, float) and not math.isfinite(item) else item
