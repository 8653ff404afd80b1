"""The command line. Slow imports wait until a command needs them.

A command's answer goes to stdout, so that `sdbench models | grep vega` works. With `--json`, the answer is JSON on stdout, and any text
goes to stderr. Progress and notes always go to stderr.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sdbench import __version__
from sdbench.arguments import BAD_INPUT, Parser, add_command, add_json, print_answer, print_json, print_note, run_command
from sdbench.commands import gating, measuring, reference, showing
from sdbench.commands.console import Command, add_common, add_device, add_runs, places_from, table_width
from sdbench.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the process's exit code."""
    arguments = build_parser().parse_args(argv)
    command: Command = arguments.command
    return run_command("sdbench", partial(command, arguments))


def build_parser() -> argparse.ArgumentParser:
    """The parser, with all commands and their options."""
    top = Parser(
        prog="sdbench", description="Measure SDXL and its distilled students, rank them, and decide whether a checkpoint may ship."
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add_plain(name: str, command: Command, help_text: str) -> argparse.ArgumentParser:
        added = add_command(commands, name, help_text)
        added.set_defaults(command=command)
        return added

    def add(name: str, command: Command, help_text: str) -> argparse.ArgumentParser:
        added = add_plain(name, command, help_text)
        add_common(added)
        return added

    measuring.add_commands(add)
    gating.add_commands(add)
    showing.add_commands(add)
    models = add_plain("models", _models, "list the models that sdbench knows by name")
    add_json(models)
    add_runs(add("suites", _suites, "list the suites, with their metrics and what each needs"))
    doctor = "check what this machine can run, what is missing, whether the shipped weights are intact, and whether the metrics work"
    add_runs(add("doctor", _doctor, doctor))
    reference.add_commands(add)
    _add_scenes(add_plain("scenes", _scenes, "train the weights of the embedded family, or install trained ones"))
    return top


def _add_scenes(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "action", choices=("train", "ship"), help="train: train the parts in WORK; ship: install them in this package, with a manifest"
    )
    command.add_argument("--parts", nargs="+", default=[], help="parts to train (default: all)")
    command.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of results, for the training losses (default: results)"
    )
    command.add_argument("--work", type=Path, help="folder to train in; a killed run resumes from it (default: RESULTS/runs/training)")
    add_device(command)


def _models(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from sdbench import tables
    from sdbench.models.catalogue import CATALOGUE

    if arguments.json:
        print_json([asdict(entry) for entry in CATALOGUE.values()])
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

    loaded = []
    for name in suites.names():
        try:
            loaded.append(suites.load(name))
        except UserError as error:  # ./suites may hold another program's files
            print_note(f"not a suite: {error}")
    if arguments.json:
        print_json([suite.model_dump() for suite in loaded])
        return 0
    for suite in loaded:
        print_answer(f"{f'{suite.name}@{suite.version}':20} {suite.family or 'part':7} {suite.description}", arguments)
        metrics = [f"metrics of {family}: {', '.join(names)}" for family, names in suite.metrics.items()]
        for line in [*metrics, *requirements.describe(suite, places_from(arguments).work)]:
            print_answer(f"    {line}", arguments)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from sdbench.doctor import checks

    findings = []
    for finding in checks.examine(arguments.results, places_from(arguments).work):
        findings.append(finding)
        print_answer(f"{'ok ' if finding.is_ok else 'BAD' if finding.is_fatal else '-- '} {finding.text}", arguments)
    if arguments.json:
        print_json([{"ok": finding.is_ok, "fatal": finding.is_fatal, "text": finding.text} for finding in findings])
    return BAD_INPUT if any(finding.is_fatal and not finding.is_ok for finding in findings) else 0


def _scenes(arguments: argparse.Namespace) -> int:
    from sdbench.machine import choose_device, environment
    from sdbench.scenes.training import make, ship

    work = arguments.work or arguments.results / "runs" / "training"
    workspace = make.Workspace(work, choose_device(arguments.device))
    if arguments.action == "ship":
        if arguments.parts:
            raise UserError("--parts is for scenes train; scenes ship installs all parts")
        print_note(f"installed: {ship.ship(workspace, environment().model_dump(), arguments.results / 'training')}")
        return 0
    for part in arguments.parts or make.PARTS:
        make.train_part(part, workspace)
    return 0


if __name__ == "__main__":
    sys.exit(main())
