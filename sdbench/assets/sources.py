"""Reads tables of prompts or images through Hugging Face `datasets`: local files, or a name on the Hub, offline from its cache."""

import errno
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import escape, glob
from pathlib import Path
from tarfile import BLOCKSIZE, NUL
from typing import Any, Self

from datasets import Dataset, DatasetBuilder, Features, Value, disable_progress_bars, load_dataset_builder
from datasets import Image as ImageColumn
from datasets.data_files import DataFilesDict, get_data_patterns, sanitize_patterns
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

from sdbench.disk import size_text
from sdbench.errors import MissingError, UserError, describe_error, unknown_name
from sdbench.models.spec import HUB_NAME, path_of

ROWS_LISTED = 100
METADATA = ("metadata.jsonl", "metadata.csv")
READERS = {".parquet": "parquet", ".tar": "webdataset", ".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}


@dataclass(frozen=True)
class Rows:
    """The rows of a source, undecoded on disk.

    Attributes:
        version: name, configuration and commit of a Hub dataset; None for a local source.
    """

    name: str
    dataset: Dataset
    version: str | None

    def column(self, named: str | None, known: Sequence[str], option: str) -> str:
        """The column `named`, or by default the only one with a `known` name; `option` is where the user names it, for errors.

        Raises:
            UserError: there is no such column, or several.
        """
        if named is not None and named not in self.dataset.column_names:
            raise unknown_name(f"column of {self.name}", named, self.dataset.column_names)
        candidates = [named] if named else [column for column in self.dataset.column_names if column.lower() in known]
        if len(candidates) != 1:
            raise UserError(
                f"{self.name}: {' and '.join(candidates) or 'none'} of its columns ({', '.join(self.dataset.column_names)}) "
                f"{'are' if candidates else 'is'} called {' or '.join(known)}; expected one. Name it with {option}"
            )
        return candidates[0]

    def where(self, column: str, value: str) -> Self:
        """Select the rows with this value in a column, compared as text and without regard to case: `upscaled`, `true`.

        Raises:
            UserError: there is no such column, or no such row.
        """
        self.column(column, (), "--where")  # checks that there is one
        cells = [str(cell) for cell in self.dataset[column][:]]  # at once, 30 times as fast as one by one
        if not (selected := [row for row, cell in enumerate(cells) if cell.casefold() == value.casefold()]):
            found = ", ".join(sorted(set(cells))[:5])
            raise UserError(f"{self.name}: no row whose column {column!r} is {value!r}; found {found}")
        return replace(self, dataset=self.dataset.select(selected), version=self.version and f"{self.version}\0{column}={value.casefold()}")

    def images(self, named: str | None = None) -> Dataset:
        """Only the undecoded images, from the column `named` or by default the only one that holds images.

        Where no column is declared as images, which only `datasets` does, it is the one that holds bytes.

        Raises:
            UserError: there is no such column, or several.
        """
        kinds = {name: kind for name, kind in self.dataset.features.items() if named in (None, name)}
        declared = [name for name, kind in kinds.items() if isinstance(kind, ImageColumn)]
        columns = declared or [name for name, kind in kinds.items() if _holds_bytes(kind)]
        if len(columns) != 1:
            found = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in self.dataset.features.items())
            raise UserError(
                f"{self.name} has {len(columns)} image columns{f' named {named!r}' if named else ''}; expected one. Its columns: {found}"
            )
        return self.dataset.select_columns(columns).cast_column(columns[0], ImageColumn(decode=False))


