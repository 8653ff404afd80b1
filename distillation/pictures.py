"""Captioned pictures to train on: whatever Hugging Face `datasets` opens, one decoded picture at a time.

An image folder is read where it lies. Parquet files, tars and Hub datasets are first unpacked into the cache of
`datasets` (below `HF_HOME`), which takes their size on disk once more.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import ExifTags, Image, ImageOps
from tqdm import tqdm

from sdbench.errors import UserError
from sdbench.sources import Table, read_table, stream, texts

CAPTIONS = ("caption", "text", "prompt", "txt")  # the last is what a tar's text files are called
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height


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
            with stream(picture) as file, Image.open(file) as image:
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
    rows = table.pictures()
    of_hub = table.version and hashlib.sha256(f"{table.version}\0{column}".encode()).hexdigest()
    return Pictures(table.name, of_hub or _content(table.name, rows, captions), captions, rows)


def _captions(table: Table, column: str) -> list[str]:
    captions = []
    for row, caption in enumerate(texts(table, column)):
        if not (caption and caption.strip()):
            raise UserError(f"{table.name}: row {row} has no caption; found {caption!r}. Write one, or take the row out")
        captions.append(caption)
    return captions


def _content(name: str, rows: Dataset, captions: list[str]) -> str:
    """SHA-256 over the digests of each caption and of each picture's bytes."""
    whole = hashlib.sha256()
    pairs = zip(captions, rows, strict=True)
    for row, (caption, pictures) in enumerate(tqdm(pairs, desc=f"reading {name}", total=len(rows), unit="image", mininterval=1)):
        (picture,) = pictures.values()
        try:
            with stream(picture) as file:
                whole.update(hashlib.sha256(caption.encode()).digest() + hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(
                f"{name}: {_named(row, caption, picture)} cannot be read: {error.strerror}. Put it there, or take the row out"
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
