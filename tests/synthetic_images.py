"""Images for tests of encoders: noise, and synthetic photographs with natural spectrum and edges."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sdbench.arrays import F64, U8

SIZES = ((256, 256), (384, 512), (1024, 1024), (640, 480))


def photograph(seed: int, height: int, width: int) -> U8:
    """A synthetic photograph: 1/f amplitudes as in nature, correlated colours, and a few sharp edges."""
    random = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]) + 1 / max(height, width)
    noise = random.normal(size=(4, height, width))
    layers = np.fft.irfft2(np.fft.rfft2(noise) / frequency, (height, width))
    layers /= layers.std(axis=(1, 2), keepdims=True)
    image: F64 = 128 + 45 * (layers[3] + 0.4 * layers[:3]).transpose(1, 2, 0) + 30 * random.normal(size=3)
    for _ in range(random.integers(1, 6)):
        (top, bottom), (left, right) = np.sort(random.integers(0, (height, width), (2, 2)), axis=0).T
        image[top:bottom, left:right] += 50 * random.normal(size=3)
    return image.clip(0, 255).astype(np.uint8)


def noise(seed: int, height: int, width: int) -> U8:
    """Uniformly random bytes."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def photographs(n: int, height: int, width: int, seed: int = 1) -> U8:
    """Synthetic photographs, n x height x width x 3."""
    return np.stack([photograph(seed + index, height, width) for index in range(n)])


def noises(n: int, height: int, width: int, seed: int = 0) -> U8:
    """Uniformly random bytes, the hardest input of a resize, n x height x width x 3."""
    return np.stack([noise(seed + index, height, width) for index in range(n)])


def photographs_and_noise(height: int, width: int) -> U8:
    """Three synthetic photographs, and two images of random bytes."""
    return np.concatenate([photographs(3, height, width), noises(2, height, width)])


def golden(side: int = 64) -> dict[str, U8]:
    """Images that have fooled metrics before, by name, each as a batch of one."""
    image = photographs(1, side, side)
    gray = np.repeat(image.mean(axis=3, keepdims=True).astype(np.uint8), 3, axis=3)
    return {"black": image * np.uint8(0), "noise": noises(1, side, side), "inverted": 255 - image, "gray": gray, "photograph": image}


def mixed(n: int, seed: int = 0) -> list[U8]:
    """Photographs in four sizes, with noise as every fifth image."""
    sizes = [SIZES[index % len(SIZES)] for index in range(n)]
    return [(noise if index % 5 == 4 else photograph)(seed + index, *size) for index, size in enumerate(sizes)]


def save(images: list[U8], folder: Path) -> list[U8]:
    """Write images as PNG and JPEG in turn; returns the decoded images."""
    folder.mkdir(parents=True)
    paths = [folder / f"{index:03d}.{('png', 'jpg')[index % 2]}" for index in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path, quality=90)
    return [np.asarray(Image.open(path)) for path in paths]


def png(image: Image.Image | np.ndarray, **options: Any) -> bytes:
    """The file of an image, with these options of Pillow's."""
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, "PNG", **options)
    return buffer.getvalue()


def deep_png(channels: int = 3) -> bytes:
    """A 2 x 2 PNG with 16 bits, RGB, RGBA or gray with alpha, which Pillow silently reduces to 8."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 2, 2, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(range(4 * channels))) * 2)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def deep_tiff(order: str) -> bytes:
    """A 1 x 1 RGB TIFF with 16 bits, byte order "<" or ">", which Pillow silently reduces to 8."""
    tags = ((256, 1), (257, 1), (258, 16), (262, 2), (273, 8), (277, 3), (278, 1), (279, 6))
    bits = 8 + 6 + 2 + 12 * len(tags) + 4  # where its three values lie
    fields = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags]
    fields[2] = struct.pack(f"{order}HHII", 258, 3, 3, bits)
    header = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 14)
    directory = struct.pack(f"{order}H", len(tags)) + b"".join(fields) + bytes(4)
    return header + bytes(range(6)) + directory + struct.pack(f"{order}3H", 16, 16, 16)


def damaged_exif() -> bytes:
    """EXIF that turns an image clockwise by 90 degrees, with a resolution of -2 dpi, which Pillow reads but cannot write."""
    orientation, resolution = struct.pack("<HHLHH", 0x0112, 3, 1, 6, 0), struct.pack("<HHLL", 0x011A, 10, 1, 38)
    return b"Exif\0\0II*\0" + struct.pack("<LH", 8, 2) + orientation + resolution + struct.pack("<Lll", 0, -2, 1)
