"""Find the two records that the gate compares: named by the user, measured earlier, or measured now."""

from collections.abc import Callable, Sequence
from pathlib import Path

from sdbench import records, suites
from sdbench.errors import IncompleteError, UserError
from sdbench.gate import baselines
from sdbench.gate.policy import Policy
from sdbench.models.catalogue import CATALOGUE
from sdbench.models.spec import ModelSpec, resolve
from sdbench.records import Record, SuiteId
from sdbench.suites import Suite

FAMILY_SUITE = {"scenes": "quality", "sdxl": "standard"}
Run = Callable[[Sequence[ModelSpec], Suite], list[Path]]
RecordOrModel = Path | ModelSpec  # a record folder, or a model


def find_baseline(what: str, results: Path) -> RecordOrModel:
    """Resolve a baseline: a name in `baselines.toml`, which comes before all else, a record folder, or what `sdbench run --model` takes.

    Raises:
        UserError: it is none of these.
    """
    if folder := baselines.find(what, results):
        return folder
    try:
        return find_candidate(what)
    except IncompleteError as error:
        raise UserError(
            f"{error} For the baseline there is no such option, since --base completes the candidate: measure it first, "
            f"`sdbench run --model {what} --base ...`, and name its record."
        ) from error
    except UserError as error:
        if Path(what).exists():
            raise
        raise UserError(f"{error} Nor is it the name of a baseline: {baselines.describe(results)}.") from error


def find_candidate(what: str, *, base: str | None = None, lora: str | None = None, name: str | None = None) -> RecordOrModel:
    """Resolve a candidate: a record folder, or what `sdbench run --model` takes.

    Args:
        what: what the user named.
        base, lora, name: for a model, see `resolve`.

    Raises:
        UserError: it is neither, or it is a record and one of the options for models is given.
    """
    if not (Path(what) / "record.json").is_file():
        if advice := records.suggest_record_in(Path(what)):
            raise UserError(f"{what} is not a record. {advice}")
        return resolve(what, base=base, lora=lora, name=name)
    if (base, lora, name) != (None, None, None):
        raise UserError(
            f"{what} is a record of a model that was measured already; --base, --lora and --name are for a model that is run now, leave them out"
        )
    return Path(what)


def default_suite(spec: ModelSpec) -> Suite:
    """The default suite of a model's family.

    Raises:
        UserError: see `suites.load`.
    """
    return suites.load(FAMILY_SUITE.get(spec.family, "standard"))


def find_or_run_pair(
    ours: RecordOrModel, theirs: RecordOrModel, suite: Suite | None, policy: Policy, results: Path, run: Run
) -> tuple[Path, Path]:
    """The records of candidate and baseline under one suite and, if possible, from one machine class; a model without a record is run.

    Args:
        ours: the candidate.
        theirs: the baseline.
        suite: the suite to run where a record is missing; by default the suite of the other's record, or of the baseline's family.
        policy: what is weighed; if it weighs no metric of the suite, nothing is run.
        results: the folder of results.
        run: measures models under a suite and returns their records.

    Raises:
        UserError: a record's suite is unknown or is not the one that the other model would be run under, or the policy has no rules for it.
    """
    if isinstance(ours, Path):
        return (ours, theirs) if isinstance(theirs, Path) else (ours, _find_or_run_opposite(theirs, ours, suite, policy, results, run))
    if isinstance(theirs, Path):
        return _find_or_run_opposite(ours, theirs, suite, policy, results, run), theirs
    chosen = suite or default_suite(theirs)
    policy.rules(chosen.name)
    new, old = (_records_by_machine_class(spec, chosen.id, results) for spec in (ours, theirs))
    if common := [machine for machine in old if machine in new]:
        return new[common[-1]], old[common[-1]]
    if ours == theirs:
        return (record := run([ours], chosen)[0]), record
    candidate, baseline = run([ours, theirs], chosen)  # in turns, so that changes in the machine's speed meet both alike
    return candidate, baseline


def find_or_run(spec: ModelSpec, suite: Suite, machine_class: str, results: Path, run: Run) -> Path:
    """The newest record of a catalogue model on this machine class; other models, and those without a record, are run."""
    found = _records_by_machine_class(spec, suite.id, results)
    return found[machine_class] if machine_class in found else run([spec], suite)[0]


def read_record_under(folder: Path, suite: SuiteId) -> Record:
    """Load the record in a folder, which must be of this suite.

    Raises:
        UserError: it is of another suite, so a run under this one could not be compared with it.
    """
    record = records.read_record(folder)
    if record.suite != suite:
        raise UserError(
            f"record {folder} is of suite {record.suite.title_with_digest}, and this run would be of {suite.title_with_digest}; the gate cannot compare "
            "the two. Name the suite with --suite, or run both models under one suite and the same settings first, and name their records"
        )
    return record


def _find_or_run_opposite(spec: ModelSpec, folder: Path, suite: Suite | None, policy: Policy, results: Path, run: Run) -> Path:
    """A record of a model, to compare with the record in a folder."""
    suite_name = records.read_record(folder).suite.name
    policy.rules(suite_name)
    base_name = suites.base_name(suite_name)
    if suite is None and base_name not in suites.names():
        raise UserError(
            f"record {folder} is of suite {base_name!r}, but neither ./suites nor the package has a file for it; give it with --suite FILE"
        )
    chosen = suite or suites.load(base_name)
    return find_or_run(spec, chosen, read_record_under(folder, chosen.id).machine.machine_class, results, run)


def _records_by_machine_class(spec: ModelSpec, suite: SuiteId, results: Path) -> dict[str, Path]:
    """The newest record of a catalogue model by machine class, newest last; empty for other models, whose weights may have changed."""
    if CATALOGUE.get(spec.name) is None:
        return {}
    newest: dict[str, Path] = {}
    for folder, record in records.find(results, spec.family, suite, spec.name, spec.label):
        newest.pop(record.machine.machine_class, None)  # so that it is inserted again, at the end
        newest[record.machine.machine_class] = folder
    return newest
