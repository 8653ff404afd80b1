"""The commands that list what there is: `models`, `suites`, and with `doctor` what works here."""

import argparse
from dataclasses import asdict

from sdbench.arguments import BAD_INPUT, add_json, print_answer, print_json
from sdbench.commands.console import AddCommand, add_runs, places_from, table_width
from sdbench.errors import UserError
from sdbench.notes import print_note


def add_commands(add: AddCommand) -> None:
    """Add the commands and their options."""
    add_json(add("models", _models, "list the models that sdbench knows by name", common=False))
    add_runs(add("suites", _suites, "list the suites, with their metrics and what each needs"))
    what = "check what this machine can run, what is missing, whether the shipped weights are intact, and whether the metrics work"
    doctor = add("doctor", _doctor, what)
    doctor.epilog = "Lines begin with ok, with -- for what only some commands need, or with BAD for what must be put right (exit code 2)."
    add_runs(doctor)


def _models(arguments: argparse.Namespace) -> int:
    from sdbench import tables
    from sdbench.models.catalogue import CATALOGUE

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
            entry.location or "none",
            entry.licence or "not found",
        )
        for entry in CATALOGUE.values()
    )
    header = ("model", "family", "architecture", "source", "download", "location", "licence")
    print_answer(tables.text(tables.Grid(header, rows), table_width()), arguments)
    return 0


def _suites(arguments: argparse.Namespace) -> int:
    from sdbench import suites
    from sdbench.run import requirements

    parts = []
    for name in suites.names():
        try:
            parts.append(suites.load_part(name))
        except UserError as error:  # ./suites may hold another program's files
            print_note(f"not a suite: {error}")
    if arguments.json:
        print_json([{"family": None} | part.model_dump() for part in parts], arguments)
        return 0
    for part in parts:
        kind, needed = "part", list[str]()
        if isinstance(part, suites.Suite):
            kind, needed = part.family, requirements.describe(part, places_from(arguments).work)
        print_answer(f"{f'{part.name}@{part.version}':20} {kind:7} {part.description}", arguments)
        metrics = [f"metrics of {family}: {', '.join(names)}" for family, names in part.metrics.items()]
        for line in [*metrics, *needed]:
            print_answer(f"    {line}", arguments)
    return 0


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
