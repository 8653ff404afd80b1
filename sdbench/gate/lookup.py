"""Find the two records that the gate compares: named by the user, measured earlier, or measured now."""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sdbench import records, suites, tables
from sdbench.errors import IncompleteError, UserError
from sdbench.gate import baselines
from sdbench.models.catalogue import CATALOGUE
from sdbench.models.resolve import resolve
from sdbench.models.spec import NAME, ModelSpec
from sdbench.records import Record, SuiteId
from sdbench.suites import Suite

Run = Callable[[Sequence[ModelSpec], Suite], list[Path]]


@dataclass(frozen=True)
class RecordedName:
    """A name that only records have: a checkpoint was measured under it, or it names images made elsewhere.

    Attributes:
        rows: the newest record of each row of this name.
    """

    name: str
    rows: tuple[tuple[Path, Record], ...]

    def suite_for(self, other: "RecordOrModel", suite: Suite | None) -> SuiteId:
        """The suite to compare with the other side under.

        It is the given one, that of the other's record, the only one that both have records of, or the default of the family.
        """
        if suite is not None:
            return suite.id
        if isinstance(other, Path):
            return records.read_record(other).suite
        shared = [each for each in self.suites if not isinstance(other, RecordedName) or each in other.suites]
        return shared[0] if len(shared) == 1 else suites.load_default(self.rows[0][1].family).id

    def record_under(self, suite: SuiteId, machine_class: str | None = None) -> Path:
        """The one record of a suite, on this machine class where there is one.

        Raises:
            UserError: there is none, or there are several.
        """
        of_suite = [(folder, record) for folder, record in self.rows if record.suite == suite]
        if not of_suite:
            raise UserError(
                f"no record of {self.name!r} is of suite {suite.title_with_digest}, so there is nothing to compare; measure it under that "
                f"suite, or name one of its existing records: {_join(self.folders)}"
            )
        on_machine = [(folder, record) for folder, record in of_suite if record.machine.machine_class == machine_class]
        return _the_only([folder for folder, _ in on_machine or of_suite], f"{self.name!r} under {suite.title_with_digest}")

    @property
    def suites(self) -> list[SuiteId]:
        """The suites of its records, each once."""
        return list(dict.fromkeys(record.suite for _, record in self.rows))

    @property
    def folders(self) -> list[Path]:
        """The folder of each record."""
        return [folder for folder, _ in self.rows]


RecordOrModel = Path | ModelSpec | RecordedName  # what a user may name: a record folder, a model, or a name of records


def find_baseline(what: str, results: Path) -> RecordOrModel:
    """Resolve a baseline: a name in `baselines.toml`, which takes precedence, or what `find_candidate` takes.

    Raises:
        UserError: it is none of these.
    """
    if folder := baselines.find(what, results):
        return folder
    try:
        return find_candidate(what, results)
    except IncompleteError as error:
        advice = f"measure the baseline first, `sdbench run --model {what} --base ...`, and name its record."
        raise error.followed_by(f"But --base completes only the candidate; {advice}") from error
    except UserError as error:
        if Path(what).exists():
            raise
        raise error.followed_by(f"Nor is it the name of a baseline: {baselines.describe(results, what)}") from error


def find_candidate(what: str, results: Path, *, base: str | None = None, lora: str | None = None, name: str | None = None) -> RecordOrModel:
    """Resolve a candidate: a record folder or its `record.json`, what `sdbench run --model` takes, or else a name that records have.

    Args:
        base, lora, name: for a model, see `resolve`.

    Raises:
        UserError: it is none of these, or it is a record and one of the options for models is given.
    """
    folder = folder_of(what)
    if not (folder / "record.json").is_file():
        if advice := records.suggest_record_in(folder):
            raise UserError(f"{what} is not a record. {advice}")
        try:
            return resolve(what, base=base, lora=lora, name=name)
        except UserError as error:
            if (base, lora, name) != (None, None, None):
                raise
            if not (recorded := find_name(what, results)).rows:
                if near := difflib.get_close_matches(what, _recorded_names(results), 1):
                    raise error.followed_by(f"There are records of {near[0]!r}.") from error
                raise
            if not Path(what).exists():
                return recorded
            raise error.followed_by(
                f"If you mean a record of the name {what!r} instead, name its folder: {_join(recorded.folders)}."
            ) from error
    if (base, lora, name) != (None, None, None):
        raise UserError(
            f"{what} is the record of a model that was already measured; --base, --lora and --name apply only to a model that is yet to "
            "run: leave them out"
        )
    return folder


