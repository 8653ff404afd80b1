"""Find the records of two models that were measured earlier; nothing is run."""

from collections.abc import Iterable
from pathlib import Path

from sdbench import records, suites
from sdbench.errors import IncompleteError, UserError
from sdbench.gate import baselines, lookup
from sdbench.models.spec import ModelSpec
from sdbench.records import Record, SuiteId

Rows = list[tuple[Path, Record]]


def find_pair(first: str, second: str, suite: str | None, results: Path) -> tuple[Path, Path]:
    """The records of two models under one suite and, if possible, from one machine class.

    Each is a record folder, a name in `baselines.toml`, or the name of a model or row. Of several suites that both have records of, it is
    the default of the family; of several records, the newest.

    Args:
        suite: a suite file, or the name, `<name>@<version>` or digest of the suite of the records.

    Raises:
        UserError: there is no record of a name, or none of both under one suite, or of several suites it is not clear which is meant.
    """
    sides = find(first, results), find(second, results)
    if suite is None and max(map(len, sides)) == 1:
        return sides[0][0][0], sides[1][0][0]  # if they cannot be compared, all that differs is named
    wanted = suites.load(suite).id.digest if suite and suite.endswith(".toml") else suite
    pairs = [(one, other) for one in sides[0] for other in sides[1] if one[1].suite == other[1].suite and _is_of(one[1].suite, wanted)]
    if not pairs:
        own, others = (_join(record.suite for _, record in rows) for rows in sides)
        raise UserError(
            f"{first} and {second} have no records under one suite{f' {suite!r}' if suite else ''}: {first} has {own}; {second} has "
            f"{others}. Measure both under one: sdbench run --model ... --model ... --suite ..."
        )
    shared = {one[1].suite for one, _ in pairs}
    chosen = next(iter(shared)) if len(shared) == 1 else suites.load_default(pairs[0][0][1].family).id
    if chosen not in shared:
        raise UserError(f"both have records under {_join(shared)}; choose one with --suite, by its name, name@version or digest")
    of_suite = [pair for pair in pairs if pair[0][1].suite == chosen]
    alike = [pair for pair in of_suite if pair[0][1].machine.machine_class == pair[1][1].machine.machine_class]
    (one, _), (other, _) = max(alike or of_suite, key=lambda pair: (pair[1][1].created, pair[0][1].created))
    return one, other


def find(what: str, results: Path) -> Rows:
    """The records that a user names, the newest of each row; those of random weights only where the name has no others.

    Raises:
        UserError: there are none.
    """
    folder = baselines.find(what, results) or lookup.folder_of(what)
    if (folder / "record.json").is_file():
        return [(folder, records.read_record(folder))]
    if rows := lookup.find_name(what, results).rows:
        return [row for row in rows if not row[1].model.label] or [*rows]
    try:
        model = lookup.find_candidate(what, results)
    except IncompleteError as error:
        raise error.followed_by("Only records are compared: measure it first, and name its record") from error
    except UserError as error:
        if Path(what).exists():
            raise
        raise error.followed_by(f"Nor is it the name of a record or of a baseline: {baselines.describe(results, what)}") from error
    assert isinstance(model, ModelSpec)
    raise UserError(
        f"{what} is a model, and only records are compared: name one by its folder or, if there is one under {results}, as {model.name!r}; "
        f"to make one: sdbench run --model {what}"
    )


def _is_of(suite: SuiteId, wanted: str | None) -> bool:
    return wanted is None or wanted in (suite.name, suite.title, suite.digest)


def _join(found: Iterable[SuiteId]) -> str:
    return ", ".join(sorted({each.title_with_digest for each in found}))
