"""What all commands of `sdbench` share: options, and where results are."""

import argparse
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sdbench.arguments import add_json
from sdbench.errors import UserError
from sdbench.notes import print_note

if TYPE_CHECKING:
    from sdbench.api import Places
    from sdbench.suites import Suite

Command = Callable[[argparse.Namespace], int]  # returns the process's exit code


class AddCommand(Protocol):
    """What the modules of commands add theirs with."""

    def __call__(self, name: str, command: Command, help_text: str, *, common: bool = True) -> argparse.ArgumentParser:
        """Add a command, with the options of `add_common` unless told otherwise, and return its parser."""


def table_width() -> int:
    """Characters in a line of a table: the terminal's width, at most 160; in a pipe 160."""
    return min(160, shutil.get_terminal_size((160, 24)).columns)


def add_completion(command: argparse.ArgumentParser) -> None:
    """Add the options that complete a model or rename it."""
    command.add_argument(
        "--base", help="pipeline that supplies what a bare UNet lacks: a name such as sdxl, a folder or owner/name on the Hub"
    )
    command.add_argument("--lora", help="LoRA to fuse into the model: a file, a folder or a name on the Hub")
    command.add_argument("--name", help="name to give the model in tables")


def add_device(command: argparse.ArgumentParser) -> None:
    """Add the option for the device of models and evaluators."""
    command.add_argument("--device", help="cpu, cuda or cuda:<index> (default: cuda if available, else cpu)")


def add_common(command: argparse.ArgumentParser, *, again: bool = False) -> None:
    """Add the options of all commands; `again` for an action, so that they may stand before or after its name."""

    def default(value: Any) -> Any:
        return argparse.SUPPRESS if again else value

    add_json(command, default(False))
    command.add_argument("--results", type=Path, default=default(Path("results")), help="folder of records (default: results)")


def add_runs(command: argparse.ArgumentParser) -> None:
    """Add the option of the commands that use more than records."""
    command.add_argument("--runs", type=Path, help="folder of images and features (default: RESULTS/runs)")


def check_results(arguments: argparse.Namespace) -> None:
    """Check that there are results to read, for commands that must not create a folder from a misspelt name.

    Raises:
        UserError: there is no such folder.
    """
    if not arguments.results.is_dir():
        raise UserError(
            f"there is no results folder {arguments.results}; name another with --results, or measure something first: sdbench run"
        )


def places_from(arguments: argparse.Namespace) -> "Places":
    """The folders of results and runs, from the options of `add_common` and `add_runs`."""
    from sdbench.api import Places

    return Places(arguments.results, arguments.runs)


def print_requirements(suite: "Suite", arguments: argparse.Namespace, missing: Sequence[str] = ()) -> None:
    """Print what a suite needs that is not on this disk, and what else a run is missing."""
    from sdbench.run import requirements

    for line in [*requirements.describe(suite, places_from(arguments).work), *(f"missing: {what}" for what in missing)]:
        print_note(f"    {line}")
