"""Digests of content and of files, atomic writes of files, and reading the JSON that earlier runs wrote."""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

from sdbench.errors import UserError


def digest(content: Any) -> str:
    """The first 24 hex digits of the SHA-256 of JSON content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def file_digest(path: Path) -> str:
    """The SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """The content of a JSON file that an earlier run wrote.

    Raises:
        UserError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:  # not JSON, or not UTF-8
        raise UserError(f"{path} is damaged ({error}); restore it, or move {path.parent} away to start that part again") from error


def read_json_lines(path: Path) -> Iterator[Any]:
    """The complete lines of a log in JSON lines, which a killed run may have left with half a line at its end; none if there is no file.

    Raises:
        UserError: a line is damaged.
        OSError: the file cannot be read.
    """
    if not path.exists():
        return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise UserError(
                    f"line {number} of {path} is damaged ({error}); remove that line, and run the same command again"
                ) from error


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file atomically, making its folder where needed, and return its path.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")  # no process id: two containers may share one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror}. What was made so far is kept; free some space, make the folder writable, or name another folder."
        ) from error
    return path
