"""The gate: is the candidate as good as the baseline, within the margins of a policy?

It takes two records, a policy and the noise between runs. Scores and set metrics are compared prompt by prompt; probes round by round where
the models took turns, else by the ratio of their medians. Every bound is one-sided. The candidate passes only if every weighed metric is
shown to have lost less than its margin. Records that cannot be compared are refused, and the report names what differs: a gate that
compared nothing must not look like one that passed.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from sdbench.gate import pairing, words
from sdbench.gate.pairing import Obstacle, Side
from sdbench.gate.policy import Policy, Rule
from sdbench.gate.verdicts import Report, Result
from sdbench.records import Record
from sdbench.records.names import is_probe
from sdbench.stats import decisions
from sdbench.stats.decisions import BetweenRuns, Bounds, Verdict

Level = Callable[[float], float]


def judge(
    new: Side, old: Side, policy: Policy, between_runs: Mapping[str, BetweenRuns], nominal: Level | None = None, *, untested: int = 0
) -> Report:
    """Compare the record of a candidate with a baseline's.

    Args:
        between_runs: how far two runs of one model lie apart on this machine class, by probe.
        nominal: for one of several looks, a function from the level that all looks may spend to the level at which this one tests scores.
        untested: number of metrics that only a later look tests; "regressed" must survive Holm's correction for these too.

    Raises:
        UserError: the policy has no rules for the suite.
    """
    names = new.record.model.title, old.record.model.title
    if differences := tuple(pairing.differences(new, old)):
        return Report("incomparable", words.explain("incomparable", *names, (), differences), *names, (), differences)
    rules = policy.rules(new.record.suite.name)
    levels = {name: nominal if nominal and _is_image_metric(new.record, name) else _spend_all for name in rules}
    measured = {
        name: pairing.measure(name, rule, new, old, levels[name](policy.alpha), between_runs.get(name)) for name, rule in rules.items()
    }
    bounded = {name: bounds for name, bounds in measured.items() if isinstance(bounds, Bounds)}
    margins = {name: pairing.scaled_margin(rules[name], new.record.value(name)) for name in bounded}
    p_values = [decisions.regression_p_value(bounds, margins[name]) for name, bounds in bounded.items()]
    rejected = decisions.holm(p_values, policy.alpha, [levels[name] for name in bounded], untested)
    tested, is_look = len(bounded) + untested, nominal is not None
    needed = {name: _needed_n(bounds, margins[name], policy.alpha, tested, is_look=is_look) for name, bounds in bounded.items()}
    surely_worse = {name for name, is_rejected in zip(bounded, rejected, strict=True) if is_rejected}
    results = tuple(
        _build_result(name, rules[name], outcome, new, old, needed.get(name), surely_worse=name in surely_worse)
        for name, outcome in measured.items()
    )
    own = policy.table_name(new.record.suite.name) == new.record.suite.name
    notes = (*words.pair_notes(rules, new.record, old.record, between_runs, own=own), *words.agreement_note(rules, new, old, policy.alpha))
    verdict = _worst_verdict(results)
    return Report(verdict, words.explain(verdict, *names, results), *names, results, (), notes)


def _spend_all(level: float) -> float:
    """The level of a single look, which may spend all of it."""
    return level


def _is_image_metric(record: Record, name: str) -> bool:
    value = record.value(name)
    return value is not None and value.is_image_metric


def _needed_n(bounds: Bounds, margin: float, alpha: float, tested: int, *, is_look: bool) -> int | None:
    """See `decisions.needed_n`; a loss beyond the margin must also survive Holm's correction, whose first step spends alpha / tested."""
    needed = decisions.needed_n(bounds, margin, 1 - (alpha / tested if bounds.difference < -margin else alpha))
    # Fewer than there are come from a look's stricter level, or, wrongly, from equal shares, whose bounds allow for losses not drawn.
    return needed if needed and (needed > bounds.n or is_look) else None


def _build_result(
    name: str, rule: Rule, measured: Bounds | Obstacle, new: Side, old: Side, needed: int | None, *, surely_worse: bool
) -> Result:
    """A metric's result, with its numbers turned back from "plus = better" to candidate minus baseline."""
    new_value, old_value = new.record.value(name), old.record.value(name)
    about = new_value or old_value
    result = Result(
        name,
        "incomparable",
        "",
        rule.direction,
        rule.margin,
        rule.required,
        unit=about.unit if about else "",
        relative=pairing.is_relative(about) if about else is_probe(name),
        candidate=new_value.value if new_value else None,
        baseline=old_value.value if old_value else None,
    )
    if isinstance(measured, Obstacle):
        return replace(result, verdict=measured.verdict, reason=measured.reason)
    assert about
    difference, low, high = pairing.as_change(measured, rule, about)
    result = replace(result, difference=difference, low=low, high=high)
    return _decide(result, measured, pairing.scaled_margin(rule, about), needed, surely_worse=surely_worse)


def _decide(result: Result, bounds: Bounds, margin: float, needed: int | None, *, surely_worse: bool) -> Result:
    """Add the verdict on a metric's bounds; "regressed" must also survive Holm's correction."""
    found = decisions.decide(bounds, margin)
    verdict = "inconclusive" if found == "regressed" and not surely_worse else found
    result = replace(result, verdict=verdict, needed_n=needed if verdict == "inconclusive" else None)
    return replace(result, reason=words.reason(result, bounds, could_be_chance=verdict != found))


def _worst_verdict(results: tuple[Result, ...]) -> Verdict:
    """The worst verdict of all metrics; incomparable where all were skipped, since nothing was measured then."""
    verdicts = {result.verdict for result in results}
    order: tuple[Verdict, ...] = ("incomparable", "regressed", "inconclusive", "pass")
    return next((verdict for verdict in order if verdict in verdicts), "incomparable")
