"""Preprocessing for networks of the CLIP family, to 224 px or so and normalised; for all but HPS bit for bit the same on any device.

The resize is part of a CLIP score's protocol. CLIP was trained with Pillow's bicubic, which has 22-bit weights and rounds to
8 bits; torchvision's differs by one level in 0.2 to 1 % of the pixels as uint8, in 10 to 23 % as float (measured). So Pillow does the
work, on the host and all its cores: a third of the time that decoding the images takes there.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from sdbench.arrays import U8

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of CLIP's training images, from OpenAI


def verified_rgb(images: U8) -> U8:
    """Check that images are N x H x W x 3 uint8, and return them.

    Raises:
        ValueError: they are not, or there are none; a metric must not guess what floats, gray or transparency mean.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise ValueError(
            f"images must be N x H x W x 3 uint8 RGB, found {type(images).__name__} {tuple(np.shape(images))} "
            f"{getattr(images, 'dtype', '')}"
        )
    return images


def resize_shortest_edge(images: U8, side: int, to: torch.device, corner: Callable[[float], int] = round) -> Tensor:
    """Resize so that the shorter edge fits, crop the centre, and normalise; returns N x 3 x side x side float32.

    Source: `image_transform` of open_clip (resize_mode "shortest"), which is OpenAI's `_transform`.

    Args:
        images: N x H x W x 3 uint8 RGB.
        side: the side of the network's input in px.
        corner: how to round the crop's corner: `round` in open_clip, `math.floor` in transformers.

    Raises:
        ValueError: see `verified_rgb`.
    """
    _, height, width, _ = verified_rgb(images).shape
    size = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
    resized = pillow_bicubic(images, size, to)
    top, left = corner((size[0] - side) / 2), corner((size[1] - side) / 2)
    return normalise(resized[:, :, top : top + side, left : left + side].float() / 255)


def resize_longest_edge(images: U8, side: int, to: torch.device) -> Tensor:
    """Resize as float so that the longer edge fits, pad with black, and normalise; for shapes see `resize_shortest_edge`.

    Source: `ResizeMaxSize` in HPSv2's own open_clip. It resizes tensors, so with torch's bicubic, not Pillow's; with
    antialias, which torchvision has by default since 0.17 (HPSv2 pins no version).

    An image whose longer edge fits already is only padded; HPSv2 does not pad it, and its network refuses it unless it is square.

    Raises:
        ValueError: see `verified_rgb`.
    """
    _, height, width, _ = verified_rgb(images).shape
    pixels = torch.from_numpy(images).to(to).permute(0, 3, 1, 2).float() / 255
    if (longest := max(height, width)) != side:
        size = [round(height * (side / longest)), round(width * (side / longest))]
        pixels = transforms.resize(pixels, size, InterpolationMode.BICUBIC, antialias=True)
    rows, columns = side - pixels.shape[2], side - pixels.shape[3]
    return normalise(transforms.pad(pixels, [columns // 2, rows // 2, columns - columns // 2, rows - rows // 2]))


def normalise(pixels: Tensor) -> Tensor:
    """Normalise images, N x 3 x H x W in 0..1, by the mean and the standard deviation of CLIP's training images."""
    mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (MEAN, STD))
    return (pixels - mean) / std


def pillow_bicubic(images: U8, size: tuple[int, int], to: torch.device) -> Tensor:
    """Resize images, N x H x W x 3 uint8, bit for bit as Pillow's `resize(BICUBIC)` does; returns N x 3 x height x width uint8.

    Args:
        size: (height, width).
    """

    def resize(image: U8) -> U8:
        return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC))

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL
        return torch.from_numpy(np.stack(list(pool.map(resize, images)))).to(to).permute(0, 3, 1, 2)
