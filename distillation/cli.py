"""The `distillation` command line. A command imports what it needs only when it runs."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from distillation.commands import ablation, data, planning, sensitivity, students
from distillation.commands.options import Command
from sdbench import __version__
from sdbench.arguments import Parser, add_command, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the process's exit code."""
    options = build_parser().parse_args(argv)
    command: Command = options.command
    return run_command("distillation", partial(command, options))


def build_parser() -> argparse.ArgumentParser:
    """The parser, with all commands and their options."""
    top = Parser("distillation", description="Make SSD-1B, Vega and similar students from a teacher: prune it, then train what is left.")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Command, help_text: str) -> argparse.ArgumentParser:
        added = add_command(commands, name, help_text)
        added.set_defaults(command=command)
        return added

    for module in (data, sensitivity, planning, students, ablation):
        module.add_commands(add)
    return top


if __name__ == "__main__":
    sys.exit(main())
