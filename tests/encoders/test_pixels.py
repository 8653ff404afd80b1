"""Preprocessing is part of a protocol: identical to the reference libraries', bit for bit where they are deterministic."""

from typing import Any

import numpy as np
import pytest
import torch
from clips import hps_transform
from open_clip.transform import image_transform
from PIL import Image
from synthetic_images import golden, noises, photographs
from torchvision.transforms import functional
from torchvision.transforms.v2 import functional as v2

from sdbench.arrays import U8
from sdbench.encoders import pixels

CPU = torch.device("cpu")
SIZES = [(1024, 1024), (512, 512), (256, 256), (64, 64), (300, 500), (333, 224)]


def pillow_resize(images: U8, side: int) -> U8:
    return np.stack([np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)) for image in images])


@pytest.mark.parametrize("make", [noises, photographs])
def test_resampling_is_that_of_pillow(make: Any) -> None:
    images = make(2, 512, 512)
    np.testing.assert_array_equal(pixels.pillow_bicubic(images, (224, 224), CPU).permute(0, 2, 3, 1).numpy(), pillow_resize(images, 224))


def test_torchvision_on_bytes_differs_from_pillow() -> None:
    """Otherwise torchvision could do it."""
    images = noises(1, 1024, 1024)
    found = v2.resize(torch.from_numpy(images).permute(0, 3, 1, 2), [224, 224], functional.InterpolationMode.BICUBIC, antialias=True)
    assert 0.0005 < (found.permute(0, 2, 3, 1).numpy() != pillow_resize(images, 224)).mean() < 0.02


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_resize_shortest_edge_matches_open_clip(height: int, width: int) -> None:
    images = np.concatenate([noises(1, height, width), photographs(1, height, width)])
    transform = image_transform(224, is_train=False)
    expected = torch.stack([transform(Image.fromarray(image)) for image in images])
    torch.testing.assert_close(pixels.resize_shortest_edge(images, 224, CPU), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [*SIZES, (224, 224)])
def test_resize_longest_edge_matches_hpsv2(height: int, width: int) -> None:
    images = np.concatenate([noises(1, height, width), photographs(1, height, width)])
    expected = torch.stack([hps_transform(Image.fromarray(image), 224) for image in images])
    torch.testing.assert_close(pixels.resize_longest_edge(images, 224, CPU), expected, rtol=0, atol=1e-5)


def test_resize_longest_edge_pads_an_image_that_fits_already() -> None:
    """HPSv2 leaves it as it is, so that its network, which takes squares, refuses it."""
    images = noises(1, 100, 224)
    plain = hps_transform(Image.fromarray(images[0]), 224)
    assert plain.shape == (3, 100, 224)
    found = pixels.resize_longest_edge(images, 224, CPU)[0]
    torch.testing.assert_close(found[:, 62:162], plain, rtol=0, atol=1e-5)
    black = torch.cat([found[:, :62], found[:, 162:]], dim=1)
    torch.testing.assert_close(black, pixels.normalise(torch.zeros(1, 3, 124, 224))[0])


@pytest.mark.parametrize("prepare", [pixels.resize_shortest_edge, pixels.resize_longest_edge])
def test_golden_images_keep_their_appearance(prepare: Any) -> None:
    prepared = {name: prepare(image, 32, CPU)[0] for name, image in golden().items()}
    mean, std = (torch.tensor(values)[:, None, None] for values in (pixels.MEAN, pixels.STD))
    plain = {name: tensor * std + mean for name, tensor in prepared.items()}
    torch.testing.assert_close(plain["black"], torch.zeros(3, 32, 32), rtol=0, atol=1e-6)
    torch.testing.assert_close(plain["inverted"], 1 - plain["photograph"], rtol=0, atol=1.5 / 255)
    torch.testing.assert_close(plain["gray"][0], plain["gray"][2], rtol=0, atol=1e-6)
    assert plain["noise"].std() > 0.04
    assert plain["photograph"].mean() > 0.2  # no double rescaling to black


@pytest.mark.parametrize(
    "wrong",
    [
        noises(2, 8, 8).astype(np.float32) / 255,
        noises(2, 8, 8).astype(np.int16),
        noises(2, 8, 8)[..., :1],
        noises(2, 8, 8)[..., [0, 1, 2, 0]],
        noises(2, 8, 8)[0],
        noises(2, 8, 8)[:0],
        noises(2, 8, 8).transpose(0, 3, 1, 2),
        torch.zeros(2, 8, 8, 3, dtype=torch.uint8),
    ],
    ids=["float", "int16", "gray", "RGBA", "one", "none", "channels first", "tensor"],
)
@pytest.mark.parametrize("prepare", [pixels.resize_shortest_edge, pixels.resize_longest_edge])
def test_anything_but_uint8_rgb_is_rejected(prepare: Any, wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"must be N x H x W x 3 uint8 RGB, found \w+ \("):
        prepare(wrong, 32, CPU)
