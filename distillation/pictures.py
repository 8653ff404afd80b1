"""Captioned pictures to train on: whatever Hugging Face `datasets` opens, one decoded picture at a time.

An image folder is read where it lies. Parquet files, tars and Hub datasets are first unpacked into the cache of
`datasets` (below `HF_HOME`), which takes their size on disk once more.
"""

import errno
import hashlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_dataset_builder
from datasets import Image as ImageColumn
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from sdbench.errors import UserError, unknown
from sdbench.models.spec import HUB_NAME

CAPTIONS = ("caption", "text", "prompt", "txt")  # the last is what a tar's text files are called
METADATA = ("metadata.jsonl", "metadata.csv")
READERS = {".parquet": "parquet", ".tar": "webdataset", ".csv": "csv", ".jsonl": "json"}
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


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
            raise unknown(f"column of {self.name}", named, self.rows.column_names)
        found = [named] if named else [column for column in self.rows.column_names if column.lower() in known]
        if len(found) != 1:
            raise UserError(
                f"{self.name}: {' and '.join(found) or 'none'} of its columns ({', '.join(self.rows.column_names)}) "
                f"{'are' if found else 'is'} called {' or '.join(known)}; expected one. Name it with {option}"
            )
        return found[0]


@dataclass(frozen=True)
class Pictures:
    """Pictures with captions; each is read and decoded when it is asked for.

    Attributes:
        digest: SHA-256. Of a local source over captions and undecoded pictures in their order, so that it stays the same
            where the files are moved or packed otherwise; of a Hub dataset over its name, configuration and commit,
            and the caption column's name.
    """

    name: str
    digest: str
    captions: list[str]
    rows: Dataset  # its only column holds the pictures, undecoded

    def __len__(self) -> int:
        return len(self.captions)

    def image(self, row: int) -> Image.Image:
        """The picture, 8-bit RGB, upright: transparency on white, of 16 bits the upper 8; colour profiles are not applied.

        Raises:
            UserError: it cannot be decoded.
        """
        with self._open(row) as image:
            return _rgb(ImageOps.exif_transpose(image))

    def size(self, row: int) -> tuple[int, int]:
        """Width and height of the upright picture in px, from its header.

        Raises:
            UserError: it is no picture.
        """
        with self._open(row) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS else (width, height)

    @contextmanager
    def _open(self, row: int) -> Iterator[Image.Image]:
        (picture,) = self.rows[row].values()
        try:
            with _stream(picture) as file, Image.open(file) as image:
                yield image
        except Exception as error:  # decoders of damaged files raise nearly anything
            raise UserError(
                f"{self.name}: {_named(row, self.captions[row], picture)} cannot be decoded: {error}. Replace it, or take the row out"
            ) from error


def open_pictures(what: str, *, caption_column: str | None = None) -> Pictures:
    """Open a source of captioned pictures; all of its bytes are read once where it is local, for the digest.

    Args:
        what: folder with pictures and a `metadata.jsonl` or `metadata.csv`; folder, file or glob of parquet files or
            webdataset tars; or `owner/name` on the Hub, of which the split `train` is taken, offline from the cache.
        caption_column: where it is not called by one of `CAPTIONS`.

    Raises:
        UserError: there is no such source, it is empty or cannot be read, or its columns are not clear.
        UserError: a row lacks its caption or its picture.
    """
    table = read_table(what)
    column = table.column(caption_column, CAPTIONS, "--caption-column")
    captions = _captions(table, column)
    kinds = [name for name, kind in table.rows.features.items() if isinstance(kind, ImageColumn)]
    if len(kinds) != 1:
        found = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in table.rows.features.items())
        raise UserError(f"{table.name} has {len(kinds)} image columns; expected one. Its columns: {found}")
    rows = table.rows.select_columns(kinds).cast_column(kinds[0], ImageColumn(decode=False))
    of_hub = table.version and hashlib.sha256(f"{table.version}\0{column}".encode()).hexdigest()
    return Pictures(table.name, of_hub or _content(table.name, rows, captions), captions, rows)


def read_table(what: str) -> Table:
    """The rows of a source (see `open_pictures`), or of a CSV or JSON-lines file.

    Raises:
        UserError: there is no such source, it is empty, or it cannot be read.
    """
    place = _located(what)
    try:
        builder = load_dataset_builder(**place)
        builder.download_and_prepare()
        rows = builder.as_dataset(split="train")
    except Exception as error:  # `datasets` passes on what the reader beneath it raised
        reason = f"{type(error).__name__}: {next(iter(str(error.__cause__ or error).splitlines()), 'no reason given')}"
        ways = " Where there is a network, open it once: it stays in the cache of `datasets`" if place == {"path": what} else ""
        raise UserError(f"cannot read {what!r} as a dataset ({reason}).{ways}") from error
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


def _captions(table: Table, column: str) -> list[str]:
    captions = []
    for row, caption in enumerate(texts(table, column)):
        if not (caption and caption.strip()):
            raise UserError(f"{table.name}: row {row} has no caption; found {caption!r}. Write one, or take the row out")
        captions.append(caption)
    return captions


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
    raise UserError(f"no pictures at {what!r}: it is no folder, no file, no glob that fits any, and no owner/name of a Hub dataset")


def _in_folder(folder: Path) -> dict[str, Any]:
    if metadata := [str(folder / name) for name in METADATA if (folder / name).is_file()]:
        return _files("imagefolder", metadata)
    for suffix in (".parquet", ".tar"):
        if any(folder.rglob(f"*{suffix}")):
            return {"path": str(folder)}
    found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:5]) or "nothing"
    raise UserError(f"no captioned pictures in {folder}: expected {', '.join(METADATA)}, .parquet or .tar files; found {found}")


def _files(reader: str, files: list[str]) -> dict[str, Any]:
    return {"path": reader, "data_files": {"train": [escape(file) for file in files]}}


def _content(name: str, rows: Dataset, captions: list[str]) -> str:
    """SHA-256 over the digests of each caption and of each picture's bytes."""
    whole = hashlib.sha256()
    pairs = zip(captions, rows, strict=True)
    for row, (caption, pictures) in enumerate(tqdm(pairs, desc=f"reading {name}", total=len(rows), unit="image", mininterval=1)):
        (picture,) = pictures.values()
        try:
            with _stream(picture) as file:
                whole.update(hashlib.sha256(caption.encode()).digest() + hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(
                f"{name}: {_named(row, caption, picture)} cannot be read: {error.strerror}. Put it there, or take the row out"
            ) from error
    return whole.hexdigest()


def _stream(picture: dict[str, Any] | None) -> io.BytesIO | io.BufferedReader:
    if picture and picture["bytes"] is not None:
        return io.BytesIO(picture["bytes"])
    if picture and picture["path"] is not None:
        return Path(picture["path"]).open("rb")
    raise FileNotFoundError(errno.ENOENT, "there is none")


def _named(row: int, caption: str, picture: dict[str, Any] | None) -> str:
    return f"the picture {(picture and picture['path']) or 'without a name'} of row {row} ({caption!r})"


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; Pillow would clip instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