def read_rows(what: str, split: str = "train") -> Rows:
    """Read the rows of a source.

    Args:
        what: folder with images and a `metadata.jsonl` or `metadata.csv`, or a text file beside each image; folder, file or glob of
            parquet, webdataset tar, CSV, TSV, JSON or text files; or `owner/name` on the Hub, offline from the cache.

    Raises:
        MissingError: a Hub dataset is neither cached nor reachable.
        UserError: there is no such source or split, it is empty, it cannot be read, or the disk has no room for a copy of it.
    """
    if captioned := _read_captioned_files(path_of(what).resolve()):
        if split != "train":
            raise UserError(f"{what} has no split {split!r}: images with a text file beside each are all of split 'train'")
        return captioned
    arguments = _loader_arguments(what)
    disable_progress_bars()  # "Generating train split"; those of downloads are huggingface_hub's, and stay
    try:
        builder = load_dataset_builder(**arguments)
        _check_room(what, builder)
        builder.download_and_prepare()
        dataset = builder.as_dataset(split=split)
    except UserError:
        raise
    except Exception as error:  # `datasets` passes on whatever its readers raise
        reason = describe_error(error.__cause__ or error)  # the type of the outer one says only that something failed
        if arguments == {"path": what}:
            advice = "Where there is a network, open it once: it stays in the cache of `datasets`"
            raise MissingError(f"cannot read {what!r} as a dataset ({reason}). {advice}") from error
        raise UserError(f"cannot read {what!r} as a dataset ({reason}).") from error
    if builder.repo_id:
        return Rows(what, dataset, f"{what}/{builder.config.name}@{builder.hash}")
    return Rows(path_of(what).resolve().name, dataset, None)


def _check_room(what: str, builder: DatasetBuilder) -> None:
    """Check that the disk holds the copy that `datasets` makes of local files; that of a Hub dataset is left to itself.

    Raises:
        UserError: it does not.
    """
    cache = Path(builder.cache_dir)
    if cache.exists() or builder.repo_id:
        return
    needed = sum(Path(file).stat().st_size for files in (builder.config.data_files or {}).values() for file in files)
    free = shutil.disk_usage(next(folder for folder in cache.parents if folder.exists())).free
    if needed > free:
        raise UserError(
            f"{what} takes {size_text(needed)} once more in the cache of `datasets`, {cache}; {size_text(free)} are free. Make room, name "
            "another cache with the environment variable HF_DATASETS_CACHE, or unpack the images into a folder, which is read in place"
        )


def read_texts(rows: Rows, column: str, n: int | None = None) -> list[str | None]:
    """Read a text column of the first `n` rows, by default of all.

    Raises:
        UserError: the column does not hold text in UTF-8.
    """
    kind = rows.dataset.features[column]
    if getattr(kind, "dtype", None) not in ("string", "large_string"):
        raise UserError(f"{rows.name}: column {column!r} holds {kind}; expected text")
    try:
        return list(rows.dataset[column][:n])
    except UnicodeDecodeError as error:  # JSON lines and parquet are not checked when they are opened
        raise UserError(f"{rows.name}: column {column!r} is not UTF-8 ({error}); convert the file") from error


def list_rows(rows: Sequence[int]) -> str:
    """Row numbers in words: `row 3`; `rows 3, 5, 8`; of many the first ones."""
    more = f" and {len(rows) - ROWS_LISTED:,} more" if len(rows) > ROWS_LISTED else ""
    return f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:ROWS_LISTED]))}{more}"


def _holds_bytes(kind: Any) -> bool:
    """Whether a column holds files: as bytes, as img2dataset writes them, or as bytes with a path, as `datasets` stores its own images."""
    bytes_ = kind.get("bytes") if isinstance(kind, dict) and kind.keys() == {"bytes", "path"} else kind
    return getattr(bytes_, "dtype", None) in ("binary", "large_binary")


def _read_captioned_files(folder: Path) -> Rows | None:
    """The images of a folder and its subfolders in the layout of Kohya's scripts: beside `0.png`, a `0.txt` with the caption, or none.

    None for a folder without such text files, or with a table of captions, where the images lie beside tables or tars, as previews of
    these do, and where there is no folder. Hidden files are left out, as by `datasets`.

    Raises:
        UserError: a text file cannot be read.
    """
    if not folder.is_dir() or any((folder / name).is_file() for name in METADATA):
        return None
    visible = (path for path in folder.rglob("*") if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    images = sorted(path for path in visible if path.suffix.lower() in ImageFolder.EXTENSIONS)
    captioned = next((image for image in images if image.with_suffix(".txt").is_file()), None)
    if captioned is None or any(beside.suffix in (".tar", ".parquet") for beside in captioned.parent.iterdir()):
        return None
    captions = [_read_caption(image.with_suffix(".txt")) for image in images]
    columns = {"image": [str(image) for image in images], "txt": captions}
    return Rows(folder.name, Dataset.from_dict(columns, Features({"image": ImageColumn(), "txt": Value("string")})), None)


def _read_caption(path: Path) -> str:
    """The caption in a text file; empty where there is no such file."""
    try:
        return path.read_text(encoding="utf-8-sig").strip()  # drops the byte order mark that some editors write
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}); see to that, or remove it") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); convert the file") from error


