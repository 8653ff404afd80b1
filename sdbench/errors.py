"""Errors that a user can fix: each message names the thing, what was found, what was expected, and the way out."""

import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self


class UserError(Exception):
    """Bad input or a missing file; the command line prints the message and exits with 2."""

    def followed_by(self, sentence: str) -> Self:
        """The same kind of error, whose message goes on with a sentence."""
        return type(self)(f"{str(self).rstrip('.')}. {sentence}")


class MissingError(UserError):
    """Weights or a reference that a metric needs are neither on this disk nor reachable; the metric is then missing, not failed."""


class IncompleteError(UserError):
    """The model is only part of a pipeline; another pipeline has to supply the rest."""


class CompleteError(UserError):
    """The model is a whole pipeline, so that another one can supply nothing."""


class PartialError(UserError):
    """Some of the models could not be measured.

    Attributes:
        folders: the record folders of the others.
    """

    def __init__(self, message: str, folders: Sequence[Path]) -> None:
        super().__init__(message)
        self.folders = folders


class UndecodableError(UserError):
    """An image file is damaged or is not an image; other files may be fine."""


def unknown_name(kind: str, word: str, known: Iterable[str], advice: str = "") -> UserError:
    """An error that says that `word` is unknown, suggests the nearest known name or lists all, and ends with `advice` (full sentences)."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}{'.' if advice else ''}"
    return UserError(f"unknown {kind} {word!r}; {hint} {advice}".rstrip())


def describe_error(error: BaseException) -> str:
    """The type and the first line of another library's error."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), 'no reason given')}"
