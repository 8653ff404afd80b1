"""The command line. Tables for people go to stderr, `--json` to stdout; imports wait until a command needs them."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from sdbench import __version__
from sdbench.arguments import Parser
from sdbench.commands import gating, measuring, showing
from sdbench.commands.console import Command, add_common, add_runs, give, places, say
from sdbench.errors import UserError

BAD_INPUT, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command => the process's exit code; an error that a user can mend is a message and 2."""
    arguments = parser().parse_args(argv)
    command: Command = arguments.command
    with contextlib.suppress(ValueError):  # only the main thread may ask for it
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return command(arguments)
    except KeyboardInterrupt:
        say("sdbench: interrupted; what was finished is kept, and the same command goes on from there")
        return INTERRUPTED
    except UserError as error:
        say(f"sdbench: {error}")
        return BAD_INPUT
    except BrokenPipeError:  # whoever reads the answer went away; 0 would say that a gate has passed
        with contextlib.suppress(OSError):
            sys.stdout.close()
        return BAD_INPUT


def _interrupt(*_: object) -> None:
    """A request to end is Ctrl-C's: what a command has started ends with it."""
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = Parser(prog="sdbench", description="Measure SDXL and its distilled students, rank them, and gate new checkpoints.")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def plain(name: str, command: Command, help_text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help_text, description=help_text)
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
    add_runs(references)

    training = plain("scenes", _scenes, "train the embedded family's own weights, or install what was trained")
    training.add_argument("action", choices=("train", "ship"), help="train: make parts in WORK; ship: install them with a manifest")
    training.add_argument("--parts", nargs="+", default=[], help="parts to train (default: all)")
    training.add_argument("--results", type=Path, default=Path("results"), help="folder that keeps the losses (default: results)")
    training.add_argument(
        "--work", type=Path, help="folder to train in; a part that was killed goes on from there (default: RESULTS/runs/training)"
    )
    training.add_argument("--device", help="cpu, cuda or cuda:<index>")
    return top


def _add_reference(command: argparse.ArgumentParser) -> None:
    command.add_argument("action", choices=("build", "import", "list"))
    command.add_argument("name", nargs="?", help="what suites call the reference")
    command.add_argument("file", nargs="?", type=Path, help="import: a .npz with `mu` and `sigma`")
    command.add_argument("--images", type=Path, help="build: folder of real pictures")
    command.add_argument("--dataset", help="build: file, folder or Hub name that `datasets` opens")
    command.add_argument("--split", default="train", help="build: of the dataset (default: train)")
    command.add_argument("--column", help="build: of the dataset's pictures, where it has several")
    command.add_argument("--encoder", nargs="+", default=[], help="build: encoders to build for; import: the one its maker names")
    command.add_argument("--n", type=int, help="build: only the first N pictures; import: pictures behind the file")
    command.add_argument("--source", help="import: where it was published")


def _models(arguments: argparse.Namespace) -> int:
    from dataclasses import asdict

    from sdbench.models.catalogue import CATALOGUE

    if arguments.json:
        give([asdict(entry) for entry in CATALOGUE.values()])
        return 0
    for entry in CATALOGUE.values():
        fetch = f"{entry.download_gb:.1f} GB to fetch" if entry.download_gb else "nothing to fetch"
        say(
            f"{entry.name:20} {entry.family:7} {entry.architecture or '-':11} {entry.source:9} {fetch:18} {entry.location}  {entry.licence}".rstrip()
        )
    return 0


def _suites(arguments: argparse.Namespace) -> int:
    from sdbench import suites

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
        say(f"{suite.name}@{suite.version:<3} {suite.family or 'part':7} {suite.description}")
        measuring.tell(suite, arguments)
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from sdbench.doctor import checks

    findings = []
    for finding in checks.examine(arguments.results, places(arguments).work):
        findings.append(finding)
        say(f"{'ok ' if finding.fine else 'BAD' if finding.fatal else '-- '} {finding.text}")
    if arguments.json:
        give([vars(finding) for finding in findings])
    return BAD_INPUT if any(finding.fatal and not finding.fine for finding in findings) else 0


def _reference(arguments: argparse.Namespace) -> int:
    from sdbench.commands import reference

    found = reference.run(arguments, places(arguments).work)
    for card in found:
        say(reference.line(card))
    if not found:
        say("no reference was built or imported yet; `scenes` is rendered when it is needed")
    if arguments.json:
        give([card.model_dump() for card in found])
    return 0


def _scenes(arguments: argparse.Namespace) -> int:
    from sdbench.machine import chosen_device, environment
    from sdbench.scenes.training import make, ship

    work = arguments.work or arguments.results / "runs" / "training"
    shop = make.Shop(work, chosen_device(arguments.device))
    if arguments.action == "ship":
        say(f"installed: {ship.ship(shop, environment().model_dump(), arguments.results / 'training')}")
        return 0
    for part in arguments.parts or make.PARTS:
        make.make(part, shop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
