"""What a suite takes from files: prompts through `datasets`, and a latent; found, checked, and named by their digest."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from sdbench.errors import UserError

COLUMNS = ("prompt", "caption", "text")
ASSET = "asset:"


def asset(what: str) -> str | None:
    """The name of the asset that a `path` or `file` stands for, if it stands for one."""
    return what.removeprefix(ASSET).partition("/")[0] if what.startswith(ASSET) else None


def is_verified(what: str, digest: str | None) -> bool:
    """Whether a list is known to be the one that was meant: the suite states its digest, or the asset's files have stated ones."""
    from sdbench.assets.weights import unverified

    name = asset(what)
    return digest is not None or (name is not None and not unverified(name))


def located(what: str, beside: Path) -> str:
    """What a suite's `path` or `file` stands for: an asset, a path here or beside the suites; else itself, a name on the Hub.

    Args:
        what: `asset:<name>`, `asset:<name>/<path in its folder>`, a path, or a name.
        beside: where it would lie beside the suites.

    Raises:
        MissingError: an asset that is neither here nor reachable.
    """
    if name := asset(what):
        from sdbench.assets.weights import find

        rest = what.removeprefix(f"{ASSET}{name}").lstrip("/")
        return str(find(name) / rest) if rest else str(find(name))
    return next((str(place) for place in (Path(what), beside) if place.exists()), what)


def lines(path: Path) -> tuple[str, ...]:
    """Prompts of a text file, one a line; blank lines are left out.

    Raises:
        UserError: it cannot be read as UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # without the mark that some editors put first
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts {path} cannot be read as UTF-8 text ({error}); save them so, a prompt a line") from error
    return tuple(filter(None, map(str.strip, text.split("\n"))))  # a prompt may hold what `splitlines` takes for an end


@cache  # a table of 30,000 prompts takes seconds
def from_dataset(what: str, split: str, column: str | None, n: int, seed: int) -> tuple[str, ...]:
    """Prompts of a table: the first `n`, or, where `seed` is not 0, `n` drawn without replacement.

    Raises:
        MissingError: a Hub dataset that is neither cached nor reachable.
        UserError: the table cannot be read, its column is not clear, it holds fewer than `n`, or one of them is empty.
    """
    import numpy as np

    from sdbench.assets.sources import read_table, texts

    table = read_table(what, split)
    found = texts(table, table.column(column, COLUMNS, "`column` in the suite's [prompts]"))
    if len(found) < n:
        raise UserError(f"prompts {what} hold {len(found)} rows; the suite asks for {n}")
    rows = range(n) if seed == 0 else np.random.default_rng(seed).permutation(len(found))[:n].tolist()
    drawn = [(found[row] or "").strip() for row in rows]
    if "" in drawn:
        empty = rows[drawn.index("")]
        raise UserError(f"prompts {what}: row {empty} is empty, found {found[empty]!r}; write a prompt, or take the row out")
    return tuple(drawn)


def digest(prompts: Sequence[str]) -> str:
    """SHA-256 of prompts in their order, as a JSON list."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check(what: str, found: str, expected: str | None) -> None:
    """See that a digest is the one that the suite states, if it states one.

    Raises:
        UserError: it is another.
    """
    if expected not in (None, found):
        raise UserError(
            f"{what} has digest {found}, but the suite states {expected}. Get the right file, or name the suite anew with its digest."
        )
