"""The gate: is the candidate as good as the baseline, within the margins of a policy?

It takes two records, a policy and the noise between runs. Scores and set metrics are compared prompt by prompt; probes round by round where
the models took turns, else by the ratio of their medians. Every bound is one-sided. The candidate passes only if every weighed metric is
shown to have lost less than its margin. Records that cannot be compared are refused, and the report names what differs: a gate that
compared nothing must not look like one that passed.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from sdbench import tables
from sdbench.gate import pairing
from sdbench.gate.pairing import Obstacle, Side
from sdbench.gate.policy import Policy, Rule
from sdbench.gate.verdicts import Report, Result, format_change, format_difference
from sdbench.records import DRAWING_PACKAGES, Record
from sdbench.records.names import is_agreement, is_probe
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
        why = f"the records of {names[0]} and {names[1]} cannot be compared: {'; '.join(differences)}."
        return Report("incomparable", why, *names, (), differences)
    rules = policy.rules(new.record.suite.name)
    levels = {name: nominal if nominal and _is_image_metric(new.record, name) else _spend_all for name in rules}
    measured = {
        name: pairing.measure(name, rule, new, old, levels[name](policy.alpha), between_runs.get(name)) for name, rule in rules.items()
    }
    bounded = {name: bounds for name, bounds in measured.items() if isinstance(bounds, Bounds)}
    margins = {name: pairing.scaled_margin(rules[name], new.record.value(name)) for name in bounded}
    p_values = [decisions.regression_p_value(bounds, margins[name]) for name, bounds in bounded.items()]
    rejected = decisions.holm(p_values, policy.alpha, [levels[name] for name in bounded], untested)
    needed = {name: _needed_n(bounds, margins[name], policy.alpha, len(bounded) + untested) for name, bounds in bounded.items()}
    surely_worse = {name for name, is_rejected in zip(bounded, rejected, strict=True) if is_rejected}
    results = tuple(
        _build_result(
            name, rules[name], outcome, new, old, needed.get(name), surely_worse=name in surely_worse, is_look=nominal is not None
        )
        for name, outcome in measured.items()
    )
    verdict = _worst_verdict(results)
    own = policy.table_name(new.record.suite.name) == new.record.suite.name
    notes = (*pair_notes(rules, new.record, old.record, between_runs, own=own), *_agreement_note(rules, new, old, policy.alpha))
    return Report(verdict, _explain(verdict, results, *names), *names, results, (), notes)


def _spend_all(level: float) -> float:
    """The level of a single look, which may spend all of it."""
    return level


def _is_image_metric(record: Record, name: str) -> bool:
    value = record.value(name)
    return value is not None and value.is_image_metric


def _needed_n(bounds: Bounds, margin: float, alpha: float, tested: int) -> int | None:
    """See `decisions.needed_n`; a loss beyond the margin must also survive Holm's correction, whose first step spends alpha / tested."""
    return decisions.needed_n(bounds, margin, 1 - (alpha / tested if bounds.difference < -margin else alpha))


