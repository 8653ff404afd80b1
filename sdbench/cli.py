"""The command line; imports wait until a command needs them.

What a command was only asked for goes to stdout, so that `sdbench models | grep vega` finds something, unless `--json` puts the same there for
machines. Progress and notes go to stderr, out of the way of both.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sdbench import __version__
from sdbench.arguments import BAD_INPUT, Parser, add_command, run_command
from sdbench.commands import gating, measuring, showing
from sdbench.commands.console import Command, add_common, add_device, add_runs, answer, give, places, say
from sdbench.errors import UserError

ENCODERS = (  # of `encoders.catalogue`, which brings torch
    "scenes.features", "inception.clean", "inception.tf1", "inception.mlperf", "inception.torchmetrics", "dinov2.vit-l-14", "clip.vit-l-14-336",
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command => the process's exit code."""
    arguments = parser().parse_args(argv)
    command: Command = arguments.command
    return run_command("sdbench", partial(command, arguments))


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = Parser(prog="sdbench", description="Measure SDXL and its distilled students, rank them, and gate new checkpoints.")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def plain(name: str, command: Command, help_text: str) -> argparse.ArgumentParser:
        made = add_command(commands, name, help_text)
        made.set_defaults(command=command)
        return made

    def add(name: str, command: Command, help_text: str) -> argparse.ArgumentParser:
        made = plain(name, command, help_text)
        add_common(made)
        return made

    measuring.add_commands(add)
    gating.add_commands(add)
    showing.add_commands(add)
    plain("models", _models, "list the models known by name").add_argument("--json", action="store_true", help="answer as JSON on stdout")
    add_runs(add("suites", _suites, "list the suites"))
    intact = "say what this machine can run, what is missing, and whether the shipped weights are intact and the metrics behave"
    add_runs(add("doctor", _doctor, intact))

    references = add("reference", _reference, "build reference statistics from real pictures, import published ones, or list those at hand")
    _add_reference(references)

    training = plain("scenes", _scenes, "train the embedded family's own weights, or install what was trained")
    training.add_argument("action", choices=("train", "ship"), help="train: make parts in WORK; ship: install them with a manifest")
    training.add_argument("--parts", nargs="+", default=[], help="parts to train (default: all)")
    training.add_argument("--results", type=Path, default=Path("results"), help="folder that keeps the losses (default: results)")
    training.add_argument(
        "--work", type=Path, help="folder to train in; a part that was killed goes on from there (default: RESULTS/runs/training)"
    )
    add_device(training)
    return top


def _add_reference(command: argparse.ArgumentParser) -> None:
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    building = add_command(actions, "build", "build reference statistics from real pictures")
    taking = add_command(actions, "import", "take statistics that were published")
    listing = add_command(actions, "list", "list those at hand")
    for action in (building, taking):
        action.add_argument("name", help="what suites call the reference")
    taking.add_argument("file", type=Path, help="a .npz with `mu` and `sigma`")
    building.add_argument("--images", type=Path, help="folder of real pictures")
    building.add_argument("--dataset", help="file, folder or Hub name that `datasets` opens")
    building.add_argument("--split", default="train", help="of the dataset (default: train)")
    building.add_argument("--column", help="of the dataset's pictures, where it has several")
    building.add_argument("--encoder", nargs="+", required=True, help=f"to build for: {', '.join(ENCODERS)}")
    building.add_argument("--n", type=int, help="only the first N pictures (default: all)")
    taking.add_argument("--encoder", nargs="+", required=True, help="that its maker names, as of build")
    taking.add_argument("--n", type=int, required=True, help="pictures behind the file")
    taking.add_argument("--source", required=True, help="where it was published")
    add_device(building)
    for action in (building, taking, listing):
        add_common(action, again=True)
        add_runs(action)


def _models(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from sdbench.models.catalogue import CATALOGUE

    if arguments.json:
        give([asdict(entry) for entry in CATALOGUE.values()])
        return 0
    for entry in CATALOGUE.values():
        fetch = f"{entry.download_gb:.1f} GB to fetch" if entry.download_gb else "nothing to fetch"
        line = (
            f"{entry.name:20} {entry.family:7} {entry.architecture or '-':11} {entry.source:9} {fetch:18} {entry.location}  {entry.licence}"
        )
        answer(line.rstrip(), arguments)
    return 0


def _suites(arguments: argparse.Namespace) -> int:
    from sdbench import suites
    from sdbench.run import requirements

    found = []
    for name in suites.names():
        try:
            found.append(suites.load(name))
        except UserError as error:  # ./suites may hold another program's files
            say(f"not a suite: {error}")
    if arguments.json:
        give([suite.model_dump() for suite in found])
        return 0
    for suite in found:
        answer(f"{suite.name}@{suite.version:<3} {suite.family or 'part':7} {suite.description}", arguments)
        metrics = [f"metrics of {family}: {', '.join(names)}" for family, names in suite.metrics.items()]
        for line in [*metrics, *requirements.text(suite, places(arguments).work)]:
            answer(f"    {line}", arguments)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from sdbench.doctor import checks

    findings = []
    for finding in checks.examine(arguments.results, places(arguments).work):
        findings.append(finding)
        answer(f"{'ok ' if finding.fine else 'BAD' if finding.fatal else '-- '} {finding.text}", arguments)
    if arguments.json:
        give([vars(finding) for finding in findings])
    return BAD_INPUT if any(finding.fatal and not finding.fine for finding in findings) else 0


def _reference(arguments: argparse.Namespace) -> int:
    from sdbench.commands import reference

    found = reference.run(arguments, places(arguments).work)
    for card in found:
        answer(reference.line(card), arguments)
    if not found:
        say("no reference was built or imported yet; `scenes` is rendered when it is needed")
    if arguments.json:
        give([card.model_dump() for card in found])
    return 0


def _scenes(arguments: argparse.Namespace) -> int:
    from sdbench.machine import chosen_device, environment
    from sdbench.scenes.training import make, ship

    work = arguments.work or arguments.results / "runs" / "training"
    workspace = make.Workspace(work, chosen_device(arguments.device))
    if arguments.action == "ship":
        say(f"installed: {ship.ship(workspace, environment().model_dump(), arguments.results / 'training')}")
        return 0
    for part in arguments.parts or make.PARTS:
        make.train_part(part, workspace)
    return 0


if __name__ == "__main__":
    sys.exit(main())
