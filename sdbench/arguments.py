"""How the command lines read their words, give their answer, and end."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from sdbench.errors import UserError

BAD_INPUT, INTERRUPTED = 2, 130
P = TypeVar("P", bound=argparse.ArgumentParser)


class Parser(argparse.ArgumentParser):
    """A parser whose options are written out: by argparse's own rule `--base` would be read as `--baseline` where there is no `--base`.

    Its subcommands are parsers of this class too.
    """

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **options)


def add_command(commands: "argparse._SubParsersAction[P]", name: str, help_text: str) -> P:
    """A command, whose own help begins with its line of the list."""
    return commands.add_parser(name, help=help_text, description=help_text)


def show(text: object) -> None:
    """A line of the answer, on stdout.

    Raises:
        OSError: it cannot be written.
    """
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            sys.stdout.close()  # what it still holds would make Python end with a code of its own
        raise


def ended(program: str, command: Callable[[], int]) -> int:
    """Run a command => the process's exit code; an error that a user can mend is a message and 2."""
    with contextlib.suppress(ValueError):  # only the main thread may ask for it
        signal.signal(signal.SIGTERM, _interrupt)
    try:
        return command()
    except KeyboardInterrupt:
        sys.stderr.write(f"{program}: interrupted; what was finished is kept, and the same command goes on from there\n")
        return INTERRUPTED
    except UserError as error:
        sys.stderr.write(f"{program}: {error}\n")
        return BAD_INPUT
    except BrokenPipeError:  # whoever reads the answer went away; 0 would say that a gate has passed
        return BAD_INPUT


def _interrupt(*_: object) -> None:
    """A request to end is Ctrl-C's: what a command has started ends with it."""
    raise KeyboardInterrupt
