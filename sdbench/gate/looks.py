"""One look at a growing comparison: stop with a verdict, or go on.

A pass waits for half of the prompts. A fault that hits a small share of them and leaves the rest as they were may not be
among the first at all, and pictures that are all the same pass at any level. The whole set may miss it too: faults of which
fewer than 3 are expected are outside of what any bound guarantees (256 prompts hold none of 1 % in 8 % of draws).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from sdbench.gate import compare, judging
from sdbench.gate.compare import Side
from sdbench.gate.policy import Policy, Rule
from sdbench.gate.verdicts import Report
from sdbench.stats import sequential
from sdbench.stats.decisions import BetweenRuns, Bounds

UNDECIDABLE = "The prompts that are left would hardly decide it."
EARLIEST_PASS = 0.5  # of the prompts


@dataclass(frozen=True)
class LookRules:
    """What is judged, and which of it needs the whole set of pictures.

    Attributes:
        sets: metrics that are taken only at a look that may be the last: where the others pass, or nothing is left to hope for.
        between_runs: of probes, how far two runs of one model lie apart on this machine class.
    """

    policy: Policy
    suite: str
    sets: Collection[str]
    between_runs: Mapping[str, BetweenRuns]

    @property
    def early_rules(self) -> dict[str, Rule]:
        """What any look can judge."""
        return {name: rule for name, rule in self.policy.rules(self.suite).items() if name not in self.sets}

    def policy_for_look(self, *, sets: bool) -> Policy:
        """The policy for a look with the distances of the sets, or without."""
        return self.policy.model_copy(update={"suites": {self.suite: self.policy.rules(self.suite) if sets else self.early_rules}})


def verdict_at(shares: tuple[float, ...], sides: Callable[[bool], tuple[Side, Side] | None], rules: LookRules) -> Report | None:
    """Judge what is in => a report to stop with, or None to go on.

    Args:
        shares: of the prompts, at this look and those before it.
        sides: candidate and baseline so far, with the distances of their sets or without; None where those cannot be taken yet.
        rules: what is judged.
    """

    def judged(pair: tuple[Side, Side], *, sets: bool) -> Report:
        untested = 0 if sets else len(rules.sets)
        return judging.judge(
            *pair,
            rules.policy_for_look(sets=sets),
            rules.between_runs,
            lambda level: sequential.nominal_levels(shares, level)[-1],
            untested=untested,
        )

    last = shares[-1] >= 1
    if not last and not rules.early_rules:
        return None
    pair = sides(last and bool(rules.sets))
    assert pair
    report = judged(pair, sets=last)
    if last or report.verdict in ("regressed", "incomparable"):
        return report
    if report.verdict == "pass":
        if shares[-1] < EARLIEST_PASS:
            return None
        if rules.sets:
            whole = sides(True)
            report = judged(whole, sets=True) if whole else replace(report, verdict="inconclusive")
        return report if report.verdict == "pass" else None
    given_up = _is_undecidable(pair, shares[-1], rules, sets=False)
    if given_up and rules.sets:  # whose distances may still say "regressed"
        whole = sides(True)
        given_up = whole is not None and _is_undecidable(whole, shares[-1], rules, sets=True)
    return replace(report, why=f"{report.why} {UNDECIDABLE}") if given_up else None


def _is_undecidable(pair: tuple[Side, Side], share: float, rules: LookRules, *, sets: bool) -> bool:
    new, old = pair
    growing, passable = [], True
    for name, rule in rules.policy_for_look(sets=sets).rules(rules.suite).items():
        bounds, value = compare.measure(name, rule, new, old, rules.policy.alpha, rules.between_runs.get(name)), new.record.value(name)
        if isinstance(bounds, Bounds) and value:
            margin = compare.scaled_margin(rule, value)
            if value.is_picture_metric:
                growing.append((bounds, margin))
            else:
                passable &= bounds.low > -margin
    return bool(growing) and sequential.is_undecidable(growing, share, rules.policy.alpha, passable=passable)
