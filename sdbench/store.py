"""The run folder of one model on one device: `results/runs/<digest>/`, ignored by git, safe to delete.

It belongs to no single suite: pictures are named by their identity (weights, prompt, sampling, noise), so a run that was
killed goes on where it stood, and a changed suite makes anew only what its change concerns. Every file is written beside
its place and renamed.
"""

import contextlib
import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from sdbench.disk import digest, write_bytes
from sdbench.errors import UserError

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}  # of files that are taken for pictures


class Store:
    """Pictures and features of one run.

    Args:
        runs: the folder of all runs.
        identity: JSON content that the run is named by; saved as `manifest.json` beside the first picture.
    """

    def __init__(self, runs: Path, identity: dict[str, Any]) -> None:
        self.folder, self._identity = runs / digest(identity), identity

    def path(self, image: str) -> Path:
        """Where the picture of this identity lies, or will."""
        return self.folder / "images" / f"{image}.png"

    def missing(self, images: Sequence[str]) -> list[str]:
        """Those pictures that are not made yet, in order."""
        return [image for image in images if not self.path(image).exists()]

    def put(self, image: str, pixels: U8) -> None:
        """Keep a picture, H x W x 3 uint8 RGB, as PNG."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        manifest = self.folder / "manifest.json"
        if not manifest.exists():
            write_bytes(manifest, json.dumps(self._identity, indent=1, sort_keys=True).encode() + b"\n")
        write_bytes(self.path(image), buffer.getvalue())

    def read(self, images: Sequence[str]) -> U8:
        """Stored pictures => N x H x W x 3 uint8 RGB.

        Raises:
            UserError: a picture is missing, corrupted, of another mode or of another size than the rest.
        """
        return read_images([self.path(image) for image in images], "delete it and run again: only that picture is made again")

    def features(self, name: str, images: Sequence[str], compute: Callable[[], F32]) -> F32:
        """Features of these pictures under an encoder whose digest is part of `name`, computed once => N x d float32."""
        return kept(self.folder / "features" / f"{name}-{digest(list(images))[:12]}.npy", compute)


def kept(path: Path, compute: Callable[[], F32]) -> F32:
    """The array of a file, float32; computed and written where there is no file, or one that a crash has cut off."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        found: F32 = np.load(path)
        return found
    made = np.asarray(compute(), np.float32)
    buffer = io.BytesIO()
    np.save(buffer, made)
    write_bytes(path, buffer.getvalue())
    return made


def read_images(paths: Sequence[Path], way_out: str) -> U8:
    """Pictures of one size => N x H x W x 3 uint8 RGB, upright (as EXIF has them), decoded on every core.

    Raises:
        UserError: a file is no whole picture, not 8-bit RGB, or differs in size from the first.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pictures = list(pool.map(lambda path: _read(path, way_out), paths))
    for path, pixels in zip(paths, pictures, strict=True):
        if pixels.shape != pictures[0].shape:
            raise UserError(
                f"picture {path} is {pixels.shape[1]} x {pixels.shape[0]} px, the first is {pictures[0].shape[1]} x {pictures[0].shape[0]}; all must be of one size."
            )
    return np.stack(pictures)


def _read(path: Path, way_out: str) -> U8:
    try:
        with Image.open(path) as image:
            image.verify()  # the checksums, which decoding skips
        with Image.open(path) as image:
            mode = mode_of(image)
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.asarray(image)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(f"picture {path} cannot be read ({error}); {way_out}.") from error
    if mode != "RGB":
        raise UserError(
            f"picture {path} has mode {mode}, expected 8-bit RGB; convert it (a metric must not guess what transparency or gray means)."
        )
    return pixels


def mode_of(image: ImageFile) -> str:
    """Pillow's mode of a picture that is not decoded yet; "RGB;16" for 16 bits, which Pillow would cut down to 8 without a word."""
    return "RGB;16" if any(tile[3] == "RGB;16B" for tile in image.tile) else image.mode
