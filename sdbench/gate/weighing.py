"""What of a policy is weighed between two records: latency, memory and size only where both have a model behind them."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from sdbench import tables
from sdbench.errors import UserError
from sdbench.gate import judging
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Policy
from sdbench.gate.verdicts import Report
from sdbench.records import Record
from sdbench.records.names import is_probe
from sdbench.stats.decisions import BetweenRuns

_ON_VALUE = re.compile(r"(\S+) of the (candidate|baseline): (.+)", re.DOTALL)  # a note on one metric of one side, as `judging` words it


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
    power = power_notes(*sides, (result.name for result in report.results))
    return replace(report, notes=(*join_notes(report.notes), *not_weighed, *power))


def join_notes(notes: Iterable[str]) -> Iterator[str]:
    """The notes of `judging.pair_notes`, those on values told once for both sides and for all metrics that have the same."""
    sides = dict[tuple[str, str], list[str]]()  # by metric and what is said of it
    for note in notes:
        match = _ON_VALUE.fullmatch(note)
        name, side, text = match.groups() if match else ("", "", note)
        sides.setdefault((name, text), []).append(side and f"the {side}")
    names = dict[tuple[str, str], list[str]]()  # by side and what is said of it
    for (name, text), found in sides.items():
        names.setdefault(("both" if len(found) > 1 else found[0], text), []).append(name)
    for (side, text), found in names.items():
        yield f"{tables.join_words(found)} of {side}: {text}" if side else text


def power_notes(new: Record, old: Record, compared: Iterable[str]) -> Iterator[str]:
    """A note where probes were measured on GPUs of one machine class with different power limits, which decide the clock under load."""
    limits = [limit.value for side in (new, old) if (limit := side.value("machine.power_limit")) and limit.value]
    if len(set(limits)) > 1 and new.machine.machine_class == old.machine.machine_class and any(map(is_probe, compared)):
        yield (
            f"the power limit of the GPU was {limits[0]:.0f} W for the candidate and {limits[1]:.0f} W for the baseline, which may explain "
            "a difference in latency"
        )
