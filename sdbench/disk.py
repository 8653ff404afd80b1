"""Digests of content and of files, sizes in words, atomic writes, locks between commands, and what earlier runs wrote."""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from sdbench.errors import UserError, describe_error
from sdbench.notes import print_note
from sdbench.validation import error_message


def digest(content: Any) -> str:
    """The first 24 hex digits of the SHA-256 of JSON content, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def file_digest(path: Path) -> str:
    """The SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def size_text(size_bytes: int) -> str:
    """A size to three digits, in bytes or multiples of 1000 of them: 95670000 -> `95.7 MB`."""
    power = int(f"{size_bytes:.2e}".partition("e")[2]) // 3  # of the rounded size, so that 999,999 bytes are 1 MB
    return f"{size_bytes / 1000**power:.3g} {('bytes', 'kB', 'MB', 'GB', 'TB', 'PB')[power]}"


def read_json(path: Path, parse: Callable[[Any], Any] = lambda content: content, *, part: Path | None = None) -> Any:
    """The content of a JSON file that an earlier run wrote.

    Args:
        parse: makes the result from the content; an error of its means that the file is damaged.
        part: what to move away to have it made again where the file is damaged; by default its folder.

    Raises:
        UserError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        return parse(json.loads(path.read_bytes()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:  # not JSON, not UTF-8, or without what `parse` looks for
        raise UserError(
            f"{path} is damaged ({describe_error(error)}); restore it, or move {part or path.parent} away to start that part again"
        ) from error


def read_json_lines(path: Path, parse: Callable[[bytes], Any] = json.loads) -> Iterator[Any]:
    """The complete lines of a log in JSON lines, which a killed run may have left with half a line at its end; none if there is no file.

    Args:
        path: the log.
        parse: gives the content of a line; a ValueError of its means that the line is damaged.

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
                yield parse(line)
            except ValueError as error:
                raise UserError(
                    f"line {number} of {path} is damaged ({error_message(error)}); remove that line, and run the same command again"
                ) from error


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file atomically, also where the machine goes down, making its folder where needed, and return its path.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.part")  # no process id: two containers may share one
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())  # else a machine that goes down within seconds leaves an empty file of this name
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(
            f"cannot write {path}: {error.strerror}. What was made so far is kept; free some space, make the folder writable, or name "
            "another folder."
        ) from error
    return path


def keep_earlier(path: Path, differences: Iterable[str]) -> None:
    """Rename a result that took hours to make, and say so, before one that differs in these settings takes its place."""
    kept = path.with_stem(f"{path.stem}-{file_digest(path)[:8]}")
    path.rename(kept)
    print_note(f"the earlier result of {path.stem} differs in: {', '.join(differences)}; it is now in {kept}")


def write_json(path: Path, content: Any) -> None:
    """Write JSON content, a line for each item, as `write_bytes` writes.

    Raises:
        UserError: see `write_bytes`.
    """
    write_bytes(path, json.dumps(content, indent=1).encode() + b"\n")


def write_json_lines(path: Path, rows: Iterable[Any]) -> None:
    """Write a file of JSON lines, each a row, as `write_bytes` writes.

    Raises:
        UserError: see `write_bytes`.
    """
    write_bytes(path, "".join(map(json_line, rows)).encode())


def json_line(row: Any) -> str:
    """A row of a file of JSON lines, with the end of the line."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def load_array(path: Path, mmap_mode: Literal["r", "r+"] | None = None) -> Any:
    """The array in a `.npy` file that an earlier run wrote.

    Raises:
        UserError: it is damaged.
        OSError: it cannot be read.
    """
    try:
        if mmap_mode == "r+":
            np.load(path, mmap_mode="r")  # "r+" would lengthen a file that was cut short
        return np.load(path, mmap_mode=mmap_mode)
    except (ValueError, EOFError, TokenError) as error:  # cut short, empty, or with a header that is not Python
        raise UserError(f"{path} is damaged ({error}); remove it, and run the same command again, which makes it again") from error


def create_array(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> "np.memmap[Any, Any]":
    """Create a `.npy` file to be filled through memory, and return its array, zeros; on Linux its space on the disk is taken at once.

    Without that, a disk that becomes full would end the process with SIGBUS, without a message.

    Raises:
        UserError: the folder cannot be written, or has too little space.
    """
    try:
        array = np.lib.format.open_memmap(path, "w+", dtype, shape)
        if sys.platform == "linux":
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink()
        needed = size_text(int(np.prod(shape)) * np.dtype(dtype).itemsize)
        raise UserError(f"cannot create {path}, {needed}: {error.strerror}. Make room, or name another folder") from error
    return array


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file while open, alone among all processes; first wait, with a note, for one that holds it.

    The lock of a process ends with it, however it ends; the file stays.

    Raises:
        UserError: the file cannot be written, or its file system has no locks.
    """
    lock = FileLock(path)  # makes the folder too
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print_note(f"waiting for another command that works in {path.parent}")
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise UserError(f"cannot lock {path}: {error}. Make its folder writable, or name another") from error
    try:
        yield
    finally:
        lock.release()
