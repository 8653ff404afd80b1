"""Image files in and out: 8-bit RGB, upright, each error with the name of its file.

Any program may have written what is read here, so nothing is guessed: other modes are errors, or are stated beside the pixels.
"""

import contextlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from sdbench.arrays import U8
from sdbench.errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}  # files that count as images
Image.init()  # fills `OPEN`
FORMATS = [name for name in Image.OPEN if name != "EPS"]  # on which Pillow runs Ghostscript, also where a file is called .png
SWAPPED_ORIENTATIONS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
RGB_MODES = ("RGB", "1", "CMYK", "L", "LA", "P", "PA", "RGBA")  # which `decode` makes RGB, where every pixel is opaque


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


def verify_image(path: Path, way_out: str) -> None:
    """Check that an image is whole, by its checksums, without decoding it.

    Raises:
        UserError: it is missing or damaged; `way_out` ends the message.
    """
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
    verify_image(path, way_out)
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


def png_bytes(pixels: U8, *, optimize: bool = False) -> bytes:
    """The content of a PNG file, of an image H x W x 3 uint8 RGB; `optimize` makes it smaller, and slower to write."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=optimize)
    return buffer.getvalue()
