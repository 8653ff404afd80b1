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
from PIL import ExifTags, Image, ImageOps

from sdbench.arrays import F32, U8
from sdbench.disk import digest, load_array, write_bytes
from sdbench.errors import UserError
from sdbench.notes import print_note

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}  # files that count as images
Image.init()  # fills `OPEN`
FORMATS = [name for name in Image.OPEN if name != "EPS"]  # on which Pillow runs Ghostscript, also where a file is called .png
_MAX_NAMED = 10  # damaged images that an error names
_WAY_OUT = "delete it and run again: only that image is made again"
SWAPPED_ORIENTATIONS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
RGB_MODES = ("RGB", "1", "CMYK", "L", "LA", "P", "PA", "RGBA")  # which `decode` makes RGB, where every pixel is opaque


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

    def verify(self, image_ids: Sequence[str], way_out: str = _WAY_OUT) -> None:
        """Check that stored images are whole, by their checksums: 2 ms for a PNG of 1024 px, which takes 38 ms to decode.

        Raises:
            UserError: images are missing or damaged; `way_out` ends the line of each.
        """

        def error_of(image_id: str) -> str | None:
            try:
                _verify(self.path(image_id), way_out)
            except UserError as error:
                return str(error)
            return None

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            errors = [error for error in pool.map(error_of, image_ids) if error]
        if errors:
            more = [f"and {len(errors) - _MAX_NAMED} more images of {self.folder}"] if len(errors) > _MAX_NAMED else []
            raise UserError("\n".join([*errors[:_MAX_NAMED], *more]))

    def features(self, name: str, image_ids: Sequence[str], compute: Callable[[], F32]) -> F32:
        """Load the features of these images, N x d float32, or compute and store them; `name` holds the digest of the encoder.

        Where they cannot be stored, a note says so.
        """
        return load_or_compute(self.folder / "features" / f"{name}-{digest(list(image_ids))[:12]}.npy", compute, _write_or_note)


def _write_or_note(path: Path, content: bytes) -> None:
    try:
        write_bytes(path, content)
    except UserError as error:
        print_note(f"{error} Until then, these features are computed whenever a metric needs them.")


def load_or_compute(path: Path, compute: Callable[[], F32], write: Callable[[Path, bytes], object] = write_bytes) -> F32:
    """Load a float32 array, or compute and write it where the file is missing or was cut off by a crash.

    Raises:
        UserError: see `write_bytes`, or `write`.
    """
    with contextlib.suppress(OSError, UserError):
        loaded: F32 = load_array(path)
        return loaded
    computed = np.asarray(compute(), np.float32)
    buffer = io.BytesIO()
    np.save(buffer, computed)
    write(path, buffer.getvalue())
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
    with naming(path, way_out), Image.open(path, formats=FORMATS) as image:
        image.verify()  # checks the checksums, which decoding skips


@contextlib.contextmanager
def naming(image: Path | str, way_out: str) -> Iterator[None]:
    """Turn an error of Pillow inside the block into one that names the image.

    Raises:
        UserError: the image is not complete, is too large, or cannot be read; `way_out` ends the message.
    """
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        raise UserError(f"image {image} cannot be read ({error}); {way_out}.") from error


def _read(path: Path, way_out: str) -> U8:
    _verify(path, way_out)
    with naming(path, way_out):
        pixels, mode = decode(path)
    if mode != "RGB":
        raise UserError(
            f"image {path} has mode {mode}, expected 8-bit RGB; convert it (a metric must not guess what transparency or gray means)."
        )
    return pixels


def decode(file: Path | io.BytesIO) -> tuple[U8, str]:
    """Decode an image turned upright by EXIF, and return its pixels and its mode; `naming` catches what it raises.

    Pixels of `RGB_MODES` become RGB as in Pillow: gray gets three equal channels, as in reference implementations, and CMYK loses its
    colour profile. The mode is that of the file, with ";16" for 16 bits, which Pillow would silently reduce to 8, and with
    " with transparency" where a pixel is not opaque.
    """
    with Image.open(file, formats=FORMATS) as image:
        raw_modes = (tile[3] if isinstance(tile[3], str) else tile[3][0] for tile in image.tile if tile[3])  # in TIFF, more follows
        mode = next((f"{raw.partition(';')[0]};16" for raw in raw_modes if ";16" in str(raw)), image.mode)
        turn_upright(image)
        if mode not in RGB_MODES:
            return np.asarray(image), mode
        if not image.has_transparency_data:
            return np.asarray(image.convert("RGB")), mode
        pixels = np.asarray(image.convert("RGBA"))
        return pixels[..., :3], mode if pixels[..., 3].min() == 255 else f"{mode} with transparency"


def turn_upright(image: Image.Image) -> None:
    """Turn an image in place, as its EXIF says.

    Pillow also writes the EXIF again, without the orientation; it fails at what some cameras write, so the image loses its EXIF before.
    """
    image.load()
    image.getexif()  # is kept apart from `info`
    for key in ("exif", "Raw profile type exif"):
        image.info.pop(key, None)
    ImageOps.exif_transpose(image, in_place=True)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in px that an image has once it is upright, from its header; Pillow gives those of a TIFF so."""
    width, height = image.size
    if width != height and image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in SWAPPED_ORIENTATIONS:
        return height, width
    return width, height
