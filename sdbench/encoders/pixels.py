"""Stored bytes => what networks of the CLIP family take: 224 px or so, normalised, the same to the bit on any device.

A CLIP score is a protocol down to its resize. Pillow's bicubic, which CLIP was trained behind, works in 8-bit steps with
22-bit weights; torch's differs from it by a level in 0.3 % of the pixels as uint8, in 10 to 20 % as float (measured). On
the CPU Pillow does it; on a GPU its integer arithmetic is repeated in float64, where it is exact, a batch at a time, if
the pictures are square (of others Pillow 13 chooses by their shape whether columns or rows go first).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from sdbench.arrays import F32, U8
from sdbench.encoders.precision import full_float32

Pictures = U8 | Sequence[U8]  # N pictures H x W x 3 uint8 RGB: one array of them, or several where their sizes differ
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's, of CLIP's training pictures
_BITS = 22  # of Pillow's weights: 32 less 8 of the pixel and 2 of room for bicubic's overshoot
CHOSEN: ContextVar[torch.device | None] = ContextVar("CHOSEN", default=None)  # the device of a run, set by `memory.evaluators`


def device() -> torch.device:
    """Where encoders run: on the device of the run, outside of one on the GPU where there is one."""
    return CHOSEN.get() or torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextmanager
def exact() -> Iterator[None]:
    """Inference in full float32: how encoders run."""
    with full_float32(), torch.inference_mode():
        yield


def encode(images: Pictures, encoder: Callable[[Any], Tensor], batch: int) -> F32:
    """Features of pictures, a batch at a time => N x d float32 (float64 where the network is)."""
    with exact():
        return np.concatenate([encoder(images[start : start + batch]).cpu().numpy() for start in range(0, len(images), batch)])


def rgb(images: U8) -> U8:
    """The same pictures, seen to be N x H x W x 3 uint8.

    Raises:
        ValueError: they are not: a metric must not guess what floats, gray or transparency mean.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise ValueError(
            f"pictures must be N x H x W x 3 uint8 RGB, found {type(images).__name__} {tuple(np.shape(images))} {getattr(images, 'dtype', '')}"
        )
    return images


def shortest_edge(images: U8, side: int, to: torch.device, corner: Callable[[float], int] = round) -> Tensor:
    """Resized until the shorter edge fits, centre cropped, normalised: N x H x W x 3 uint8 => N x 3 x side x side float32.

    Source: `image_transform` of open_clip (resize_mode "shortest"), which is OpenAI's `_transform`.

    Args:
        images: pictures, uint8 RGB.
        side: of the network's input, px.
        to: device.
        corner: half a pixel's margin of the crop goes this way: `round` in open_clip, `math.floor` in transformers.
    """
    _, height, width, _ = rgb(images).shape
    size = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    resized = pillow_bicubic(images, size, to)
    top, left = corner((size[0] - side) / 2), corner((size[1] - side) / 2)
    return normalised(resized[:, :, top : top + side, left : left + side].float() / 255)


def longest_edge(images: U8, side: int, to: torch.device) -> Tensor:
    """Resized as float until the longer edge fits, padded with black, normalised; shapes as of `shortest_edge`.

    Source: `ResizeMaxSize` of HPSv2's own open_clip: of tensors, so with torch's bicubic, not Pillow's; antialiased as
    torchvision does from 0.17 on (before, it did not, and HPSv2 pins no version).
    """
    _, height, width, _ = rgb(images).shape
    pixels = torch.from_numpy(images).to(to).permute(0, 3, 1, 2).float() / 255
    if (longest := max(height, width)) != side:
        size = [round(height * (side / longest)), round(width * (side / longest))]
        pixels = transforms.resize(pixels, size, InterpolationMode.BICUBIC, antialias=True)
        rows, columns = side - size[0], side - size[1]
        pixels = transforms.pad(pixels, [columns // 2, rows // 2, columns - columns // 2, rows - rows // 2])
    return normalised(pixels)


def normalised(pixels: Tensor) -> Tensor:
    """N x 3 x H x W in 0..1 => centred and scaled as CLIP's training pictures were."""
    mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std


def pillow_bicubic(images: U8, size: tuple[int, int], to: torch.device) -> Tensor:
    """Pillow's `resize(BICUBIC)` to (height, width), bit for bit: N x H x W x 3 uint8 => N x 3 x height x width uint8."""
    if to.type != "cpu" and images.shape[1] == images.shape[2]:
        return resample(torch.from_numpy(images).to(to).permute(0, 3, 1, 2), size[0])

    def resized(image: U8) -> U8:
        return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow lets go of the interpreter meanwhile
        return torch.from_numpy(np.stack(list(pool.map(resized, images)))).to(to).permute(0, 3, 1, 2)


def resample(pixels: Tensor, side: int) -> Tensor:
    """The same of squares by two products of matrices of integers: columns first, rounded and clipped, then rows."""
    weights = _weights(pixels.shape[3], side).to(pixels.device)
    made: Tensor = _rounded(weights @ _rounded(pixels.double() @ weights.T)).to(torch.uint8)
    return made


def _rounded(sums: Tensor) -> Tensor:
    rounded: Tensor = ((sums + 2 ** (_BITS - 1)) / 2**_BITS).floor().clamp(0, 255)
    return rounded


@lru_cache(maxsize=8)
def _weights(n: int, m: int) -> Tensor:
    """Pillow's integer weights of m pixels made of n, m x n float64 (`precompute_coeffs`, `normalize_coeffs_8bpc`)."""
    scale = n / m
    stretch = max(scale, 1.0)  # antialias: the kernel widens where pixels are lost
    centres = (torch.arange(m, dtype=torch.float64)[:, None] + 0.5) * scale
    places = torch.arange(n, dtype=torch.float64)[None]
    inside = (places >= (centres - 2 * stretch + 0.5).trunc()) & (places < (centres + 2 * stretch + 0.5).trunc())
    kernel = torch.where(inside, _cubic((places - centres + 0.5) / stretch), 0.0)
    whole = kernel / kernel.sum(dim=1, keepdim=True) * 2**_BITS
    weights: Tensor = (whole + torch.where(whole < 0, -0.5, 0.5)).trunc()
    return weights


def _cubic(x: Tensor) -> Tensor:
    """Keys' kernel (1981) with a = -0.5."""
    x = x.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
