"""Captioned pictures to train on: whatever Hugging Face `datasets` opens, one decoded picture at a time.

An image folder is read where it lies. Parquet files, tars and Hub datasets are first unpacked into the cache of
`datasets` (below `HF_HOME`), which takes their size on disk once more.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from sdbench.assets.sources import Table, open_picture, read_table, read_texts
from sdbench.assets.weights import user_cache
from sdbench.disk import write_bytes
from sdbench.errors import UndecodableError, UserError

CAPTIONS = ("caption", "text", "prompt", "clean_prompts", "txt")  # Vega's Midjourney set's; what a tar's text files are called
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


@dataclass(frozen=True)
class Pictures:
    """Pictures with captions; each is read and decoded when it is asked for.

    Attributes:
        version: of a Hub dataset its name, configuration and commit, and the caption column's name; None where the source is local.
    """

    name: str
    version: str | None
    captions: list[str]
    rows: Dataset  # its only column holds the pictures, undecoded

    def __len__(self) -> int:
        return len(self.captions)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of a Hub dataset's version; of a local source over captions and undecoded pictures in their order.

        The latter stays the same where the files are moved or packed otherwise. It reads all of them, which takes the better part of an hour
        for a million; it is therefore noted in the user's cache, and holds as long as each file keeps its place, size and time.

        Raises:
            UserError: a picture is not there, or cannot be read.
        """
        if self.version:
            return hashlib.sha256(self.version.encode()).hexdigest()
        noted = user_cache() / "pictures" / _stamp(self)
        if noted.is_file():
            return noted.read_text()
        found = _content(self)
        with suppress(UserError):  # where no note can be left, they are read each time
            write_bytes(noted, found.encode())
        return found

    def image(self, row: int) -> Image.Image:
        """The picture, 8-bit RGB, upright: transparency on white, of 16 bits the upper 8; colour profiles are not applied.

        Raises:
            UndecodableError: it cannot be decoded.
        """
        with self._open(row) as image:
            return _rgb(ImageOps.exif_transpose(image))

    def size(self, row: int) -> tuple[int, int]:
        """Width and height of the upright picture in px, from its header.

        Raises:
            UndecodableError: it is no picture.
        """
        with self._open(row) as image:
            width, height = image.size
            return (height, width) if image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS else (width, height)

    @contextmanager
    def _open(self, row: int) -> Iterator[Image.Image]:
        (picture,) = self.rows[row].values()
        try:
            with open_picture(picture) as file, Image.open(file) as image:
                yield image
        except Exception as error:  # decoders of damaged files raise nearly anything
            raise UndecodableError(
                f"{self.name}: {_named(row, self.captions[row], picture)} cannot be decoded: {error}. Replace it, or take the row out"
            ) from error


def open_pictures(what: str, *, caption_column: str | None = None) -> Pictures:
    """Open a source of captioned pictures; none of them is read.

    Args:
        what: folder with pictures and a `metadata.jsonl` or `metadata.csv`; folder, file or glob of parquet files or
            webdataset tars; or `owner/name` on the Hub, of which the split `train` is taken, offline from the cache.
        caption_column: where it is not called by one of `CAPTIONS`.

    Raises:
        UserError: there is no such source, it is empty or cannot be read, its columns are not clear, or a row lacks its caption.
    """
    table = read_table(what)
    column = table.column(caption_column, CAPTIONS, "--caption-column")
    return Pictures(table.name, table.version and f"{table.version}\0{column}", _captions(table, column), table.pictures())


def _captions(table: Table, column: str) -> list[str]:
    captions = []
    for row, caption in enumerate(read_texts(table, column)):
        if not (caption and caption.strip()):
            raise UserError(f"{table.name}: row {row} has no caption; found {caption!r}. Write one, or take the row out")
        captions.append(caption)
    return captions


def _stamp(pictures: Pictures) -> str:
    """Changes with captions and with place, size and time of any file, of which none is read: pictures' own, and the cache's that hold others."""
    (column,) = pictures.rows.column_names
    files = [*(kept["filename"] for kept in pictures.rows.cache_files), *pictures.rows.flatten()[f"{column}.path"]]
    found = [(file, stat.st_size, stat.st_mtime_ns) if (stat := _stat(file)) else file for file in files]
    return hashlib.sha256(json.dumps([pictures.captions, found]).encode()).hexdigest()


def _stat(file: str | None) -> os.stat_result | None:
    """None for what is no file, as names are within a tar or a table."""
    try:
        return Path(file).stat() if file else None
    except OSError:
        return None


def _content(pictures: Pictures) -> str:
    """SHA-256 over the digests of each caption and of each picture's bytes."""
    whole = hashlib.sha256()
    pairs = zip(pictures.captions, pictures.rows, strict=True)
    bar = tqdm(pairs, desc=f"reading {pictures.name}", total=len(pictures), unit="image", mininterval=1)
    for row, (caption, columns) in enumerate(bar):
        (picture,) = columns.values()
        try:
            with open_picture(picture) as file:
                whole.update(hashlib.sha256(caption.encode()).digest() + hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(
                f"{pictures.name}: {_named(row, caption, picture)} cannot be read: {error.strerror}. Put it there, or take the row out"
            ) from error
    return whole.hexdigest()


def _named(row: int, caption: str, picture: dict[str, Any] | None) -> str:
    return f"the picture {(picture and picture['path']) or 'without a name'} of row {row} ({caption!r})"


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; Pillow would clip instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
