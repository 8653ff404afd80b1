"""Record folders: writing, reading and finding them."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import ValidationError

from sdbench.errors import UserError
from sdbench.records.content import SCHEMA_VERSION, Record, SuiteId
from sdbench.records.scores import Scores
from sdbench.validation import error_message

MAX_THUMBNAILS = 64
OWN_ENDING, TEACHER_ENDING = ".png", ".teacher.png"  # of thumbnails, after the image's name


def write(record: Record, scores: Scores, thumbnails: Mapping[str, bytes], results: Path) -> Path:
    """Write a record folder beside its final place, rename it, and return its path.

    Args:
        thumbnails: PNG bytes by file name, `<name>.png` (see `Scores.image_names`), or for the teacher's image `<name>.teacher.png`; the
            first 64 are kept.

    Raises:
        UserError: the folder cannot be written.
    """
    parent = results / record.family / record.suite.title / record.model.name
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=parent) as temporary:
            folder = Path(temporary) / "record"
            (folder / "images").mkdir(parents=True)
            (folder / "record.json").write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
            scores.write(folder / "scores.parquet")
            for path in [*folder.glob("*.*")]:  # else a machine that goes down within seconds leaves them empty
                with path.open("r+b") as file:
                    os.fsync(file.fileno())
            for name, png in list(thumbnails.items())[:MAX_THUMBNAILS]:
                (folder / "images" / name).write_bytes(png)
            final = parent / digest_of(folder)
            if not final.exists():
                folder.replace(final)
    except OSError as error:
        raise UserError(
            f"cannot write the record of {record.model.name!r} under {parent}: {error}. Make it writable, or name another folder with "
            "--results."
        ) from error
    return final


def read(folder: Path) -> tuple[Record, Scores]:
    """Load a record folder.

    Raises:
        UserError: it is not a record, has another schema version, or was changed after it was written.
    """
    scores = read_scores(folder)
    return read_record(folder), scores


def teacher_digest(folder: Path, record: Record) -> str:
    """How values that compare with a teacher name its record: by the digest of its weights, or its own where it has images alone."""
    return (record.model.weights_digest or folder.name)[:24]


def thumbnail_files(folder: Path, *, of_teacher: bool = False) -> dict[str, Path]:
    """The thumbnails in a record's folder by the image's name: the model's, or those of the teacher that are beside some of the model's."""
    ending = TEACHER_ENDING if of_teacher else OWN_ENDING
    paths = sorted((folder / "images").glob(f"*{OWN_ENDING}"))
    return {path.name.removesuffix(ending): path for path in paths if path.name.endswith(TEACHER_ENDING) == of_teacher}


def read_record(folder: Path) -> Record:
    """Load `record.json` and check the digest of the whole folder; the scores, which take far longer, are not parsed.

    Raises:
        UserError: see `read`.
    """
    try:
        record = Record.model_validate_json((folder / "record.json").read_text(encoding="utf-8"))
        digest = digest_of(folder)
    except (OSError, ValueError) as error:  # pydantic's errors are ValueErrors
        raise _unreadable(folder, error) from error
    if folder.resolve().name != digest:
        raise UserError(
            f"record {folder} was changed after it was written: its content has digest {digest}. Restore it, or delete the folder and run "
            "the suite again."
        )
    return record


def read_scores(folder: Path) -> Scores:
    """Load the per-image columns of a record folder.

    Raises:
        UserError: they cannot be read.
    """
    try:
        return Scores.read(folder / "scores.parquet")
    except (OSError, KeyError, ValueError) as error:  # Arrow's errors are ValueErrors
        raise _unreadable(folder, error) from error


def _unreadable(folder: Path, error: Exception) -> UserError:
    if not isinstance(error, PermissionError) and not (folder / "record.json").exists():
        return UserError(f"{folder} is not a record: there is no {folder / 'record.json'}. {suggest_record_in(folder)}".rstrip())
    what = f"record {folder} cannot be read (record.json and scores.parquet of schema {SCHEMA_VERSION})"
    return UserError(f"{what}: {error_message(error)}. {_advise_on(error)}")


def _advise_on(error: Exception) -> str:
    """What to do about a record that cannot be read."""
    if isinstance(error, PermissionError):
        return "Make it readable"
    if isinstance(error, ValidationError) and any(finding["loc"] == ("schema_version",) for finding in error.errors()):
        return "It is of another version of sdbench: update sdbench"
    return "Restore it, or delete the folder"


def suggest_record_in(folder: Path) -> str:
    """Advice for a folder that holds records but is not one itself: the newest of them; empty where it holds none.

    Raises:
        UserError: see `read`.
    """
    found = [(read_record(path.parent).created, path.parent) for path in folder.glob("*/record.json")]
    if len(found) == 1:
        return f"It holds one; name that: {found[0][1]}"
    return f"It holds {len(found)} records; name one of them, such as the newest, {max(found)[1]}" if found else ""


def newest_per_model(results: Path, family: str | None = None, name: str | None = None) -> list[tuple[Path, Record]]:
    """The newest record of each (family, suite, model, label, machine class), in a stable order; of one family or model name, if given.

    Raises:
        OSError: see `folders`.
        UserError: see `read`.
    """
    rows: dict[tuple[str | int, ...], tuple[Path, Record]] = {}
    for folder in folders(results, family, name):
        record = read_record(folder)
        suite, model = record.suite, record.model
        key = (record.family, suite.name, suite.version, model.name, record.machine.machine_class, model.label, suite.digest)
        if key not in rows or rows[key][1].created < record.created:
            rows[key] = (folder, record)
    return [rows[key] for key in sorted(rows)]


def folders(results: Path, family: str | None = None, name: str | None = None) -> list[Path]:
    """All record folders, of one family or of all, of models of one name or of all.

    Raises:
        OSError: a folder cannot be read.
    """
    return _record_folders(results, family or "*", "*@*", name or "*")


def find(results: Path, family: str, suite: SuiteId, name: str, label: str = "") -> list[tuple[Path, Record]]:
    """A model's records under exactly this suite, digest included, oldest first; records of random weights have a label.

    Raises:
        OSError: see `folders`.
        UserError: see `read`.
    """
    found = [(folder, read_record(folder)) for folder in _record_folders(results, family, suite.title, name)]
    matching = [(folder, record) for folder, record in found if (record.suite, record.model.label) == (suite, label)]
    return sorted(matching, key=lambda pair: pair[1].created)


def _record_folders(results: Path, family: str, suite: str, name: str) -> list[Path]:
    """The record folders whose path matches these patterns; `Path.glob` would leave out, silently, what may not be read."""
    found = [results]
    for pattern in (family, suite, name, "*", "record.json"):
        found = [path / entry for path in found for entry in _entries(path) if fnmatchcase(entry, pattern)]
    return sorted(path.parent for path in found)


def _entries(folder: Path) -> list[str]:
    """The names in a folder that a record's path may have; none where it is a file, or was removed.

    Folders that others may not read by design are left out: hidden ones, in which records are being written, and that of a file system.
    """
    try:
        return [name for name in os.listdir(folder) if not name.startswith(".") and name != "lost+found"]  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        return []


def digest_of(folder: Path) -> str:
    """The digest of a record folder's content, its record and its scores (16 hex digits of SHA-256)."""
    digest = hashlib.sha256()
    for name in ("record.json", "scores.parquet"):
        digest.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return digest.hexdigest()[:16]


def now() -> datetime:
    """The time that a record is stamped with."""
    return datetime.now(UTC)
