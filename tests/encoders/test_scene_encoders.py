"""The evaluators of the embedded family take images of their size alone, and encode captions in batches."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sdbench.encoders import scenes
from sdbench.encoders.scenes import CAPTIONS_BATCH

IMAGES = np.zeros((6, 64, 64, 3), np.uint8)


def test_captions_are_embedded_in_batches_so_memory_does_not_grow_with_their_number() -> None:
    sizes = list[int]()

    def embed(ids: Tensor) -> Tensor:
        sizes.append(len(ids))
        return ids[:, 1:3].float()  # after the start of the text: the article and the size

    towers = scenes.towers("counting", 1.0, torch.neg, embed)
    embedded = towers.texts([*["a small red star on a black background"] * CAPTIONS_BATCH, "a large blue ring on a gray background"])
    assert sizes == [CAPTIONS_BATCH, 1]
    assert (embedded[:-1] == embedded[0]).all()
    assert not np.array_equal(embedded[-1], embedded[0])


@pytest.mark.parametrize(
    "wrong",
    [
        IMAGES.astype(np.float32),
        IMAGES.astype(np.int16),
        IMAGES[:, :32],
        IMAGES[..., :1],
        IMAGES[0],
        IMAGES.transpose(0, 3, 1, 2),
    ],
)
def test_scenes_evaluators_reject_anything_but_uint8_rgb_of_their_size(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"take N x 64 x 64 x 3 uint8 RGB, found \("):
        scenes.pixels(wrong)


def test_pixels_are_scaled_to_minus_one_to_one_channels_first() -> None:
    image = np.zeros((1, 64, 64, 3), np.uint8)
    image[0, 5, 7] = (255, 0, 51)
    pixels = scenes.pixels(image)
    assert pixels.shape == (1, 3, 64, 64)
    np.testing.assert_allclose(pixels[0, :, 5, 7].numpy(), [1, -1, -0.6], atol=1e-6)
