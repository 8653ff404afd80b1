"""What both command lines share: the argument parser, answers on stdout, and exit codes."""

import argparse
import codecs
import contextlib
import errno
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from sdbench.errors import UserError, describe_error
from sdbench.notes import print_note, printable

BAD_INPUT, INTERRUPTED = 2, 130
_ENDING = ("SIGTERM", "SIGHUP")  # Windows has no SIGHUP
_SIGNS = {"↑": "^", "↓": "v", "±": "+-", "─": "-"} | {sign: f"*{digit}" for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
P = TypeVar("P", bound=argparse.ArgumentParser)


class Parser(argparse.ArgumentParser):
    """A parser that refuses abbreviated options: argparse would read `--base` as `--baseline` where there is no `--base`.

    It also refuses two different values of one option, unless the option collects its values: argparse would drop all but the last. Empty
    values are refused too: they are variables that a script did not set, and would name the current folder. Its subcommands are parsers of
    this class, and refuse unknown arguments themselves: argparse would let the top parser do it.
    """

    def __init__(self, prog: str | None = None, **options: Any) -> None:
        super().__init__(prog, allow_abbrev=False, **options)
        self.given: dict[argparse.Action, Any] = {}
        for action in (None, "store"):
            self.register("action", action, _StoreOnce)

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        """Parse arguments, as argparse does, all of which must be known; whatever goes wrong is exit code 2: 1 is a gate's verdict."""
        self.given.clear()
        try:
            namespace, unknown = super().parse_known_args(*args, **options)
        except Exception as error:  # noqa: BLE001
            self.error(f"the arguments cannot be read: {describe_error(error)}")
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        if "" in arg_strings and action.nargs != argparse.PARSER:  # the arguments of a subcommand, which its own parser checks
            raise argparse.ArgumentError(action, "the value is empty; if it is that of a variable, set the variable")
        return super()._get_values(action, arg_strings)

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line, which the usage would hide."""
        self.exit(BAD_INPUT, printable(f"{self.prog}: error: {message}; see `{self.prog} --help`\n"))


class _StoreOnce(argparse.Action):
    """Store an option's value; it is an error if the option already has another one."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        assert isinstance(parser, Parser)
        if option and self in parser.given and parser.given[self] != values:
            advice = "give all its values after one" if self.nargs else "give one of them"
            parser.error(f"{option} is given twice: {parser.given[self]} and {values}; {advice}")
        parser.given[self] = values
        setattr(namespace, self.dest, values)


def add_command(commands: "argparse._SubParsersAction[P]", name: str, help_text: str) -> P:
    """Add a command and return its parser; `help_text` describes it in the list of commands and at the top of its own help."""
    return commands.add_parser(name, help=help_text, description=help_text)


def add_json(command: argparse.ArgumentParser, default: Any = False) -> None:
    """Add `--json`."""
    command.add_argument("--json", action="store_true", default=default, help="print the answer as JSON on stdout")


def add_device(command: argparse.ArgumentParser) -> None:
    """Add `--device`; `machine.choose_device` makes a device of it."""
    command.add_argument("--device", help="cpu, cuda or cuda:<index> (default: cuda if available, else cpu)")


def add_part(command: argparse.ArgumentParser, help_text: str) -> None:
    """Add `--part K/N`, for N commands that share a folder; the option is None where it is not given."""
    command.add_argument("--part", type=_parse_part, metavar="K/N", help=help_text)


def _parse_part(text: str) -> tuple[int, int]:
    """The numbers in `2/8`."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a part K/N with K from 1 to N, such as 2/8")
    return int(match[1]), int(match[2])


def show(text: object) -> None:
    """Print a line of the answer to stdout, made `printable`.

    Raises:
        OSError: it cannot be written.
    """
    if sys.stdout is None:  # it was closed when Python started
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), "stdout")
    try:
        sys.stdout.write(f"{printable(text)}\n")
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):
            sys.stdout.close()  # otherwise Python fails to flush it at exit, and ends with exit code 120
        raise


def print_answer(text: str, arguments: argparse.Namespace) -> None:
    """Print a command's answer on stdout, where it can be piped; on stderr where `--json` puts the answer for machines on stdout."""
    (print_note if arguments.json else show)(text)


def print_json(content: Any, arguments: argparse.Namespace) -> None:
    """Print a command's answer for machines, as JSON on stdout, where `--json` asks for it."""
    if arguments.json:
        show(json.dumps(content, indent=1, default=str))


def run_command(program: str, command: Callable[[], int]) -> int:
    """Run a command and return the exit code: 2, with a message on stderr, for a `UserError` or a file that fails; 130 for an interrupt."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a caller may have put something else there
        sys.stdout.reconfigure(errors="sdbench.signs")  # a table in ASCII is better than none; JSON always is
    with contextlib.suppress(ValueError):  # only the main thread may set them
        for number in signal.Signals:
            if number.name in _ENDING and signal.getsignal(number) is signal.SIG_DFL:  # nohup has SIGHUP ignored
                signal.signal(number, _interrupt)
    try:
        return command()
    except KeyboardInterrupt:
        code, message = INTERRUPTED, "interrupted; what was finished is kept, and the same command continues from there"
    except UserError as error:
        code, message = BAD_INPUT, str(error)
    except BrokenPipeError:  # the reader of stdout has gone; 0 would mean that a gate has passed
        return BAD_INPUT
    except OSError as error:  # a path that is too long, say, or a disk that is full, where no command explains it better
        what = (f"{error.filename}: " if error.filename else "") + (error.strerror or describe_error(error))
        code, message = BAD_INPUT, f"{what}. What was finished is kept; put this right, and run the same command again"
    with contextlib.suppress(OSError):  # stderr may be gone, but the exit code must not be lost
        print_note(f"{program}: {message}")  # here, the error and with it the progress bars that it interrupted are gone
    return code


def _replace_signs(error: UnicodeError) -> tuple[str, int]:
    """Replace the signs of tables that a stream cannot encode by similar ones of ASCII, and all else by `?`."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(_SIGNS.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


codecs.register_error("sdbench.signs", _replace_signs)


def _interrupt(*_: object) -> None:
    """Treat a signal that ends the process as Ctrl-C, so that what a command has started ends with it."""
    raise KeyboardInterrupt
