"""Errors a user can meet and mend: each names the thing, what was found, what was expected, and the way out."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input or a missing file; the command line prints the message and exits with 2."""


class MissingError(UserError):
    """What a number needs from outside, weights or a reference, is neither here nor reachable; the number is then missing, not failed."""


class IncompleteError(UserError):
    """A model is there, but only a part of a pipeline; another has to lend the rest."""


class UndecodableError(UserError):
    """A picture is there, but is none or is damaged; others may be whole."""


def unknown(kind: str, word: str, known: Iterable[str], advice: str = "") -> UserError:
    """An error for a name that is not in a closed list, with the nearest one that is, and advice in sentences of its own."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}{'.' if advice else ''}"
    return UserError(f"unknown {kind} {word!r}; {hint} {advice}".rstrip())
