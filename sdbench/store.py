"""The run folder of one model on one device: `results/runs/<digest>/`, ignored by git, safe to delete.

It is not tied to a single suite. Images are named by their identity (weights, prompt, sampling, noise), so a run that was
killed resumes where it stopped, and a changed suite draws only the images that changed. All writes are atomic.
"""

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from sdbench.arrays import F32, U8
from sdbench.disk import digest, load_array, write_bytes
from sdbench.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}  # files that count as images
Image.init()  # fills `OPEN`
FORMATS = [name for name in Image.OPEN if name != "EPS"]  # on which Pillow runs Ghostscript, also where a file is called .png
_WAY_OUT = "delete it and run again: only that image is made again"
UNDECODABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for a damaged image


class Store:
    """Images and features of one run.

    Args:
        identity: JSON content whose digest names the run; saved as `manifest.json` with the first image.
    """

    def __init__(self, runs: Path, identity: dict[str, Any]) -> None:
        self.folder, self._identity = runs / digest(identity), identity

    def path(self, image_id: str) -> Path:
        """The path of the image with this identity, whether it exists or not."""
        return self.folder / "images" / f"{image_id}.png"

    def missing(self, image_ids: Sequence[str]) -> list[str]:
        """The images that do not exist yet, in order."""
        return [image_id for image_id in image_ids if not self.path(image_id).exists()]

    def elsewhere(self, image_ids: Sequence[str]) -> list[Path]:
        """The folders of other runs that hold any of these images, made under another identity."""
        names = {self.path(image_id).name for image_id in image_ids}
        others = (folder for folder in self.folder.parent.glob("*/images") if folder.parent != self.folder)
        return sorted(folder.parent for folder in others if any(path.name in names for path in folder.iterdir()))

    def put(self, image_id: str, pixels: U8) -> None:
        """Write an image, H x W x 3 uint8 RGB, as PNG.

        Raises:
            UserError: see `write_bytes`.
        """
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        manifest = self.folder / "manifest.json"
        if not manifest.exists():
            write_bytes(manifest, json.dumps(self._identity, indent=1, sort_keys=True).encode() + b"\n")
        write_bytes(self.path(image_id), buffer.getvalue())

    def read(self, image_ids: Sequence[str]) -> U8:
        """Read stored images, N x H x W x 3 uint8 RGB.

        Raises:
            UserError: an image is missing or damaged, is not 8-bit RGB, or differs in size from the first.
        """
        return read_images([self.path(image_id) for image_id in image_ids], _WAY_OUT)

    def verify(self, image_ids: Sequence[str]) -> None:
        """Check that stored images are whole, by their checksums: 2 ms for a PNG of 1024 px, which takes 38 ms to decode.

        Raises:
            UserError: an image is missing or damaged.
        """
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda image_id: _verify(self.path(image_id), _WAY_OUT), image_ids))

    def features(self, name: str, image_ids: Sequence[str], compute: Callable[[], F32]) -> F32:
        """Load the features of these images, N x d float32, or compute and store them; `name` holds the digest of the encoder.

        Raises:
            UserError: see `write_bytes`.
        """
        return load_or_compute(self.folder / "features" / f"{name}-{digest(list(image_ids))[:12]}.npy", compute)


def load_or_compute(path: Path, compute: Callable[[], F32]) -> F32:
    """Load a float32 array, or compute and write it where the file is missing or was cut off by a crash.

    Raises:
        UserError: see `write_bytes`.
    """
    with contextlib.suppress(OSError, UserError):
        loaded: F32 = load_array(path)
        return loaded
    computed = np.asarray(compute(), np.float32)
    buffer = io.BytesIO()
    np.save(buffer, computed)
    write_bytes(path, buffer.getvalue())
    return computed


def read_images(paths: Sequence[Path], way_out: str) -> U8:
    """Read images of one size, N x H x W x 3 uint8 RGB, turned upright by EXIF and decoded on all cores.

    Raises:
        UserError: a file is not a complete image, is not 8-bit RGB, or differs in size from the first; `way_out` ends the message.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images = list(pool.map(lambda path: _read(path, way_out), paths))
    for path, pixels in zip(paths, images, strict=True):
        if pixels.shape != images[0].shape:
            raise UserError(
                f"image {path} is {pixels.shape[1]} x {pixels.shape[0]} px, the first is {images[0].shape[1]} x {images[0].shape[0]}; all "
                "must have the same size."
            )
    return np.stack(images)


def _verify(path: Path, way_out: str) -> None:
    with _named(path, way_out), Image.open(path, formats=FORMATS) as image:
        image.verify()  # checks the checksums, which decoding skips


@contextlib.contextmanager
def _named(path: Path, way_out: str) -> Iterator[None]:
    """Errors of an image name its file."""
    try:
        yield
    except UNDECODABLE as error:
        raise UserError(f"image {path} cannot be read ({error}); {way_out}.") from error


def _read(path: Path, way_out: str) -> U8:
    _verify(path, way_out)
    with _named(path, way_out):
        pixels, mode = decode(path)
    if mode != "RGB":
        raise UserError(
            f"image {path} has mode {mode}, expected 8-bit RGB; convert it (a metric must not guess what transparency or gray means)."
        )
    return pixels


def decode(file: Path | io.BytesIO) -> tuple[U8, str]:
    """Decode an image turned upright by EXIF, and return its pixels and its mode.

    Gray gets three equal channels, as in reference implementations. The mode is Pillow's, or "RGB;16" for 16 bits, which Pillow
    would silently reduce to 8.

    Raises:
        OSError, SyntaxError, ValueError, DecompressionBombError: the file is not a complete image, or is too large; see `UNDECODABLE`.
    """
    with Image.open(file, formats=FORMATS) as image:
        mode = "RGB;16" if any(tile[3] == "RGB;16B" for tile in image.tile) else image.mode
        ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(image.convert("RGB") if mode == "L" else image), mode
