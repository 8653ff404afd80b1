"""Prompts and latents that a suite takes from files, assets or datasets, with their digests."""

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Literal

from sdbench.errors import UserError

COLUMNS = ("prompt", "caption", "text", "clean_prompts", "txt")  # the last two: Vega's Midjourney set, text files beside images
ASSET = "asset:"
_TABLES = (".csv", ".json", ".jsonl", ".parquet", ".tsv")


def asset_name(what: str) -> str | None:
    """The name of the asset in `asset:<name>[/<path>]`; None for other paths."""
    return what.removeprefix(ASSET).partition("/")[0] if what.startswith(ASSET) else None


def is_verified(what: str, digest: str | None) -> bool:
    """Whether the content is checked against a digest: either the suite states one, or the source of the asset states one for each file.

    Raises:
        UserError: there is no such asset.
    """
    from sdbench.assets.weights import is_unverified

    name = asset_name(what)
    return digest is not None or (name is not None and not is_unverified(name))


def locate(what: str, beside: Path) -> str:
    """Resolve a suite's `path` or `file` to the path of an asset, to the path itself or to `beside`; else to `what`, a name on the Hub.

    Args:
        what: `asset:<name>`, `asset:<name>/<path in its folder>`, a path, or a name.
        beside: the same path relative to the folder of suites.

    Raises:
        MissingError, UserError: see `weights.find`.
    """
    if name := asset_name(what):
        from sdbench.assets.weights import find

        rest = what.removeprefix(f"{ASSET}{name}").lstrip("/")
        return str(find(name) / rest)
    return next((str(path) for path in (Path(what), beside) if path.exists()), what)


def locate_tables(what: str, beside: Path) -> tuple[str, ...]:
    """Resolve a suite's `path` as `locate` does, but `asset:<name>/<pattern>` to those of the asset's own files that match, sorted.

    In the Hub's cache, other files of the repository may lie beside them.

    Raises:
        MissingError, UserError: see `weights.find`; or no file of the asset matches.
    """
    asset, _, pattern = what.removeprefix(ASSET).partition("/")
    if not (what.startswith(ASSET) and pattern):
        return (locate(what, beside),)
    from sdbench.assets.catalogue import get_asset
    from sdbench.assets.weights import find

    names = sorted(file.name for file in get_asset(asset).files)
    if not (matching := [name for name in names if PurePosixPath(name).match(pattern)]):
        raise UserError(f"asset {asset!r} has no file {pattern!r}; it has {', '.join(names)}")
    folder = find(asset)
    return tuple(str(folder / name) for name in matching)


def count_prompts(path: Path) -> tuple[Literal["file", "dataset"], int]:
    """What a suite calls this source of prompts, and how many it holds: lines of a text file, or rows of a table or folder.

    Raises:
        UserError: it cannot be read.
    """
    if not path.is_dir() and path.suffix.lower() not in _TABLES:
        return "file", len(read_lines(path))
    from sdbench.assets.sources import read_rows

    return "dataset", read_rows(str(path)).dataset.num_rows


def read_lines(path: Path) -> tuple[str, ...]:
    """Read prompts from a text file, one per line; blank lines are skipped.

    Raises:
        UserError: the file is a table, whose rows would be read as prompts, or cannot be read as UTF-8 text.
    """
    if path.suffix.lower() in _TABLES and path.is_file():
        raise UserError(f"prompts {path} are a table; expected a UTF-8 text file with one prompt per line: write its captions to one")
    try:
        text = path.read_text(encoding="utf-8-sig")  # drops the byte order mark that some editors write
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts {path} cannot be read: {error}; expected a UTF-8 text file with one prompt per line") from error
    return tuple(filter(None, map(str.strip, text.split("\n"))))  # `splitlines` also splits at characters that a prompt may hold


def read_dataset(tables: Sequence[str], split: str, column: str | None, n: int, seed: int) -> tuple[str, ...]:
    """Read prompts from a dataset, or from several in their order: the first `n`, or `n` drawn without replacement if `seed` is not 0.

    Raises:
        MissingError: a Hub dataset is neither cached nor reachable.
        UserError: a dataset cannot be read or has no single column of prompts, they have fewer than `n` rows, or a drawn prompt is empty.
    """
    paths = sorted({path for table in tables for path in (Path(table), *Path(table).glob("*"))})
    stats = {path: path.stat() for path in paths if path.exists()}
    stamps = tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats.items())
    return _read_dataset(tuple(tables), split, column, n, seed, stamps)


@cache  # a table of 30,000 prompts takes seconds
def _read_dataset(
    tables: tuple[str, ...], split: str, column: str | None, n: int, seed: int, _stamps: tuple[tuple[Path, int, int], ...]
) -> tuple[str, ...]:
    import numpy as np

    from sdbench.assets.sources import read_rows, read_texts

    what, prompts = ", ".join(tables), list[str | None]()
    for table in tables:
        source = read_rows(table, split)
        prompts += read_texts(source, source.column(column, COLUMNS, "`column` in the suite's [prompts]"))
    if len(prompts) < n:
        raise UserError(f"prompts {what} hold {len(prompts)} rows; the suite asks for {n}. Add prompts, or lower n")
    rows = range(n) if seed == 0 else np.random.default_rng(seed).permutation(len(prompts))[:n].tolist()
    drawn = [(prompts[row] or "").strip() for row in rows]
    if "" in drawn:
        empty = rows[drawn.index("")]
        raise UserError(f"prompts {what}: row {empty} is empty, found {prompts[empty]!r}; write a prompt, or remove the row")
    return tuple(drawn)


def prompts_digest(prompts: Sequence[str]) -> str:
    """The SHA-256 of the prompts in their order, as a JSON list."""
    return hashlib.sha256(json.dumps(list(prompts)).encode()).hexdigest()


def check_digest(what: str, found: str, expected: str | None) -> None:
    """Check a digest against the one that the suite states, if it states one.

    Raises:
        UserError: they differ.
    """
    if expected not in (None, found):
        raise UserError(
            f"{what} has digest {found}, but the suite states {expected}. Get the right file, or give the suite a new name and this digest."
        )