def folder_of(what: str) -> Path:
    """The folder of a record that is named by its folder or by its `record.json`; the path of anything else, unchanged."""
    path = Path(what)
    return path.parent if path.name == "record.json" else path


def describe_run(specs: Sequence[ModelSpec], suite: Suite, results: Path) -> str:
    """What is about to be run and why, for a note: it takes minutes or hours. Records of both under other suites may be what was meant."""
    names, them = tables.join_words([spec.name for spec in specs]), "it" if len(specs) == 1 else "them"
    measured = [{record.suite for _, record in records.newest_per_model(results, name=spec.name)} for spec in specs]
    others = sorted(each.title_with_digest for each in set.intersection(*measured) - {suite.id}) if len(specs) > 1 else []
    elsewhere = f"; to compare their records under {tables.join_words(others)}, name the folders of these" if others else ""
    where = f"under {suite.id.title_with_digest} in {results}"
    if any(spec.name not in CATALOGUE for spec in specs):  # a checkpoint, whose files tell whether a record is still of it
        return (
            f"checking {names} {where}: what is missing, or has changed since an earlier record, is measured now, on this machine; to "
            f"compare that record as it is, name its folder{elsewhere}"
        )
    missing = f"no matching record of {names}" if len(specs) == 1 else f"no records of {names} to compare"
    return f"{missing} {where}: measuring {them} now, on this machine{elsewhere}"


def find_record(what: str, results: Path) -> Path:
    """The folder of a record, given by its path or, if no other record has its name, by that name.

    Raises:
        UserError: there are several records of this name, or the one there is cannot be read.
    """
    folder = folder_of(what)
    if (folder / "record.json").is_file() or not (recorded := find_name(what, results)).rows:
        return folder
    return _the_only(recorded.folders, repr(what))


def find_or_run_pair(ours: RecordOrModel, theirs: RecordOrModel, suite: Suite | None, results: Path, run: Run) -> tuple[Path, Path]:
    """The records of candidate (`ours`) and baseline under one suite and, if possible, from one machine class; a model without one is run.

    Args:
        suite: the suite to run where a record is missing; by default the suite of the other's record, or of the baseline's family.
        run: measures models under a suite and returns their records.

    Raises:
        UserError: a record's suite is unknown or is not the one that the other model would be run under, or no single record of a
            name fits.
    """
    if isinstance(theirs, RecordedName):
        theirs = theirs.record_under(theirs.suite_for(ours, suite), _machine_class_of(ours))
    if isinstance(ours, RecordedName):
        ours = ours.record_under(ours.suite_for(theirs, suite), _machine_class_of(theirs))
    if isinstance(ours, Path):
        return (ours, theirs) if isinstance(theirs, Path) else (ours, _find_or_run_opposite(theirs, ours, suite, results, run))
    if isinstance(theirs, Path):
        return _find_or_run_opposite(ours, theirs, suite, results, run), theirs
    chosen = suite or suites.load_default(theirs.family)
    new, old = (_records_by_machine_class(spec, chosen.id, results) for spec in (ours, theirs))
    if common := [machine for machine in old if machine in new]:
        return new[common[-1]], old[common[-1]]
    if ours == theirs:
        return (record := run([ours], chosen)[0]), record
    candidate, baseline = run([ours, theirs], chosen)  # in turns, so that changes in the machine's speed meet both alike
    return candidate, baseline


