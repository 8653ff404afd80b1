"""The command line. Slow imports wait until a command needs them.

A command's answer goes to stdout, so that `sdbench models | grep vega` works. With `--json`, the answer is JSON on stdout, and any text
goes to stderr. Progress and notes always go to stderr.
"""

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from sdbench import __version__
from sdbench.arguments import Parser, add_command, run_command
from sdbench.commands import cleaning, gating, listing, measuring, reference, scenes, showing
from sdbench.commands.console import Command, add_common


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

    def add(name: str, command: Command, help_text: str, *, common: bool = True) -> argparse.ArgumentParser:
        added = add_command(commands, name, help_text)
        added.set_defaults(command=command)
        if common:
            add_common(added)
        return added

    for module in (measuring, gating, showing, listing, cleaning, reference, scenes):
        module.add_commands(add)
    return top


if __name__ == "__main__":
    sys.exit(main())
