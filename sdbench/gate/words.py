"""What a report says in words: why it has its verdict, and each metric its own, and what a reader should know besides."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from sdbench import tables
from sdbench.gate import pairing
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Rule
from sdbench.gate.verdicts import Result, format_change, format_difference
from sdbench.records import DRAWING_PACKAGES, Record
from sdbench.records.names import is_agreement, is_probe
from sdbench.stats import decisions
from sdbench.stats.decisions import BetweenRuns, Bounds, Verdict

UNDECIDABLE = "The remaining prompts are unlikely to decide it."  # added to the reason of a run that stops for it
_NAMED = 5  # metrics that a line of text names for one reason; JSON has them all


def explain(verdict: Verdict, candidate: str, baseline: str, results: Sequence[Result] = (), differences: Sequence[str] = ()) -> str:
    """The reason for a verdict in a sentence, from the results, or from what makes the records incomparable as a whole.

    Metrics that share a reason, such as a GPU out of memory, are named together. Where it is inconclusive, each has a long reason of its
    own, which only the notes of the report's table tell.
    """
    if differences:
        return f"the records of {candidate} and {baseline} cannot be compared: {'; '.join(differences)}."
    skipped = [result.name for result in results if result.verdict == "skipped"]
    also = f" Not compared: {tables.join_words(skipped)}." if skipped else ""
    chosen = [result for result in results if result.verdict == verdict]
    if not chosen:
        return f"every metric of the policy was skipped, so nothing was compared.{also}"
    if verdict == "pass":
        everywhere = f"all {len(chosen)} metrics" if len(chosen) > 1 else "the one metric"
        return f"{candidate} is as good as {baseline}, within the margin, in {everywhere} compared.{also}"
    if verdict == "regressed":
        losses = tables.join_words([f"{result.name} ({format_difference(result)})" for result in chosen])
        return f"{candidate} is worse than {baseline} by more than the margin in {losses}.{also}"
    if verdict == "inconclusive":
        undecided = f"{tables.join_words([result.name for result in chosen])}{_needs(chosen)}"
        return f"the data show neither that {candidate} is as good as {baseline} nor that it is worse in {undecided}.{also}"
    by_reason = dict[str, list[str]]()
    for result in chosen:
        by_reason.setdefault(result.reason.removesuffix("."), []).append(result.name)
    reasons = "; ".join(f"{name_some(names)}: {reason}" for reason, names in by_reason.items())
    return f"{candidate} and {baseline} cannot be compared: {reasons}.{also}"


def name_some(names: Sequence[str]) -> str:
    """Names in a list, the first five and the number of the others."""
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _needs(undecided: Sequence[Result]) -> str:
    """How many prompts and rounds would probably decide those metrics of which it is known; "" where it is of none."""
    most = dict[str, int]()
    for result in undecided:
        if result.needed_n:
            most[result.units] = max(most.get(result.units, 0), result.needed_n)
    if not most:
        return ""
    who = "it needs" if len(undecided) == 1 else "the most that one of these needs:"
    return f"; {who} about {tables.join_words([f'{_round_up(number)} {units}' for units, number in most.items()])}"


def _round_up(number: int) -> int:
    """A number to two digits, which is all that an estimate from a measured spread is good for."""
    step: int = 10 ** max(0, len(str(number)) - 2)  # mypy: a power of two ints may be a float
    return -(-number // step) * step


def reason(result: Result, bounds: Bounds, *, could_be_chance: bool) -> str:
    """Why a metric with these bounds has its verdict; a loss beyond the margin "could be chance" unless it survives Holm's correction."""
    if result.verdict != "inconclusive":
        return f"loss shown to {'be within' if result.verdict == 'pass' else 'exceed'} the margin"
    units = result.units
    chance = "loss exceeds the margin, but with this many metrics that could be chance (Holm's correction)"
    undecided = chance if could_be_chance else f"{bounds.n} {units} do not decide it"
    if result.needed_n:
        at_once = "" if result.needed_n > bounds.n else ", judged once rather than at several looks,"
        power = f"with a probability of {100 * decisions.POWER:.0f} %, if the true difference is the measured one"
        return f"{undecided}; about {_round_up(result.needed_n)} {units}{at_once} would, {power}"
    if bounds.n == 1:
        return f"a single {units.removesuffix('s')} shows no spread; measure more {units}"
    if bounds.between:
        return f"no number of {units} would decide it, because separate runs vary too much; measure both models in one `sdbench run`"
    return undecided if could_be_chance else f"{undecided}, and it is not known how many would"


