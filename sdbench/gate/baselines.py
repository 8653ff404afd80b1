"""Baselines by name: `results/baselines.toml` says which record each name stands for, since when, and why.

A name has a table for each time it was moved, the newest last. `sdbench baseline set` appends one; nothing is ever removed.
"""

import re
import tomllib
from datetime import datetime
from pathlib import Path

import tomli_w
from pydantic import TypeAdapter

from sdbench import records
from sdbench.disk import write_bytes
from sdbench.errors import UserError
from sdbench.validation import Table, error_message

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class Move(Table):
    """A name's move to a record.

    Attributes:
        record: the record folder, relative to the folder of results.
        model, suite: the record's model and suite, for readers of the file.
    """

    record: str
    model: str
    suite: str
    when: datetime
    why: str


def read(results: Path) -> dict[str, tuple[Move, ...]]:
    """The moves of each name, the newest last; empty where there is no file.

    Raises:
        UserError: the file is not valid.
    """
    path = _path(results)
    if not path.exists():
        return {}
    try:
        return TypeAdapter(dict[str, tuple[Move, ...]]).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read the baselines in {path}: {error_message(error)}. Mend the file, or restore an older version"
        ) from error


def find(name: str, results: Path) -> Path | None:
    """The record folder that a name stands for now; None where there is no baseline of this name.

    Raises:
        UserError: the record is missing, or the file of baselines is not valid.
    """
    moves = read(results).get(name)
    if not moves:
        return None
    folder = results / moves[-1].record
    if not (folder / "record.json").is_file():
        raise UserError(
            f"baseline {name!r} stands for record {folder}, which is not there; restore it, or move the name with `sdbench baseline set`"
        )
    return folder


def describe(results: Path) -> str:
    """The existing names, for messages.

    Raises:
        UserError: see `read`.
    """
    names = ", ".join(read(results))
    return f"{_path(results)} has {names}" if names else f"there is no {_path(results)}; name its folder with --results"


def set_baseline(name: str, folder: Path, why: str, results: Path) -> Move:
    """Let a name stand for a record from now on, and return that move.

    Raises:
        UserError: the record is not an intact one under `results`, there is no reason, the name reads like a path or flag, or the file of
            baselines is not valid or cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is not a valid baseline name; use letters, digits, '.', '_' and '-', such as 'production'")
    if not why.strip():
        raise UserError("say why the baseline moves: --why TEXT")
    record, _ = records.read(folder)
    try:
        relative = folder.resolve().relative_to(results.resolve())
    except ValueError:
        raise UserError(f"record {folder} is not in {results}, and {_path(results)} can only name records there") from None
    when = records.now().replace(microsecond=0)
    move = Move(record=relative.as_posix(), model=record.model.name, suite=record.suite.title, when=when, why=why.strip())
    known = read(results)
    known[name] = (*known.get(name, ()), move)
    content = {each: [one.model_dump() for one in moves] for each, moves in sorted(known.items())}
    write_bytes(_path(results), tomli_w.dumps(content).encode())
    return move


def _path(results: Path) -> Path:
    return results / "baselines.toml"
