"""One look at a growing comparison: stop with a verdict, or go on.

A pass waits for half of the prompts. A fault that hits only a small share of them may not be among the first at all, and images that
are all the same pass at any level. The whole set may miss it too: no bound holds for faults of which fewer than 3 are expected
(in 8 % of draws, 256 prompts hold none of the faults that hit 1 %).
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

from sdbench.gate import judging, pairing, words
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Policy, Rule
from sdbench.gate.verdicts import Report
from sdbench.stats import decisions, sequential
from sdbench.stats.decisions import BetweenRuns, Bounds

EARLIEST_PASS = 0.5  # share of the prompts


@dataclass(frozen=True)
class LookRules:
    """What is judged, and which metrics need the whole set of images.

    Attributes:
        sets: set metrics, measured only at a look that may be the last: where all others pass, or nothing is left to decide.
        between_runs: how far two runs of one model lie apart on this machine class, by probe.
    """

    policy: Policy
    suite: str
    sets: Collection[str]
    between_runs: Mapping[str, BetweenRuns]

    @property
    def early_rules(self) -> dict[str, Rule]:
        """The rules that any look can judge."""
        return {name: rule for name, rule in self.policy.rules(self.suite).items() if name not in self.sets}

    def policy_for_look(self, *, sets: bool) -> Policy:
        """The policy for a look with set metrics, or without."""
        rules = self.policy.rules(self.suite) if sets else self.early_rules
        return self.policy.model_copy(update={"suites": {self.policy.table_name(self.suite): rules}})


def verdict_at(shares: tuple[float, ...], sides: Callable[[bool], tuple[Side, Side] | None], rules: LookRules) -> Report | None:
    """Judge the prompts that are in, and return the final report, or None to go on.

    Args:
        shares: share of the prompts at each look so far, this one last.
        sides: takes whether to measure set metrics; returns candidate and baseline so far, or None where they cannot be measured yet.

    Raises:
        UserError: the policy has no rules for the suite.
    """

    def judge(pair: tuple[Side, Side], *, sets: bool) -> Report:
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
    report = judge(pair, sets=last)
    if last or report.verdict in ("regressed", "incomparable"):
        return report
    if report.verdict == "pass":
        if shares[-1] < EARLIEST_PASS:
            return None
        if rules.sets:
            pair_with_sets = sides(True)
            report = judge(pair_with_sets, sets=True) if pair_with_sets else replace(report, verdict="inconclusive")
        return report if report.verdict == "pass" else None
    hopeless = _is_undecidable(pair, shares[-1], rules, sets=False)
    if hopeless and rules.sets:  # set metrics may still say "regressed"
        pair_with_sets = sides(True)
        hopeless = pair_with_sets is not None and _is_undecidable(pair_with_sets, shares[-1], rules, sets=True)
    return replace(report, why=f"{report.why} {words.UNDECIDABLE}") if hopeless else None


def _is_undecidable(pair: tuple[Side, Side], share: float, rules: LookRules, *, sets: bool) -> bool:
    new, old = pair
    growing, passable = [], True  # more prompts can decide image metrics only
    for name, rule in rules.policy_for_look(sets=sets).rules(rules.suite).items():
        bounds, value = pairing.measure(name, rule, new, old, rules.policy.alpha, rules.between_runs.get(name)), new.record.value(name)
        if isinstance(bounds, Bounds) and value:
            margin = pairing.scaled_margin(rule, value)
            if value.is_image_metric:
                growing.append((bounds, margin))
            else:
                passable &= decisions.decide(bounds, margin) == "pass"
    return bool(growing) and sequential.is_undecidable(growing, share, rules.policy.alpha, passable=passable)
