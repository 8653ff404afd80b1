"""Baselines by name: `results/baselines.toml` says which record each name stands for, since when, and why.

A name has a table for each time it was moved or removed, the newest last. `sdbench baseline set` and `remove` append one; nothing is
ever deleted.
"""

import difflib
import operator
import re
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Self

import tomli_w
from pydantic import Field, TypeAdapter, model_validator

from sdbench import records
from sdbench.disk import locked, write_bytes
from sdbench.errors import UserError, unknown_name
from sdbench.models.catalogue import CATALOGUE
from sdbench.validation import Table, error_message

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")


class Move(Table):
    """A name's move to a record, or its removal.

    Attributes:
        record: the record folder, relative to the folder of results.
        model, suite: the record's model and suite, for readers of the file.
        removed: whether the name stands for nothing from now on; then there is no record.
    """

    record: str = Field(default="", exclude_if=operator.not_)
    model: str = Field(default="", exclude_if=operator.not_)
    suite: str = Field(default="", exclude_if=operator.not_)
    removed: bool = Field(default=False, exclude_if=operator.not_)
    when: datetime
    why: str

    @model_validator(mode="after")
    def _check_record(self) -> Self:
        if self.removed == bool(self.record):
            raise ValueError("a name moves to a record, or it is removed: give exactly one of 'record' and 'removed'")
        return self


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
            f"cannot read the baselines in {path}: {error_message(error)}. Fix the file, or restore an older version"
        ) from error


def find(name: str, results: Path) -> Path | None:
    """The record folder that a name stands for now; None where there is no baseline of this name.

    Raises:
        UserError: the record is missing, or the file of baselines is not valid.
    """
    if (move := _current(results).get(name)) is None:
        return None
    folder = results / move.record
    if not (folder / "record.json").is_file():
        raise UserError(
            f"baseline {name!r} stands for record {folder}, which does not exist; restore it, or move the name with `sdbench baseline set`"
        )
    return folder


def describe(results: Path, word: str) -> str:
    """The existing names, and the one nearest to a word that is none, for messages.

    Raises:
        UserError: see `read`.
    """
    if names := _current(results):
        near = difflib.get_close_matches(word, names, 1)
        return f"{_path(results)} has {', '.join(names)}" + (f"; did you mean {near[0]!r}?" if near else "")
    found = f"{_path(results)} names none" if _path(results).exists() else f"there is no {_path(results)}"
    return f"{found}; name the folder of results with --results, or set a baseline: sdbench baseline set NAME RECORD --why TEXT"


def set_baseline(name: str, folder: Path, why: str, results: Path) -> Move:
    """Make a name stand for a record from now on, and return that move.

    Raises:
        UserError: the record is not an intact one under `results`, there is no reason, the name reads like a path or flag or belongs to a
            model of the catalogue, or the file of baselines is not valid or cannot be written.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is not a valid baseline name; use letters, digits, '.', '_' and '-', a letter or digit first, such as 'production'"
        )
    if name in CATALOGUE:
        raise UserError(
            f"{name!r} is a model in the catalogue, which a baseline of the same name would hide; choose another name, such as 'production'"
        )
    record, _ = records.read(folder)
    try:
        relative = folder.resolve().relative_to(results.resolve())
    except ValueError:
        raise UserError(f"record {folder} is outside {results}, and {_path(results)} can name only records inside it") from None
    move = Move(record=relative.as_posix(), model=record.model.name, suite=record.suite.title, when=_now(), why=why.strip())
    return _append(name, move, results)


def remove_baseline(name: str, why: str, results: Path) -> Move:
    """Make a name stand for nothing from now on, and return that move; its history stays.

    Raises:
        UserError: there is no such name, there is no reason, or the file of baselines is not valid or cannot be written.
    """
    if name not in (known := _current(results)):
        raise unknown_name("baseline", name, known) if known else UserError(f"no baseline {name!r} to remove: {describe(results, name)}")
    return _append(name, Move(removed=True, when=_now(), why=why.strip()), results)


def _current(results: Path) -> dict[str, Move]:
    """The move of each name that stands for a record now."""
    return {name: moves[-1] for name, moves in read(results).items() if moves and not moves[-1].removed}


def _append(name: str, move: Move, results: Path) -> Move:
    if not move.why:
        raise UserError("say why the baseline changes: --why TEXT")
    with locked(_path(results).with_name(".baselines.lock")):  # two commands may move names at once
        known = read(results)
        known[name] = (*known.get(name, ()), move)
        content = {each: [one.model_dump() for one in moves] for each, moves in sorted(known.items())}
        write_bytes(_path(results), tomli_w.dumps(content).encode())
    return move


def _now() -> datetime:
    return records.now().replace(microsecond=0)


def _path(results: Path) -> Path:
    return results / "baselines.toml"
