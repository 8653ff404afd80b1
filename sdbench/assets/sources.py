"""Tables of prompts or pictures: whatever Hugging Face `datasets` opens, local files or a name on the Hub, offline from its cache."""

import errno
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import escape, glob
from pathlib import Path
from typing import Any, Self

from datasets import Dataset, load_dataset_builder
from datasets import Image as ImageColumn

from sdbench.errors import MissingError, UserError, unknown_name
from sdbench.models.spec import HUB_NAME

METADATA = ("metadata.jsonl", "metadata.csv")
READERS = {".parquet": "parquet", ".tar": "webdataset", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}


@dataclass(frozen=True)
class Table:
    """A source's rows, undecoded on disk.

    Attributes:
        version: of a Hub dataset its name, configuration and commit; None where the source is local.
    """

    name: str
    rows: Dataset
    version: str | None

    def column(self, named: str | None, known: Sequence[str], option: str) -> str:
        """The column that the caller named with `option`, or the only one whose name is known.

        Raises:
            UserError: there is no such column, or several.
        """
        if named is not None and named not in self.rows.column_names:
            raise unknown_name(f"column of {self.name}", named, self.rows.column_names)
        found = [named] if named else [column for column in self.rows.column_names if column.lower() in known]
        if len(found) != 1:
            raise UserError(
                f"{self.name}: {' and '.join(found) or 'none'} of its columns ({', '.join(self.rows.column_names)}) "
                f"{'are' if found else 'is'} called {' or '.join(known)}; expected one. Name it with {option}"
            )
        return found[0]

    def where(self, column: str, value: str) -> Self:
        """The rows that have this value in a column, both as text, whether in capitals or not: `upscaled`, `true`.

        Raises:
            UserError: there is no such column, or no such row.
        """
        if column not in self.rows.column_names:
            raise unknown_name(f"column of {self.name}", column, self.rows.column_names)
        cells = [str(cell) for cell in self.rows[column]]
        if not (kept := [row for row, cell in enumerate(cells) if cell.casefold() == value.casefold()]):
            found = ", ".join(sorted(set(cells))[:5])
            raise UserError(f"{self.name}: no row whose column {column!r} is {value!r}; found {found}")
        return replace(self, rows=self.rows.select(kept), version=self.version and f"{self.version}\0{column}={value.casefold()}")

    def pictures(self, named: str | None = None) -> Dataset:
        """The rows' undecoded pictures alone, of the column named or of the only one that holds images.

        Raises:
            UserError: there is no such column, or several.
        """
        kinds = [name for name, kind in self.rows.features.items() if isinstance(kind, ImageColumn) and named in (None, name)]
        if len(kinds) != 1:
            found = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in self.rows.features.items())
            raise UserError(
                f"{self.name} has {len(kinds)} image columns{f' named {named!r}' if named else ''}; expected one. Its columns: {found}"
            )
        return self.rows.select_columns(kinds).cast_column(kinds[0], ImageColumn(decode=False))


def read_table(what: str, split: str = "train") -> Table:
    """The rows of a source.

    Args:
        what: folder with pictures and a `metadata.jsonl` or `metadata.csv`; folder, file or glob of parquet, webdataset tar, CSV, TSV, JSON or
            text files; or `owner/name` on the Hub, offline from the cache.
        split: of a source that has several.

    Raises:
        MissingError: a Hub dataset that is neither cached nor reachable.
        UserError: there is no such source, it is empty, or it cannot be read.
    """
    place = _located(what)
    try:
        builder = load_dataset_builder(**place)
        builder.download_and_prepare()
        rows = builder.as_dataset(split=split)
    except Exception as error:  # `datasets` passes on what the reader beneath it raised
        reason = f"{type(error).__name__}: {next(iter(str(error.__cause__ or error).splitlines()), 'no reason given')}"
        if place == {"path": what}:
            ways = "Where there is a network, open it once: it stays in the cache of `datasets`"
            raise MissingError(f"cannot read {what!r} as a dataset ({reason}). {ways}") from error
        raise UserError(f"cannot read {what!r} as a dataset ({reason}).") from error
    if builder.repo_id:
        return Table(what, rows, f"{what}/{builder.config.name}@{builder.hash}")
    return Table(Path(what).expanduser().resolve().name, rows, None)


def texts(table: Table, column: str, n: int | None = None) -> list[str | None]:
    """A column of text, of the first `n` rows or of all.

    Raises:
        UserError: it holds something else.
    """
    kind = table.rows.features[column]
    if getattr(kind, "dtype", None) not in ("string", "large_string"):
        raise UserError(f"{table.name}: column {column!r} holds {kind}; expected text")
    return list(table.rows[column][:n])


def _located(what: str) -> dict[str, Any]:
    """Arguments for `load_dataset_builder`."""
    path = Path(what).expanduser()
    if path.is_dir():
        return _in_folder(path.resolve())
    files = [str(path)] if path.is_file() else sorted(glob(str(path), recursive=True))  # noqa: PTH207  # absolute, too
    if files:
        suffixes = {Path(file).suffix.lower() for file in files}
        if len(suffixes) > 1 or not suffixes <= READERS.keys():
            raise UserError(f"{what} names files ending in {', '.join(sorted(suffixes))}; expected all of one of {', '.join(READERS)}")
        return _files(READERS[suffixes.pop()], files)
    if HUB_NAME.fullmatch(what) and not path.parent.is_dir():
        return {"path": what}
    raise UserError(f"nothing to read at {what!r}: it is no folder, no file, no glob that fits any, and no owner/name of a Hub dataset")


def _in_folder(folder: Path) -> dict[str, Any]:
    if metadata := [str(folder / name) for name in METADATA if (folder / name).is_file()]:
        return _files("imagefolder", metadata)
    tars, tables = (sorted(map(str, folder.rglob(f"*{suffix}"))) for suffix in (".tar", ".parquet"))
    if tars and tables:  # img2dataset's, whose tables say of each tar what became of its links
        return _files("webdataset", tars)
    if tars or tables:
        return {"path": str(folder)}
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
    raise UserError(f"nothing to read in {folder}: expected {', '.join(METADATA)}, .parquet or .tar files; found {found}")


def _files(reader: str, files: list[str]) -> dict[str, Any]:
    separator = {"sep": "\t"} if files[0].lower().endswith(".tsv") else {}
    return {"path": reader, "data_files": {"train": [escape(file) for file in files]}, **separator}


def stream(picture: dict[str, Any] | None) -> io.BytesIO | io.BufferedReader:
    """The bytes of an undecoded picture.

    Raises:
        OSError: there is none, or its file cannot be read.
    """
    if picture and picture["bytes"] is not None:
        return io.BytesIO(picture["bytes"])
    if picture and picture["path"] is not None:
        return Path(picture["path"]).open("rb")
    raise FileNotFoundError(errno.ENOENT, "there is none")
