"""What all commands share: answers on stdout, notes on stderr, and where results lie."""

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbench.arguments import show
from sdbench.errors import UserError

if TYPE_CHECKING:
    from sdbench.api import Places

Command = Callable[[argparse.Namespace], int]  # => the process's exit code
Add = Callable[[str, Command, str], argparse.ArgumentParser]  # name, function and help of a command => its parser


def print_note(text: str) -> None:
    """A note for people."""
    print(text, file=sys.stderr, flush=True)


def print_answer(text: str, arguments: argparse.Namespace) -> None:
    """What a command that only answers was asked for: on stdout, where it can be piped, unless the one for machines goes there."""
    (print_note if arguments.json else show)(text)


def table_width() -> int:
    """Characters that a table may take in a line: the terminal's, at most 160; in a pipe 160."""
    return min(160, shutil.get_terminal_size((160, 24)).columns)


def print_json(content: Any) -> None:
    """The answer for machines."""
    show(json.dumps(content, indent=1, default=str))


def add_completion(command: argparse.ArgumentParser) -> None:
    """Options that say more of a model which one word does not name whole."""
    command.add_argument("--base", help="pipeline that completes a bare UNet")
    command.add_argument("--lora", help="LoRA file, folder or Hub name to fuse")
    command.add_argument("--name", help="what tables call the model")


def add_device(command: argparse.ArgumentParser) -> None:
    """Where models and evaluators run."""
    command.add_argument("--device", help="cpu, cuda or cuda:<index> (default: cuda where there is one)")


def add_common(command: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Options of all commands; `again` of an action, which may be given them before its name or behind it."""

    def default(value: Any) -> Any:
        return argparse.SUPPRESS if again else value

    command.add_argument("--json", action="store_true", default=default(False), help="answer as JSON on stdout")
    command.add_argument("--results", type=Path, default=default(Path("results")), help="folder of records (default: results)")


def add_runs(command: argparse.ArgumentParser) -> None:
    """The option of the commands that keep or look for more than records."""
    command.add_argument("--runs", type=Path, help="folder of pictures and features (default: RESULTS/runs)")


def check_results(arguments: argparse.Namespace) -> None:
    """See that there are results to read: whoever only reads them must not make an empty folder of a misspelt name.

    Raises:
        UserError: the folder is not there.
    """
    if not arguments.results.is_dir():
        raise UserError(
            f"there is no folder of results {arguments.results}; name another with --results, or measure something first: sdbench run"
        )


def places_from(arguments: argparse.Namespace) -> "Places":
    """Where results and runs lie, by the options of `add_common` and `add_runs`."""
    from sdbench.api import Places

    return Places(arguments.results, arguments.runs)