def _build_result(
    name: str,
    rule: Rule,
    measured: Bounds | Obstacle,
    new: Side,
    old: Side,
    needed: int | None,
    *,
    surely_worse: bool,
    is_look: bool,
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
    return _decide(result, measured, pairing.scaled_margin(rule, about), needed, surely_worse=surely_worse, is_look=is_look)


def _decide(result: Result, bounds: Bounds, margin: float, needed: int | None, *, surely_worse: bool, is_look: bool) -> Result:
    """Add the verdict on a metric's bounds; "regressed" must also survive Holm's correction."""
    verdict, unit = decisions.decide(bounds, margin), "rounds" if result.relative else "prompts"
    if verdict == "pass":
        return replace(result, verdict=verdict, reason="loss shown to be within the margin")
    if verdict == "regressed" and surely_worse:
        return replace(result, verdict=verdict, reason="loss shown to exceed the margin")
    chance = "loss exceeds the margin, but with this many metrics that could be chance (Holm's correction)"
    reason = chance if verdict == "regressed" else f"{bounds.n} {unit} do not decide it"
    if needed and (needed > bounds.n or is_look):  # a single judgement: fewer for equal shares, whose bounds allow for losses not drawn
        at_once = "" if needed > bounds.n else ", judged once rather than at several looks,"
        power = f"with a probability of {100 * decisions.POWER:.0f} %, if the true difference is the measured one"
        reason = f"{reason}; about {_round_up(needed)} {unit}{at_once} would, {power}"
        return replace(result, verdict="inconclusive", reason=reason, needed_n=needed)
    if bounds.n == 1:
        reason = f"a single {unit.removesuffix('s')} shows no spread; measure more {unit}"
    elif bounds.between:
        reason = f"no number of {unit} would decide it, because separate runs vary too much; measure both models in one `sdbench run`"
    elif verdict != "regressed":
        reason = f"{reason}, and it is not known how many would"
    return replace(result, verdict="inconclusive", reason=reason)


def _round_up(number: int) -> int:
    """A number to two digits, which is all that an estimate from a measured spread is good for."""
    step = 10 ** max(0, len(str(number)) - 2)
    return -(-number // step) * step  # type: ignore[no-any-return]  # mypy: a power of two ints may be a float


def _worst_verdict(results: tuple[Result, ...]) -> Verdict:
    """The worst verdict of all metrics; incomparable where all were skipped, since nothing was measured then."""
    verdicts = {result.verdict for result in results}
    order: tuple[Verdict, ...] = ("incomparable", "regressed", "inconclusive", "pass")
    return next((verdict for verdict in order if verdict in verdicts), "incomparable")


def _explain(verdict: Verdict, results: tuple[Result, ...], candidate: str, baseline: str) -> str:
    """The verdict in a sentence."""
    chosen = [result for result in results if result.verdict == verdict]
    skipped = [result.name for result in results if result.verdict == "skipped"]
    also = f" Not compared: {tables.join_words(skipped)}." if skipped else ""
    if not chosen:
        return f"every metric of the policy was skipped, so nothing was compared.{also}"
    if verdict == "pass":
        everywhere = f"all {len(chosen)} metrics" if len(chosen) > 1 else "the one metric"
        return f"{candidate} is as good as {baseline}, within the margin, in {everywhere} compared.{also}"
    if verdict == "regressed":
        losses = tables.join_words([f"{result.name} ({format_difference(result)})" for result in chosen])
        return f"{candidate} is worse than {baseline} by more than the margin in {losses}.{also}"
    reasons = "; ".join(f"{result.name}: {result.reason}" for result in chosen)
    if verdict == "inconclusive":
        return f"the data show neither that {candidate} is as good as {baseline} nor that it is worse: {reasons}.{also}"
    return f"{candidate} and {baseline} cannot be compared: {reasons}.{also}"


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
    for side, record in (("candidate", new), ("baseline", old)):
        yield from (f"{value.name} of the {side}: {value.note}" for value in record.values if value.note and value.name in rules)
    unknown = [name for name in rules if (value := new.value(name)) and value.kind == "probe" and value.value and name not in between_runs]
    if unknown and new != old and new.machine.machine_class == old.machine.machine_class and not new.is_same_run(old):
        yield (
            f"{tables.join_words(unknown)}: candidate and baseline were measured in separate runs, and it is not known how much runs of "
            f"one model vary on this machine; measure both in one `sdbench run`{', or find out with `sdbench noise`' if own else ''}"
        )


def _drawn_by(record: Record) -> dict[str, str | None]:
    return {"device": record.machine.device} | {name: record.environment.packages.get(name) for name in DRAWING_PACKAGES}


def _agreement_note(rules: Mapping[str, Rule], new: Side, old: Side, alpha: float) -> Iterator[str]:
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