def _loader_arguments(what: str) -> dict[str, Any]:
    """The arguments of `load_dataset_builder`."""
    path = path_of(what)
    if path.is_dir():
        return _folder_arguments(path.resolve())
    files = [str(path)] if path.is_file() else sorted(glob(str(path), recursive=True))  # noqa: PTH207  # absolute, too
    if files:
        suffixes = {Path(file).suffix.lower() for file in files}
        if len(suffixes) > 1 or not suffixes <= READERS.keys():
            raise UserError(f"{what} names files ending in {', '.join(sorted(suffixes))}; expected files of one kind: {', '.join(READERS)}")
        reader = READERS[suffixes.pop()]
        if reader == "webdataset":
            _check_tars(files)
        return _file_arguments(reader, files)
    if HUB_NAME.fullmatch(what) and not path.parent.is_dir():
        return {"path": what}
    raise UserError(f"nothing to read at {what!r}: it is not a folder, a file, a glob that matches any, or the owner/name of a Hub dataset")


def _folder_arguments(folder: Path) -> dict[str, Any]:
    if metadata := [str(folder / name) for name in METADATA if (folder / name).is_file()]:
        return _file_arguments("imagefolder", metadata)
    tars, tables = (sorted(map(str, folder.rglob(f"*{suffix}"))) for suffix in (".tar", ".parquet"))
    _check_tars(tars)
    if tars and tables:  # written by img2dataset, whose tables list the outcome of each link in a tar
        return _file_arguments("webdataset", tars)
    if tars or tables:
        suffix = ".tar" if tars else ".parquet"
        return {
            "path": READERS[suffix],
            "data_files": _files_by_split(folder, suffix) or {"train": [escape(file) for file in tars or tables]},
        }
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
    raise UserError(
        f"nothing to read in {folder}: expected {', '.join(METADATA)}, a .txt beside each image, .parquet or .tar files; found {found}. "
        f"""A line of {METADATA[0]} is {{"file_name": "0.png", "text": "a caption"}}"""
    )


def _files_by_split(folder: Path, suffix: str) -> dict[str, list[str]]:
    """The files of a folder with this suffix, in the splits that their names say; none where `datasets` sees no file, as in hidden folders.

    `datasets` itself, given the folder, would let its README.md name other files, also outside of it.
    """
    try:
        patterns = sanitize_patterns(get_data_patterns(escape(str(folder))))
    except FileNotFoundError:
        return {}
    found = DataFilesDict.from_patterns(patterns, base_path=escape(str(folder))).filter(extensions=[suffix])
    return {split: [escape(file) for file in files] for split, files in found.items() if files}


def _check_tars(files: Sequence[str]) -> None:
    """Check that tars end as they should: `datasets` reads one that was cut off as if its last images had never been there.

    Raises:
        UserError: a file does not end with a block of zeros.
    """
    for file in files:
        with Path(file).open("rb") as tar:
            tar.seek(max(0, Path(file).stat().st_size - BLOCKSIZE))
            if tar.read() != NUL * BLOCKSIZE:
                raise UserError(
                    f"{file} does not end as a tar does, with zeros: it was cut off, is compressed, or is no tar. Copy or fetch it again, "
                    "or leave it out"
                )


def _file_arguments(reader: str, files: list[str]) -> dict[str, Any]:
    empty = [file for file in files if not Path(file).stat().st_size]
    if empty and (len(empty) == len(files) or reader not in ("json", "text")):  # whose readers skip such files
        raise UserError(f"{empty[0]} is empty; write its rows, or leave it out")
    separator = {"sep": "\t"} if files[0].lower().endswith(".tsv") else {}
    return {"path": reader, "data_files": {"train": [escape(file) for file in files]}, **separator}


def open_image(image: dict[str, Any] | None) -> io.BytesIO | io.BufferedReader:
    """Open the bytes of an undecoded image.

    Raises:
        OSError: there is none, or its file cannot be read.
    """
    if image and image["bytes"] is not None:
        return io.BytesIO(image["bytes"])
    if image and image["path"] is not None:
        return Path(image["path"]).open("rb")
    raise FileNotFoundError(errno.ENOENT, "there is none")
