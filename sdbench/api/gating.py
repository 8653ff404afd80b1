"""Judge a candidate against a baseline, compare two models, stop a run when its verdict is sure, and measure the noise floor."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from sdbench import machine, records, suites
from sdbench.api import measuring
from sdbench.api.inputs import NamedModel, NamedSuite, as_text, find_model, find_suite, load_suite
from sdbench.api.places import Places
from sdbench.disk import locked
from sdbench.errors import UserError
from sdbench.gate import comparison, floors, judging, lookup, recorded, weighing
from sdbench.gate import policy as policies
from sdbench.gate.comparison import Comparison
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Policy
from sdbench.gate.verdicts import Inputs, Report
from sdbench.models.spec import ModelSpec
from sdbench.records import SuiteId

Announce = Callable[[str], None]
GATED = ("quality",)  # the half of a suite that a gate can be asked to weigh alone


def gate(
    candidate: str | Path,
    baseline: str | Path,
    suite: NamedSuite | None = None,
    *,
    policy: str | Path | None = None,
    places: Places = Places(),
    base: str | None = None,
    lora: str | None = None,
    name: str | None = None,
    device: str | None = None,
    only: str | None = None,
    announce: Announce | None = None,
) -> Report:
    """Gate a candidate against a baseline. Each is a record folder, a name or a checkpoint.

    A checkpoint, or a model without a record, is run; where latency is weighed, so is a baseline named as a model, in turns with it.

    A name is looked up in the catalogue, then among records. The baseline may also be a name in `baselines.toml`, which is searched first.

    Args:
        suite: the suite to run where a record is missing, a name, the path of a file, or a suite; by default the baseline's.
        policy: policy file; by default `gate.toml` beside the suites, which knows the shipped suites.
        base, lora, name: see `sdbench run`; for a candidate that is run.
        device: for models that are run.
        only: "quality" to weigh the image metrics alone, and to measure only these for models that are run.
        announce: called with a note before a model is run, which takes minutes or hours.

    Raises:
        UserError: bad input, as from the command line.
    """
    suites.check_half(only, GATED)
    rules = load_policy(policy)
    chosen = load_suite(suite) if suite else None
    old_source = lookup.find_baseline(as_text(baseline), places.results)
    new_source = lookup.find_candidate(as_text(candidate), places.results, base=base, lora=lora, name=name)
    measure = partial(_run_announced, places=places, device=device, only=only, announce=announce)

    def run(specs: Sequence[ModelSpec], suite: suites.Suite) -> list[Path]:
        rules.rules(suite.name)  # raises where the policy does not weigh it, before torch is imported
        from sdbench.run.context import check_models

        check_models(specs, suite)
        check_required(suite, rules, places)
        if len(specs) == 1 or (suite.probes and only != "quality"):  # where latency is weighed, they take turns
            return measure(specs, suite)
        found = {spec: record for spec in specs if (record := _usable_record(spec, suite, rules, places, device, only))}
        missing = [spec for spec in specs if spec not in found]
        found |= zip(missing, measure(missing, suite), strict=True)
        return [found[spec] for spec in specs]

    new, old = lookup.find_or_run_pair(new_source, old_source, chosen, places.results, run)
    return judge_records(new, old, rules, places, str(baseline), only=only)


def compare(a: str | Path, b: str | Path, suite: NamedSuite | None = None, *, places: Places = Places()) -> Comparison:
    """The differences B - A of all metrics that the records of two models have, with two-sided 95 % intervals; without policy or verdict.

    Each is a record folder, or the name of a model, of its row or of a baseline. Nothing is run.

    Args:
        suite: the suite of the records: its name, `<name>@<version>`, digest, the path of its file, or a suite; by default the one that
            both have records of, of several the family's.

    Raises:
        UserError: a name has no record, or the records cannot be compared.
    """
    wanted = suite.id.digest if isinstance(suite, suites.Suite) else str(suite) if suite else None
    return comparison.compare(*recorded.find_pair(str(a), str(b), wanted, places.results), places.results)


def until_verdict(
    model: NamedModel,
    suite: NamedSuite | None = None,
    *,
    baseline: str | Path,
    policy: str | Path | None = None,
    places: Places = Places(),
    device: str | None = None,
    only: str | None = None,
    announce: Announce | None = None,
) -> tuple[Path, Report]:
    """Measure a model until it is sure whether it is as good as the baseline, and return its record folder and the verdict.

    Args:
        model: what `sdbench run --model` takes, or a `ModelSpec`.
        suite: a name, the path of a suite file, or a suite; for None that of the model's family.
        baseline, policy, device, only, announce: see `gate`.

    Raises:
        UserError: bad input, as from the command line.
    """
    from sdbench.encoders.memory import evaluators_on
    from sdbench.run.context import RunContext, check_models, prepare
    from sdbench.run.until_verdict import run_until_verdict

    suites.check_half(only, GATED)
    spec = find_model(model)
    chosen, rules = find_suite(suite, spec), load_policy(policy)
    weighing.leave_out_probes(rules, chosen.name, only, ())  # a policy that weighs nothing here ends the run before it begins
    check_models([spec], chosen)
    old = find_baseline(as_text(baseline), chosen, rules, places, device, only)
    check_required(chosen, rules, places)
    if isinstance(old, ModelSpec):
        (old,) = _run_announced([old], chosen, places=places, device=device, only=only, announce=announce)
    reference = records.read_record(old)
    weighed, left_out = weighing.leave_out_probes(rules, chosen.name, only, (reference,))
    context = RunContext(chosen, machine.choose_device(device), places.results, places.work, only=only)
    prepare(context)
    with evaluators_on(context.device):
        new, report = run_until_verdict(spec, context, old, weighed, floors.between_runs(reference, places.results))
    report = weighing.with_left_out(report, left_out, (records.read_record(new), reference))
    return new, _with_inputs(report, new, old, reference.suite, rules, str(baseline))


def noise(
    model: NamedModel,
    suite: NamedSuite | None = None,
    *,
    seeds: int,
    places: Places = Places(),
    device: str | None = None,
    only: str | None = None,
) -> tuple[Path, floors.Floor]:
    """Run a model under several noise seeds, write how far apart its runs lie, and return the file and the floor.

    The records and images of these runs stay in the folder of runs: a leaderboard has no use for them.

    Args:
        model, suite: see `until_verdict`.
        only: "quality" or "probes" for one half of the suite.

    Raises:
        UserError: fewer than 2 seeds, a suite whose noise is a file and so the same under every seed, or other bad input.
    """
    suites.check_half(only)
    if seeds < 2:
        raise UserError(f"a noise floor needs at least 2 seeds, found {seeds}")
    from sdbench.run import runner
    from sdbench.run.context import RunContext, prepare

    spec = find_model(model)
    chosen = find_suite(suite, spec)
    if chosen.noise.file:
        raise UserError(
            f"suite {chosen.name!r} takes its latent from {chosen.noise.file}, whatever the seed: its runs would not differ, and the floor "
            "would be 0. Use a suite whose noise is drawn from a seed"
        )
    numbers = range(chosen.noise.seed, chosen.noise.seed + seeds)
    work, sides = places.work / "noise" / spec.name, []
    device = machine.choose_device(device)
    with locked(work / ".lock"):  # another command that measures this floor would end with removing these rounds
        for number in numbers:
            # Without a teacher, whose images have other noise.
            seeded = chosen.model_copy(update={"noise": chosen.noise.model_copy(update={"seed": number}), "teacher": None})
            folder = work / str(number)
            # Finished rounds are found by their content, which is the same for all seeds: each needs its own.
            context = RunContext(seeded, device, folder / "records", places.work, only=only, rounds=folder / "probes")
            prepare(context)
            (record,) = runner.run([spec], context)
            sides.append(Side.read(record))
        floor = floors.estimate(sides, numbers, chosen.id)
        path = floors.write(floor, places.results)
        for number in numbers:  # the next floor is measured anew; a killed run has continued from these until now
            shutil.rmtree(work / str(number) / "probes", ignore_errors=True)
    return path, floor


def load_policy(path: str | Path | None) -> Policy:
    """The policy in a file, by default `gate.toml` beside the suites.

    Raises:
        UserError: see `policy.load`.
    """
    return policies.load(Path(path or suites.find(suites.POLICY)))


def check_required(suite: suites.Suite, rules: Policy, places: Places) -> None:
    """Check, before hours of drawing, that the metrics which a policy requires can be computed here; fetches their evaluators.

    Raises:
        UserError: the reference or an evaluator of one is missing, or the policy has no rules for the suite.
    """
    from sdbench.run.requirements import fetch_evaluators, missing_reference

    required = [name for name, rule in rules.rules(suite.name).items() if rule.required]
    missing = missing_reference(suite, required, places.work)
    if lacking := [*([missing] if missing else []), *fetch_evaluators(required)]:
        raise UserError(f"policy {rules.name} requires what this machine lacks: {'; '.join(lacking)}")


def find_baseline(
    baseline: str, suite: suites.Suite, rules: Policy, places: Places, device: str | None, only: str | None
) -> Path | ModelSpec:
    """The record folder to compare a run under `suite` with, or the model to run where there is no usable one of it.

    Raises:
        UserError: there is no such baseline, or its record is of another suite.
    """
    source = lookup.find_baseline(baseline, places.results)
    if isinstance(source, lookup.RecordedName):
        return source.record_under(suite.id, _machine_class(device))
    if isinstance(source, Path):
        lookup.read_record_under(source, suite.id)  # raises where it is of another suite
        return source
    return _usable_record(source, suite, rules, places, device, only) or source


def _usable_record(
    spec: ModelSpec, suite: suites.Suite, rules: Policy, places: Places, device: str | None, only: str | None
) -> Path | None:
    """The newest record of a catalogue model on this machine class, if it has all that the policy requires and that is weighed."""
    folder = lookup.newest_record(spec, suite.id, _machine_class(device), places.results)
    weighed, _ = weighing.leave_out_probes(rules, suite.name, only, ())
    return folder if folder and not weighed.absent_from(records.read_record(folder)) else None


def _machine_class(device: str | None) -> str:
    """The class of this machine with the device for models that are run."""
    return machine.this_machine(machine.choose_device(device)).machine_class


def _run_announced(
    specs: Sequence[ModelSpec], suite: suites.Suite, *, places: Places, device: str | None, only: str | None, announce: Announce | None
) -> list[Path]:
    """Measure models under a suite, after a note that says so, and return their record folders."""
    if announce:
        announce(lookup.describe_run(specs, suite, places.results))
    return measuring.run(specs, suite, places=places, device=device, only=only)


def judge_records(new: Path, old: Path, rules: Policy, places: Places, baseline: str, *, only: str | None) -> Report:
    """The verdict on two record folders, the candidate's and the baseline's.

    Latency, memory and size are not weighed if `only` is "quality", nor where one side consists of images alone and so lacks them.

    Args:
        places: where the noise floor lies.
        baseline: what the user called the baseline.
        only: "quality" to weigh the image metrics alone.

    Raises:
        UserError: see `Side.read` and `weighing.leave_out_probes`; or a noise floor cannot be read.
    """
    ours, theirs = Side.read(new), Side.read(old)
    both = ours.record, theirs.record
    weighed, left_out = weighing.leave_out_probes(rules, ours.record.suite.name, only, both)
    report = judging.judge(ours, theirs, weighed, floors.between_runs(theirs.record, places.results))
    report = weighing.with_left_out(report, left_out, both)
    return _with_inputs(report, new, old, theirs.record.suite, rules, baseline)


def _with_inputs(report: Report, new: Path, old: Path, suite: SuiteId, rules: Policy, baseline: str) -> Report:
    """The report, with what was compared and by which policy."""
    if new.resolve().name == old.resolve().name:  # the digest of its content
        report = replace(report, notes=(*report.notes, "candidate and baseline are the same record"))
    return replace(report, inputs=Inputs(str(new), str(old), baseline, suite.title_with_digest, rules.name, rules.alpha))