def newest_record(spec: ModelSpec, suite: SuiteId, machine_class: str, results: Path) -> Path | None:
    """The newest record of a catalogue model on this machine class, if there is one; None for other models."""
    return _records_by_machine_class(spec, suite, results).get(machine_class)


def read_record_under(folder: Path, suite: SuiteId) -> Record:
    """Load the record in a folder, which must be of this suite.

    Raises:
        UserError: it is of another suite, so a run under this one could not be compared with it.
    """
    record = records.read_record(folder)
    if record.suite != suite:
        raise UserError(
            f"record {folder} is of suite {record.suite.title_with_digest}, but this run would be of {suite.title_with_digest}, and the "
            f"gate cannot compare the two. {_how_to_run_under(record.suite.name)}"
        )
    return record


def _how_to_run_under(suite: str) -> str:
    """How to run another model under the suite of a record, by its name: --suite does not take the names that the program gives."""
    if suite.endswith("-sequential"):
        return "--until-verdict stopped that record's run at a part of the prompts: measure its model again without --until-verdict"
    if suite.endswith("-custom"):
        return f"Give --suite {suites.base_name(suite)} and again the options, such as --n, that made it"
    return "Name that suite with --suite"


def _machine_class_of(what: RecordOrModel) -> str | None:
    """The machine class of a record, or of the newest one of a name; None for a model, which is run or looked up anywhere."""
    if isinstance(what, ModelSpec):
        return None
    record = records.read_record(what) if isinstance(what, Path) else max((each for _, each in what.rows), key=lambda each: each.created)
    return record.machine.machine_class


def find_name(what: str, results: Path) -> RecordedName:
    """The records of a name, if there are any."""
    return RecordedName(what, tuple(records.newest_per_model(results, name=what)) if NAME.fullmatch(what) else ())


def _recorded_names(results: Path) -> set[str]:
    """The names that only records have."""
    return {folder.parent.name for folder in records.folders(results)} - CATALOGUE.keys()


def _the_only(folders: Sequence[Path], whose: str) -> Path:
    """The folder, if it is the only one; otherwise an error."""
    if len(folders) > 1:
        raise UserError(f"there are {len(folders)} records of {whose}; name one of them: {_join(folders)}")
    return folders[0]


def _join(folders: Sequence[Path]) -> str:
    return ", ".join(map(str, folders))


def _find_or_run_opposite(spec: ModelSpec, folder: Path, suite: Suite | None, results: Path, run: Run) -> Path:
    """A record of a model, to compare with the record in a folder: of that record's own suite, else of the suite given or loaded."""
    record = records.read_record(folder)
    known = _records_by_machine_class(spec, record.suite, results)
    if suite is None and record.machine.machine_class in known:
        return known[record.machine.machine_class]
    base_name = suites.base_name(record.suite.name)
    if suite is None and base_name not in suites.names():
        raise UserError(
            f"record {folder} is of suite {base_name!r}, but neither ./suites nor the package has a file for it; give it with --suite FILE"
        )
    chosen = suite or suites.load(base_name)
    machine_class = read_record_under(folder, chosen.id).machine.machine_class
    return newest_record(spec, chosen.id, machine_class, results) or run([spec], chosen)[0]


def _records_by_machine_class(spec: ModelSpec, suite: SuiteId, results: Path) -> dict[str, Path]:
    """The newest record of a catalogue model by machine class, newest last; empty for other models, whose weights may have changed."""
    if CATALOGUE.get(spec.name) is None:
        return {}
    newest: dict[str, Path] = {}
    for folder, record in records.find(results, spec.family, suite, spec.name, spec.label):
        newest.pop(record.machine.machine_class, None)  # so that it is inserted again, at the end
        newest[record.machine.machine_class] = folder
    return newest
