"""Captioned images to train on: any source that Hugging Face `datasets` opens, decoded one image at a time.

An image folder is read in place. Parquet files, tars and Hub datasets are first unpacked into the cache of `datasets`
(`HF_DATASETS_CACHE`, by default below `HF_HOME`), which takes their size on disk once more.
"""

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from sdbench.assets.prompts import COLUMNS
from sdbench.assets.sources import Rows, open_image, read_rows, read_texts
from sdbench.assets.weights import user_cache
from sdbench.disk import write_bytes
from sdbench.errors import UndecodableError, UserError
from sdbench.image_files import FORMATS, turn_upright, upright_size
from sdbench.notes import progress

DAMAGE = (None, errno.ENOENT, errno.EINVAL)  # `errno` if the image is at fault: for Pillow, missing, or an offset before its start
READERS = 8  # threads that read images for their digests; disks on a network answer late
READ_AT_ONCE = 64  # images; those of a table are in memory together
MISSING = bytes(32)  # in place of the SHA-256 of an image that is not there


@dataclass(frozen=True)
class Images:
    """Images with captions; an image is read and decoded only when asked for.

    Attributes:
        version: name, configuration and commit of a Hub dataset, and the name of its caption column; None for a local source.
        rows: a dataset whose only column holds the undecoded images.
    """

    name: str
    version: str | None
    captions: list[str]
    rows: Dataset

    def __len__(self) -> int:
        return len(self.captions)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 (hex) of a Hub dataset's version, or of a local source's captions and undecoded images, in order.

        The digest of a local source does not change if files are moved or packed differently.

        Raises:
            UserError: an image is there and cannot be read.
        """
        if self.version:
            return hashlib.sha256(self.version.encode()).hexdigest()
        digest = hashlib.sha256()
        for caption, content in zip(self.captions, self._contents, strict=True):
            digest.update(hashlib.sha256(caption.encode()).digest() + content)
        return digest.hexdigest()

    @property
    def image_digests(self) -> list[bytes]:
        """A digest for each image: of its row in a Hub dataset's version, or of its bytes; random without image or caption.

        Raises:
            UserError: an image is there and cannot be read.
        """
        dataset = (self.version or "").rpartition("\0")[0]  # without the caption column
        rows = (hashlib.sha256(f"{dataset}\0{row}".encode()).digest() for row in range(len(self)))
        pairs = zip(self.captions, rows if self.version else self._contents, strict=True)
        return [secrets.token_bytes() if content == MISSING or not caption.strip() else content for caption, content in pairs]

    @cached_property
    def _contents(self) -> list[bytes]:
        """The SHA-256 of each undecoded image of a local source; zeros for one that is missing.

        Reads all files, which may take most of an hour for a million images. The result is therefore stored in the user's cache, and valid
        while every file keeps its path, size and time.
        """
        cache_file = user_cache() / "images" / f"{_cache_key(self)}.sha256"
        if cache_file.is_file():
            stored, size = cache_file.read_bytes(), len(MISSING)
            return [stored[start : start + size] for start in range(0, len(stored), size)]
        contents = self._read_contents()
        with suppress(UserError):  # without a writable cache, the images are read each time
            write_bytes(cache_file, b"".join(contents))
        return contents

    def _read_contents(self) -> list[bytes]:
        contents = list[bytes]()
        with ThreadPoolExecutor(READERS) as pool, progress(desc=f"reading {self.name}", total=len(self), unit="image") as bar:
            for start in range(0, len(self), READ_AT_ONCE):
                (images,) = self.rows[start : start + READ_AT_ONCE].values()
                contents += pool.map(self._content, range(start, len(self)), images)
                bar.update(len(images))
        return contents

    def _content(self, row: int, image: dict[str, Any] | None) -> bytes:
        try:
            with open_image(image) as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            if error.errno not in DAMAGE:
                raise self._unreadable(row, image, error) from error
            return MISSING

    def image(self, row: int) -> Image.Image:
        """The image, 8-bit RGB, upright: transparency on white, the upper 8 of 16 bits; colour profiles are not applied.

        Raises:
            UndecodableError: the image or its caption is missing, or it cannot be decoded.
            UserError: it cannot be read now; it may be whole.
        """
        with self._open(row) as image:
            turn_upright(image)
            return _to_rgb(image)

    def size(self, row: int) -> tuple[int, int]:
        """Width and height of the upright image in px, from its header.

        Raises:
            UndecodableError: the image or its caption is missing, or its header is damaged.
            UserError: it cannot be read now; it may be whole.
        """
        with self._open(row) as image:
            return upright_size(image)

    @contextmanager
    def _open(self, row: int) -> Iterator[Image.Image]:
        (image,) = self.rows[row].values()
        if not self.captions[row].strip():
            raise UndecodableError(f"{self._describe(row, image)} has no caption. Write one, or remove the row")
        try:
            with open_image(image) as file, Image.open(file, formats=FORMATS) as opened:
                yield opened
        except MemoryError:
            raise
        except Exception as error:  # decoders of damaged files raise nearly anything
            if isinstance(error, OSError) and error.errno not in DAMAGE:
                raise self._unreadable(row, image, error) from error
            raise UndecodableError(f"{self._describe(row, image)} cannot be decoded: {error}. {self._advice(image)}") from error

    def _unreadable(self, row: int, image: dict[str, Any] | None, error: OSError) -> UserError:
        return UserError(f"{self._describe(row, image)} cannot be read: {error.strerror}. See to that, and run the same command again")

    def _describe(self, row: int, image: dict[str, Any] | None) -> str:
        return f"{self.name}: the image {(image and image['path']) or 'without a name'} of row {row} ({self.captions[row]!r})"

    def _advice(self, image: dict[str, Any] | None) -> str:
        """What to do about an image that cannot be decoded, or that `datasets` has dropped."""
        if image is None and self.rows.info.builder_name == "webdataset":
            return f"Of these tars only .{self.rows.column_names[0]} files are read, as the first images are; convert the others"
        return "Replace it, or remove the row"


def open_images(source: str, *, caption_column: str | None = None) -> Images:
    """Open a source of captioned images without reading any image.

    Args:
        source: folder with images and a `metadata.jsonl` or `metadata.csv`, or a text file beside each image; folder, file or glob of
            parquet files or webdataset tars; or `owner/name` on the Hub, whose split `train` is used, offline from the cache.
        caption_column: column of captions; default: the one named in `COLUMNS`.

    Raises:
        UserError: there is no such source, it is empty or cannot be read, or a column is missing or ambiguous.
    """
    (images,) = open_sources([source], caption_column)
    return images


def open_sources(sources: Sequence[str], caption_column: str | None) -> list[Images]:
    """Open several sources as `open_images` does; those without a column `caption_column` have the default.

    Raises:
        UserError: see `open_images`; a column is missing if no source has it.
    """
    tables = [read_rows(source) for source in sources]
    has_column = [caption_column in rows.dataset.column_names for rows in tables]
    named = [caption_column if has or not any(has_column) else None for has in has_column]
    return [_captioned(rows, rows.column(column, COLUMNS, "--caption-column")) for rows, column in zip(tables, named, strict=True)]


def _captioned(rows: Rows, column: str) -> Images:
    captions = [caption or "" for caption in read_texts(rows, column)]
    return Images(rows.name, rows.version and f"{rows.version}\0{column}", captions, rows.images())


def _cache_key(images: Images) -> str:
    """A key that changes with the captions and with path, size or time of any file: image files, or cache files that hold the images."""
    (column,) = images.rows.column_names
    files = [*(cached["filename"] for cached in images.rows.cache_files), *images.rows.flatten()[f"{column}.path"][:]]
    stamps = [(file, stat.st_size, stat.st_mtime_ns) if (stat := _stat(file)) else file for file in files]
    return hashlib.sha256(json.dumps([images.captions, stamps]).encode()).hexdigest()


def _stat(file: str | None) -> os.stat_result | None:
    """None if there is no such file; names inside a tar or a table are not files."""
    try:
        return Path(file).stat() if file else None
    except OSError:
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; Pillow would clip instead of scaling
        return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
