"""The commands that list what there is: `models`, `suites`, and with `doctor` what works here."""

import argparse
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from sdbench.arguments import BAD_INPUT, add_json, print_answer, print_json
from sdbench.commands.console import AddCommand, add_runs, places_from, table_width
from sdbench.errors import UserError
from sdbench.notes import print_note

if TYPE_CHECKING:
    from sdbench.suites import Part


def add_commands(add: AddCommand) -> None:
    """Add the commands and their options."""
    add_json(add("models", _models, "list the models that sdbench knows by name", common=False))
    listing = add("suites", _suites, "list the suites; with a NAME, show what that one measures and what it needs")
    listing.add_argument("name", nargs="?", metavar="NAME", help="name of a suite, name@version, or file")
    add_runs(listing)
    what = "check what this machine can run, what is missing, whether the shipped weights are intact, and whether the metrics work"
    doctor = add("doctor", _doctor, what)
    doctor.epilog = "Lines begin with ok, with -- for what only some commands need, or with BAD for what must be put right (exit code 2)."
    add_runs(doctor)


def _models(arguments: argparse.Namespace) -> int:
    from sdbench import tables
    from sdbench.models.catalogue import CATALOGUE
    from sdbench.scenes.embedded import WEIGHTS

    if arguments.json:
        print_json([asdict(entry) for entry in CATALOGUE.values()], arguments)
        return 0
    rows = tuple(
        (
            entry.name,
            entry.family,
            entry.architecture or "none",
            entry.source,
            f"{entry.download_gb:.1f} GB" if entry.download_gb else "none",
            tables.Cell(entry.location or "none", f"in {WEIGHTS}" if entry.source == "embedded" else ""),
            entry.licence or "not found",
        )
        for entry in CATALOGUE.values()
    )
    header = ("model", "family", "architecture", "source", "download", "location", "licence")
    print_answer(tables.text(tables.Grid(header, rows), table_width()), arguments)
    return 0


def _suites(arguments: argparse.Namespace) -> int:
    from sdbench import suites

    found = [suites.load_part(arguments.name)] if arguments.name else [*_all_suites()]
    if arguments.json:
        print_json([{"family": None} | part.model_dump() for part in found], arguments)
    elif arguments.name:
        print_answer("\n".join(_describe(found[0], places_from(arguments).work)), arguments)
    else:
        print_answer(_summarise_suites(found), arguments)
    return 0


def _all_suites() -> "Iterator[Part]":
    from sdbench import suites

    for name in suites.names():
        try:
            yield suites.load_part(name)
        except UserError as error:  # ./suites may hold another program's files
            print_note(f"not a suite: {error}")


def _summarise_suites(found: "list[Part]") -> str:
    """A line for each suite, a family's default first; the names of the parts; and how to see more."""
    from sdbench import tables
    from sdbench.models.catalogue import DEFAULT_SUITES
    from sdbench.suites import Suite

    suites, rows = [each for each in found if isinstance(each, Suite)], []
    for suite in sorted(suites, key=lambda suite: (suite.family, suite.name not in DEFAULT_SUITES.values(), suite.name)):
        n = f"{suite.prompts.n:,}" + (f" x {suite.samples}" if suite.samples > 1 else "")
        rows.append((f"{suite.name}@{suite.version}", suite.family, n, suite.description.partition(": ")[0]))  # the rest are details
    return "\n".join(
        [
            tables.text(tables.Grid(("suite", "family", "prompts", "what for"), tuple(rows)), table_width()),
            "",
            f"parts that suites include: {', '.join(each.name for each in found if each not in suites)}",
            f"default: {tables.join_words([f'{name} for {family}' for family, name in DEFAULT_SUITES.items()])}",
            "all of one, and what it lacks here: sdbench suites NAME",
        ]
    )


def _describe(part: "Part", runs: Path) -> Iterator[str]:
    """What a suite or part measures, and what of that is not on this disk; a line that holds a command is not wrapped, to be copied."""
    from sdbench.disk import size_text
    from sdbench.run import requirements
    from sdbench.suites import Suite

    kind = part.family if isinstance(part, Suite) else "a part"
    yield from _wrap(f"{part.name}@{part.version} ({kind}): {part.description}")
    if isinstance(part, Suite):
        yield f"prompts: {part.prompts.n:,}" + (f", {part.samples} images of each" if part.samples > 1 else "")
        settings = part.sampling.model_dump(exclude_none=True)
        yield from _wrap(f"sampling: {', '.join(f'{name} {setting}' for name, setting in settings.items())}")
    for family, names in part.metrics.items():
        yield from _wrap(f"metrics of {family}: {', '.join(names)}")
    if part.probes:
        yield from _wrap(f"latency and memory, {part.probes.rounds} rounds of each setting: {', '.join(part.probes.select())}")
    if not isinstance(part, Suite):
        return
    if sizes := requirements.sizes(requirements.files_to_fetch(part)):
        yield f"to fetch, in all {size_text(sum(sizes.values()))}:"
        yield from (f"    {size_text(size):>7}  {place}" for place, size in sizes.items())
    yield from (f"missing: {what}" for what in requirements.missing_inputs(part, runs))


def _wrap(line: str) -> list[str]:
    return textwrap.wrap(line, table_width(), subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _doctor(arguments: argparse.Namespace) -> int:
    from sdbench.doctor import checks

    findings = []
    for finding in checks.examine(arguments.results, places_from(arguments).work):
        findings.append(finding)
        print_answer(f"{'ok ' if finding.is_ok else 'BAD' if finding.is_fatal else '-- '} {finding.text}", arguments)
    n_bad = sum(finding.is_fatal and not finding.is_ok for finding in findings)
    n_lacking = sum(not finding.is_ok for finding in findings) - n_bad
    print_answer(f"must be put right (BAD): {n_bad or 'nothing'}; lacking for some commands (--): {n_lacking or 'nothing'}", arguments)
    print_json([{"ok": finding.is_ok, "fatal": finding.is_fatal, "text": finding.text} for finding in findings], arguments)
    return BAD_INPUT if n_bad else 0
