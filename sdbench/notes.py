"""Notes for people, on stderr: progress, and what a command did besides its answer, which is on stdout."""

import sys

from tqdm import tqdm

_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def printable(text: object) -> str:
    """Text for a terminal, its control characters but tabs and line ends written as in Python.

    Names and prompts in files may hold some, which could move the cursor and show another verdict.
    """
    return str(text).translate(_ESCAPES)


def print_note(text: str) -> None:
    """Print a note on stderr, made `printable`, above the progress bars that are there."""
    tqdm.write(printable(text), file=sys.stderr)
    sys.stderr.flush()