def pair_notes(rules: Mapping[str, Rule], new: Record, old: Record, between_runs: Mapping[str, BetweenRuns], *, own: bool) -> Iterator[str]:
    """What a reader should know although the gate does not weigh it.

    Args:
        own: whether the rules are for this very suite, not for the suite it was made from.
    """
    if not own:
        yield (
            f"suite {new.suite.name!r} is judged by the margins of the suite it was derived from, which may lie below the noise under its "
            "own settings"
        )
    if elsewhere := [f"{record.model.name} ({record.model.source})" for record in (new, old) if record.model.is_made_elsewhere]:
        yield f"the images of {tables.join_words(elsewhere)} were made elsewhere; how they were sampled is not known"
    else:
        yield from (f"sampling differs: {difference}" for difference in pairing.unequal(new.sampling, old.sampling))
        if new.n_images and (differences := [*pairing.unequal(_drawn_by(new), _drawn_by(old))]):
            yield (
                "the images were drawn with different software or on different devices, which may explain a difference: "
                f"{', '.join(differences)}"
            )
    yield from _value_notes(rules, new, old)
    unknown = [name for name in rules if (value := new.value(name)) and value.kind == "probe" and value.value and name not in between_runs]
    if unknown and new != old and new.machine.machine_class == old.machine.machine_class and not new.is_same_run(old):
        yield (
            f"{tables.join_words(unknown)}: candidate and baseline were measured in separate runs, and it is not known how much runs of "
            f"one model vary on this machine; measure both in one `sdbench run`{', or find out with `sdbench noise`' if own else ''}"
        )


def _value_notes(rules: Mapping[str, Rule], new: Record, old: Record) -> Iterator[str]:
    """The notes on the values of both sides; what is said of both, or of several metrics, is said once."""
    sides = dict[tuple[str, str], list[str]]()  # by metric and note
    for side, record in (("the candidate", new), ("the baseline", old)):
        for value in record.values:
            if value.note and value.name in rules:
                sides.setdefault((value.name, value.note), []).append(side)
    names = dict[tuple[str, str], list[str]]()  # by side and note
    for (name, note), found in sides.items():
        names.setdefault((found[0] if len(found) == 1 else "both", note), []).append(name)
    for (side, note), found in names.items():
        yield f"{tables.join_words(found)} of {side}: {note}"


def _drawn_by(record: Record) -> dict[str, str | None]:
    return {"device": record.machine.device} | {name: record.environment.packages.get(name) for name in DRAWING_PACKAGES}


def agreement_note(rules: Mapping[str, Rule], new: Side, old: Side, alpha: float) -> Iterator[str]:
    """How much nearer to the teacher the candidate is than the baseline, by metrics of agreement that the policy does not weigh."""
    changes = []
    for name in sorted((new.metric_names() & old.metric_names()) - rules.keys()):
        value = new.record.value(name)
        if value and value.kind == "score" and value.direction != "neither" and is_agreement(name):
            rule = Rule(direction=value.direction, margin=0.0, required=False)
            measured = pairing.measure(name, rule, new, old, alpha / 2)
            if isinstance(measured, Bounds):
                changes.append(f"{name} {format_change(*pairing.as_change(measured, rule, value), relative=False)}")
    if changes:
        yield f"agreement with the teacher (not weighed; two-sided bounds): {', '.join(changes)}"


def power_notes(new: Record, old: Record, compared: Iterable[str]) -> Iterator[str]:
    """A note where probes were measured on GPUs of one machine class with different power limits, which decide the clock under load."""
    limits = [limit.value for side in (new, old) if (limit := side.value("machine.power_limit")) and limit.value]
    if len(set(limits)) > 1 and new.machine.machine_class == old.machine.machine_class and any(map(is_probe, compared)):
        yield (
            f"the power limit of the GPU was {limits[0]:.0f} W for the candidate and {limits[1]:.0f} W for the baseline, which may explain "
            "a difference in latency"
        )
