"""What all commands share: lines for people on stderr, answers for machines on stdout, and where results lie."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdbench.errors import UserError

if TYPE_CHECKING:
    from sdbench.api import Places

Command = Callable[[argparse.Namespace], int]  # => the process's exit code
Add = Callable[[str, Command, str], argparse.ArgumentParser]  # name, function and help of a command => its parser


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def give(content: Any) -> None:
    """The answer for machines."""
    print(json.dumps(content, indent=1, default=str), flush=True)


def add_completion(command: argparse.ArgumentParser) -> None:
    """Options that say more of a model which one word does not name whole."""
    command.add_argument("--base", help="pipeline that completes a bare UNet")
    command.add_argument("--lora", help="LoRA file, folder or Hub name to fuse")
    command.add_argument("--name", help="what tables call the model")


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


def places(arguments: argparse.Namespace) -> "Places":
    """Where results and runs lie, by the options of `add_common` and `add_runs`."""
    from sdbench.api import Places

    return Places(arguments.results, arguments.runs)
