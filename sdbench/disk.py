"""What goes on disk: named by its content, and written whole or not at all."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any
from uuid import uuid4

from sdbench.errors import UserError


def digest(content: Any) -> str:
    """SHA-256 of JSON content, 24 hex digits: enough to name things."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file so that it is either there whole or not at all => its path.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    beside = path.with_name(f".{path.name}.{uuid4().hex}.part")  # two containers may have one process number
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror}. What was made so far is kept; make room or the folder writable, or name another folder."
        ) from error
    return path
