"""Digests of content and of files, and atomic writes of files."""

import contextlib
import hashlib
import json
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
