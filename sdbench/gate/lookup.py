"""The two records that a gate compares: those that a user names, those that are there already, or new ones of a run."""

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
    """A name of `baselines.toml`, which comes before all else, a record folder, or what `sdbench run --model` takes.

    Raises:
        UserError: it is none of these.
    """
    if folder := baselines.find(what, results):
        return folder
    try:
        return find_candidate(what)
    except IncompleteError as error:
        raise UserError(
            f"{error} It is the baseline, and --base is of the candidate: measure it first, `sdbench run --model {what} --base ...`, and name its record."
        ) from error
    except UserError as error:
        if Path(what).exists():
            raise
        raise UserError(f"{error} Nor is it the name of a baseline: {baselines.describe(results)}.") from error


def find_candidate(what: str, *, base: str | None = None, lora: str | None = None, name: str | None = None) -> RecordOrModel:
    """As `find`, without the names of baselines.

    Args:
        what: a record folder, or what `sdbench run --model` takes.
        base, lora, name: of a model, as `resolve` takes them.

    Raises:
        UserError: it is none of these, or a record, of which there is nothing to complete.
    """
    if not (Path(what) / "record.json").is_file():
        if advice := records.suggest_record_in(Path(what)):
            raise UserError(f"{what} is not a record. {advice}")
        return resolve(what, base=base, lora=lora, name=name)
    if (base, lora, name) != (None, None, None):
        raise UserError(
            f"{what} is a record, whose model was run already; --base, --lora and --name are for one that is run now, leave them out"
        )
    return Path(what)


def default_suite(spec: ModelSpec) -> Suite:
    """The suite of a model's family."""
    return suites.load(FAMILY_SUITE.get(spec.family, "standard"))


def find_or_run_pair(
    ours: RecordOrModel, theirs: RecordOrModel, suite: Suite | None, policy: Policy, results: Path, run: Run
) -> tuple[Path, Path]:
    """Records of candidate and baseline, of one suite and, where they can be, of one machine class; what has none is run.

    Args:
        ours: the candidate.
        theirs: the baseline.
        suite: to run where a record is missing; by default that of the other one's record, or of the baseline's family.
        policy: what is weighed; one that weighs nothing of the suite ends it before anything is run.
        results: the folder of results.
        run: measures models under a suite => their records.

    Raises:
        UserError: a record is not of the suite that the other one would be run under.
    """
    if isinstance(ours, Path):
        return (ours, theirs) if isinstance(theirs, Path) else (ours, _find_or_run_opposite(theirs, ours, suite, policy, results, run))
    if isinstance(theirs, Path):
        return _find_or_run_opposite(ours, theirs, suite, policy, results, run), theirs
    chosen = suite or default_suite(theirs)
    policy.rules(chosen.name)
    kept = [_records_by_machine_class(spec, chosen.id, results) for spec in (ours, theirs)]
    if common := [machine for machine in kept[1] if machine in kept[0]]:
        return kept[0][common[-1]], kept[1][common[-1]]
    if ours == theirs:
        return (made := run([ours], chosen)[0]), made
    new, old = run([ours, theirs], chosen)  # in turns, so that latency is compared under one mood of the machine
    return new, old


def find_or_run(spec: ModelSpec, suite: Suite, machine_class: str, results: Path, run: Run) -> Path:
    """The newest record of a model of the catalogue on machines of a class; of others, or where there is none, a new one."""
    kept = _records_by_machine_class(spec, suite.id, results)
    return kept[machine_class] if machine_class in kept else run([spec], suite)[0]


def check_suite(folder: Path, suite: SuiteId) -> Record:
    """The record in a folder, which is of this suite.

    Raises:
        UserError: it is of another, so that a run under this one could not be compared with it.
    """
    record = records.read_record(folder)
    if record.suite != suite:
        raise UserError(
            f"record {folder} is of suite {record.suite.title_with_digest}, and this run would be of {suite.title_with_digest}, which no verdict compares; name the "
            "suite with --suite, or run both models under one suite and the same settings first, and name their records"
        )
    return record


def _find_or_run_opposite(spec: ModelSpec, folder: Path, suite: Suite | None, policy: Policy, results: Path, run: Run) -> Path:
    """A record to compare that in a folder with."""
    of_suite = records.read_record(folder).suite.name
    policy.rules(of_suite)
    whole = of_suite.removesuffix("-custom").removesuffix("-sequential")
    if suite is None and whole not in suites.names():
        raise UserError(
            f"record {folder} is of suite {whole!r}, of which there is no file in ./suites or in the package; give it with --suite FILE"
        )
    chosen = suite or suites.load(whole)
    return find_or_run(spec, chosen, check_suite(folder, chosen.id).machine.machine_class, results, run)


def _records_by_machine_class(spec: ModelSpec, suite: SuiteId, results: Path) -> dict[str, Path]:
    """Machine class -> the newest record of a model of the catalogue, newest class last; other names may have other weights behind them by now."""
    if CATALOGUE.get(spec.name) is None:
        return {}
    kept: dict[str, Path] = {}
    for folder, record in records.find(results, spec.family, suite, spec.name, spec.label):
        kept.pop(record.machine.machine_class, None)
        kept[record.machine.machine_class] = folder
    return kept
