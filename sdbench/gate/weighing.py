"""What of a policy is weighed between two records: latency, memory and size only where both have a model behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from sdbench.errors import UserError
from sdbench.gate import judging, words
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Policy
from sdbench.gate.verdicts import Report
from sdbench.records import Record
from sdbench.records.names import is_probe
from sdbench.stats.decisions import BetweenRuns


def judge(new: Side, old: Side, policy: Policy, between_runs: Mapping[str, BetweenRuns], only: str | None = None) -> Report:
    """Compare the record of a candidate with a baseline's, by what of the policy is weighed between them; see `judging.judge`.

    Args:
        only: "quality" to weigh the image metrics alone.

    Raises:
        UserError: the policy has no rules for the suite, or nothing would be left to weigh.
    """
    sides = new.record, old.record
    weighed, left_out = leave_out_probes(policy, new.record.suite.name, only, sides)
    return with_notes(judging.judge(new, old, weighed, between_runs), left_out, sides)


def leave_out_probes(rules: Policy, suite: str, only: str | None, sides: Sequence[Record]) -> tuple[Policy, list[str]]:
    """The policy for a suite without the latency, memory and size metrics that are not weighed between these records, and their names.

    Raises:
        UserError: nothing would be left to weigh.
    """
    named = rules.rules(suite)
    without_model = [side for side in sides if side.model.is_images_only]
    left_out = [name for name in named if is_probe(name) and (only == "quality" or any(side.value(name) is None for side in without_model))]
    if not left_out:
        return rules, []
    remaining = {name: rule for name, rule in named.items() if name not in left_out}
    if not remaining:
        raise UserError(
            f"policy {rules.name} weighs no image metric of suite {suite!r}, only {', '.join(left_out)}; without these nothing is compared"
        )
    return rules.model_copy(update={"suites": {rules.table_name(suite): remaining}}), left_out


def with_notes(report: Report, left_out: Sequence[str], sides: tuple[Record, Record]) -> Report:
    """The report, with notes that say why metrics of the policy were not weighed, and on the power of the GPUs."""
    measured = [name for name in left_out if all(side.value(name) for side in sides)]
    told = {
        "not measured, so not weighed": [name for name in left_out if name not in measured],
        "left out, as only image metrics are weighed": measured,
    }
    not_weighed = (f"{what}: {', '.join(names)}" for what, names in told.items() if names)
    power = words.power_notes(*sides, (result.name for result in report.results))
    return replace(report, notes=(*report.notes, *not_weighed, *power))
