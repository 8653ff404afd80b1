"""Notes for people, on stderr: progress, and what a command did besides its answer, which is on stdout."""

import os
import sys
import time
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def printable(text: object) -> str:
    """Text for a terminal, its control characters but tabs and line ends written as in Python.

    Names and prompts in files may hold some, which could move the cursor and show another verdict.
    """
    return str(text).translate(_ESCAPES)


def print_note(text: str) -> None:
    """Print a note on stderr, made `printable`, above the progress bars that are there; nowhere if stderr was closed."""
    if sys.stderr is not None:
        tqdm.write(printable(text), file=sys.stderr)
        sys.stderr.flush()


def progress(items: Iterable[Any] | None = None, *, disable: bool = False, **options: Any) -> Any:
    """A progress bar of `tqdm` on stderr, redrawn once a second, or once a minute in a log, which keeps all that is drawn.

    A stream that replaces stderr, as in notebooks, is no log. The environment variables TQDM_MININTERVAL, in seconds, and TQDM_DISABLE
    overrule that.

    Args:
        items: what is iterated over, if the bar is to count them itself.
        options: those of `tqdm`, such as `desc`, `total` and `unit`.
    """
    stream = sys.stderr
    is_log = stream is not None and not stream.isatty() and stream is sys.__stderr__
    kind, interval_s = (_BarInLog, 60) if is_log else (tqdm, 1)
    if disable or stream is None:  # False would overrule TQDM_DISABLE
        options["disable"] = True
    return kind(items, mininterval=float(os.environ.get("TQDM_MININTERVAL", interval_s)), **options)


class _BarInLog(tqdm):  # type: ignore[type-arg]  # tqdm takes none at run time
    """A bar that keeps its interval where a redraw is forced too, by a new postfix or by a note that cleared the bar."""

    drawn_at = -float("inf")

    def refresh(self, *arguments: Any, **options: Any) -> None:
        """Draw the bar again if its interval has passed."""
        if (now := time.monotonic()) - self.drawn_at >= self.mininterval:
            self.drawn_at = now
            super().refresh(*arguments, **options)
