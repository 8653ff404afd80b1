"""One look at a growing comparison: stop with a verdict, or go on."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from sdbench import compare, gate, sequential
from sdbench.compare import Side
from sdbench.decisions import Bounds
from sdbench.policy import Policy
from sdbench.verdicts import Report

HARDLY = "The prompts that are left would hardly decide it."


@dataclass(frozen=True)
class Rules:
    """What is judged, and which of it needs the whole set of pictures.

    Attributes:
        sets: metrics that are taken only at a look that may be the last.
        between_runs: of probes, how far two runs of one model lie apart on this machine class.
    """

    policy: Policy
    suite: str
    sets: Collection[str]
    between_runs: Mapping[str, float]

    def policy_of(self, *, sets: bool) -> Policy:
        """The policy for a look with the distances of the sets, or without."""
        rules = {name: rule for name, rule in self.policy.rules(self.suite).items() if sets or name not in self.sets}
        return self.policy.model_copy(update={"suites": {self.suite: rules}})


def verdict_at(shares: tuple[float, ...], sides: Callable[[bool], tuple[Side, Side] | None], rules: Rules) -> Report | None:
    """Judge what is in => a report to stop with, or None to go on.

    Args:
        shares: of the prompts, at this look and those before it.
        sides: candidate and baseline so far, with the distances of their sets or without; None where those cannot be taken yet.
        rules: what is judged.
    """

    def judged(pair: tuple[Side, Side], *, sets: bool) -> Report:
        return gate.judge(*pair, rules.policy_of(sets=sets), rules.between_runs, lambda level: sequential.levels(shares, level)[-1])

    last = shares[-1] >= 1
    pair = sides(last and bool(rules.sets))
    assert pair
    report = judged(pair, sets=last)
    if report.verdict == "pass" and rules.sets and not last:
        whole = sides(True)
        report = judged(whole, sets=True) if whole else replace(report, verdict="inconclusive")
        return report if report.verdict == "pass" else None
    if last or report.verdict != "inconclusive":
        return report
    return replace(report, why=f"{report.why} {HARDLY}") if _undecidable(pair, shares[-1], rules) else None


def _undecidable(pair: tuple[Side, Side], share: float, rules: Rules) -> bool:
    new, old = pair
    growing, passable = [], True
    for name, rule in rules.policy_of(sets=False).rules(rules.suite).items():
        bounds, value = compare.measure(name, rule, new, old, rules.policy.alpha, rules.between_runs.get(name, 0.0)), new.record.value(name)
        if isinstance(bounds, Bounds) and value:
            margin = compare.margin(rule, value)
            if value.kind == "score":
                growing.append((bounds, margin))
            else:
                passable &= bounds.low > -margin
    return bool(growing) and sequential.undecidable(growing, share, rules.policy.alpha, passable=passable)
