"""Judge a candidate against a baseline, compare two models, stop a run when its verdict is sure, and measure the noise floor."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sdbench import machine, records, suites
from sdbench.api import measuring
from sdbench.api.inputs import NamedModel, NamedSuite, as_text, find_model, find_suite, load_suite
from sdbench.api.places import NamedPlaces, Places, as_places
from sdbench.disk import locked
from sdbench.errors import UserError, unknown_name
from sdbench.gate import comparison, floors, lookup, recorded, weighing
from sdbench.gate import policy as policies
from sdbench.gate.comparison import Comparison
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Policy
from sdbench.gate.verdicts import Inputs, Report
from sdbench.models.resolve import with_distinct_names
from sdbench.models.spec import ModelSpec
from sdbench.records.names import BASE, RATED_PROBES, is_probe, with_setting

Announce = Callable[[str], None]
GATED = ("quality",)  # the half of a suite that a gate can be asked to weigh alone


def gate(
    candidate: str | Path,
    baseline: str | Path,
    suite: NamedSuite | None = None,
    *,
    policy: str | Path | None = None,
    places: NamedPlaces = "results",
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
    places = as_places(places)
    asked = Request(load_policy(policy), places, device, only, announce)
    chosen = load_suite(suite) if suite else None
    old_source = lookup.find_baseline(as_text(baseline), places.results)
    new_source = lookup.find_candidate(as_text(candidate), places.results, base=base, lora=lora, name=name)

    def run(specs: Sequence[ModelSpec], suite: suites.Suite) -> list[Path]:
        asked.policy.rules(suite.name)  # raises where the policy does not weigh it, before torch is imported
        specs = with_distinct_names(specs)
        from sdbench.run.context import check_models

        check_models(specs, suite)
        asked.check_required(suite)
        if len(specs) == 1 or (suite.probes and only != "quality"):  # where latency is weighed, they take turns
            return asked.run(specs, suite)
        found = {spec: record for spec in specs if (record := asked.usable_record(spec, suite))}
        missing = [spec for spec in specs if spec not in found]
        found |= zip(missing, asked.run(missing, suite), strict=True)
        return [found[spec] for spec in specs]

    new, old = lookup.find_or_run_pair(new_source, old_source, chosen, places.results, run)
    return asked.judge(new, old, str(baseline))


def compare(a: str | Path, b: str | Path, suite: NamedSuite | None = None, *, places: NamedPlaces = "results") -> Comparison:
    """The differences B - A of all metrics that the records of two models have, with two-sided 95 % intervals; without policy or verdict.

    Each is a record folder, or the name of a model, of its row or of a baseline. Nothing is run.

    Args:
        suite: the suite of the records: its name, `<name>@<version>`, digest, the path of its file, or a suite; by default the one that
            both have records of, of several the family's.

    Raises:
        UserError: a name has no record, or the records cannot be compared.
    """
    wanted = suite.id.digest if isinstance(suite, suites.Suite) else str(suite) if suite else None
    results = as_places(places).results
    return comparison.compare(*recorded.find_pair(str(a), str(b), wanted, results), results)


def until_verdict(
    model: NamedModel,
    suite: NamedSuite | None = None,
    *,
    baseline: str | Path,
    policy: str | Path | None = None,
    places: NamedPlaces = "results",
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
    from sdbench.encoders.inference import evaluators_on
    from sdbench.run.context import RunContext, check_models, prepare
    from sdbench.run.until_verdict import run_until_verdict

    suites.check_half(only, GATED)
    spec, places = find_model(model), as_places(places)
    chosen, asked = find_suite(suite, spec), Request(load_policy(policy), places, device, only, announce)
    weighing.leave_out_probes(asked.policy, chosen.name, only, ())  # a policy that weighs nothing here ends the run before it begins
    check_models([spec], chosen)
    old = asked.find_baseline(as_text(baseline), chosen)
    asked.check_required(chosen)
    if isinstance(old, ModelSpec):
        (old,) = asked.run([old], chosen)
    reference = records.read_record(old)
    weighed, left_out = weighing.leave_out_probes(asked.policy, chosen.name, only, (reference,))
    context = RunContext(chosen, machine.choose_device(device), places.results, places.work, only=only)
    prepare(context)
    with evaluators_on(context.device):
        new, report = run_until_verdict(spec, context, old, weighed, floors.between_runs(reference, places.results))
    report = weighing.with_notes(report, left_out, (records.read_record(new), reference))
    return new, asked.with_inputs(report, new, old, str(baseline))


def noise(
    model: NamedModel,
    suite: NamedSuite | None = None,
    *,
    seeds: int,
    places: NamedPlaces = "results",
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

    spec, places = find_model(model), as_places(places)
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


@dataclass(frozen=True)
class Request:
    """What a verdict is asked for by, beside candidate, baseline and suite.

    Attributes:
        places: of the records, and of the noise floor.
        device, only, announce: see `gate`.
    """

    policy: Policy
    places: Places
    device: str | None
    only: str | None
    announce: Announce | None = None

    def check_required(self, suite: suites.Suite) -> None:
        """Check, before hours of drawing, that the metrics which the policy requires can be computed here; fetches their evaluators.

        Raises:
            UserError: the reference or an evaluator of one is missing, the suite cannot measure what the policy weighs, or the policy has
                no rules for the suite.
        """
        from sdbench.run.requirements import fetch_evaluators, missing_reference

        rules = self.policy.rules(suite.name)
        labels = [*suite.probes.select()] if suite.probes else [BASE]
        probes = {with_setting(name, label) for name in RATED_PROBES for label in labels}
        for name in rules:  # what no record can have is incomparable, required or not
            known = probes if is_probe(name) else suite.own_metrics
            if name not in known:
                advice = "Let the suite measure it, or name a policy without it with --policy."
                unknown = unknown_name("metric of this suite", name, known, advice)
                raise UserError(f"policy {self.policy.name} weighs what suite {suite.name!r} does not measure: {unknown}")
        required = [name for name, rule in rules.items() if rule.required]
        missing = missing_reference(suite, required, self.places.work)
        if lacking := [*([missing] if missing else []), *fetch_evaluators(required)]:
            raise UserError(f"policy {self.policy.name} requires what this machine lacks: {'; '.join(lacking)}")

    def find_baseline(self, baseline: str, suite: suites.Suite) -> Path | ModelSpec:
        """The record folder to compare a run under `suite` with, or the model to run where there is no usable one of it.

        Raises:
            UserError: there is no such baseline, or its record is of another suite.
        """
        source = lookup.find_baseline(baseline, self.places.results)
        if isinstance(source, lookup.RecordedName):
            return source.record_under(suite.id, self._machine_class)
        if isinstance(source, Path):
            lookup.read_record_under(source, suite.id)  # raises where it is of another suite
            return source
        return self.usable_record(source, suite) or source

    def usable_record(self, spec: ModelSpec, suite: suites.Suite) -> Path | None:
        """The newest record of a catalogue model on this machine class, if it has all that the policy requires and that is weighed."""
        folder = lookup.newest_record(spec, suite.id, self._machine_class, self.places.results)
        weighed, _ = weighing.leave_out_probes(self.policy, suite.name, self.only, ())
        return folder if folder and not weighed.absent_from(records.read_record(folder)) else None

    @property
    def _machine_class(self) -> str:
        """The class of this machine with the device for models that are run."""
        return machine.this_machine(machine.choose_device(self.device)).machine_class

    def run(self, specs: Sequence[ModelSpec], suite: suites.Suite) -> list[Path]:
        """Measure models under a suite, after a note that says so, and return their record folders."""
        if self.announce:
            self.announce(lookup.describe_run(specs, suite, self.places.results))
        return measuring.run(specs, suite, places=self.places, device=self.device, only=self.only)

    def judge(self, new: Path, old: Path, baseline: str) -> Report:
        """The verdict on two record folders, the candidate's and the baseline's.

        Args:
            baseline: what the user called the baseline.

        Raises:
            UserError: see `Side.read` and `weighing.judge`; or a noise floor cannot be read.
        """
        ours, theirs = Side.read(new), Side.read(old)
        report = weighing.judge(ours, theirs, self.policy, floors.between_runs(theirs.record, self.places.results), self.only)
        return self.with_inputs(report, new, old, baseline)

    def with_inputs(self, report: Report, new: Path, old: Path, baseline: str) -> Report:
        """The report on two record folders, with what was compared and by which policy."""
        if new.resolve().name == old.resolve().name:  # the digest of its content
            report = replace(report, notes=(*report.notes, "candidate and baseline are the same record"))
        suite = records.read_record(old).suite.title_with_digest
        return replace(report, inputs=Inputs(str(new), str(old), baseline, suite, self.policy.name, self.policy.alpha))
