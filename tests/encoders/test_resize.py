"""The four resizes to 299 px: each against its reference library or formula, and against the others."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from synthetic_images import SIZES, noise, photograph
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from sdbench.arrays import U8
from sdbench.encoders.resize import INCEPTION_RESIZES

IMAGES = [*(photograph(seed, *size) for seed, size in enumerate(SIZES)), noise(9, 300, 298)]


def resize_image(how: str, image: U8) -> Tensor:
    return INCEPTION_RESIZES[how](torch.tensor(image)[None])[0]


def levels(how: str, image: U8) -> Tensor:
    """The resized image on the scale of bytes."""
    return resize_image(how, image) * 128 + 128


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: str(image.shape))
def test_clean_matches_cleanfid_within_a_hundredth_of_a_level(image: U8) -> None:
    expected = pytest.importorskip("cleanfid.resize").build_resizer("clean")(image)
    np.testing.assert_allclose(levels("clean", image).numpy(), expected.transpose(2, 0, 1), atol=0.01)


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: str(image.shape))
def test_mlperf_matches_pytorch_fids_formula(image: U8) -> None:
    expected = 2 * torch.nn.functional.interpolate(to_tensor(image)[None], size=(299, 299), mode="bilinear", align_corners=False)[0] - 1
    torch.testing.assert_close(resize_image("mlperf", image), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: str(image.shape))
def test_tf1_is_bit_identical_to_torch_fidelity(image: U8) -> None:
    peer = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow", reason="torch-fidelity is in the dependency group `peers`")
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float()
    expected = peer.interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(299, 299), align_corners=False)[0]
    assert torch.equal(resize_image("tf1", image), (expected - 128) / 128)


def test_tf1_matches_its_definition() -> None:
    image = noise(1, 70, 410)
    found = levels("tf1", image)
    for y, x in ((0, 0), (17, 250), (150, 3), (298, 298)):
        down, across = y * 70 / 299, x * 410 / 299
        top, left = int(down), int(across)
        corners = image[[[top], [min(top + 1, 69)]], [left, min(left + 1, 409)]].astype(float)  # 2 x 2 x 3
        (dy, dx) = down - top, across - left
        expected = np.einsum("y,x,yxc->c", [1 - dy, dy], [1 - dx, dx], corners)
        np.testing.assert_allclose(found[:, y, x], expected, atol=0.02)  # positions are float32


def test_halving_weighs_pixels_by_the_formula_of_each_resize() -> None:
    """Each output averages some of the pixels 2 i - 1 to 2 i + 2: corner-aligned bilinear one, centre-aligned two, antialiased four."""
    image = noise(1, 598, 598)
    x = torch.tensor(image).permute(2, 0, 1).float()
    torch.testing.assert_close(levels("tf1", image), x[:, ::2, ::2], rtol=0, atol=1e-3)
    means = (x[:, ::2] + x[:, 1::2]) / 2
    means = (means[..., ::2] + means[..., 1::2]) / 2
    torch.testing.assert_close(resize_image("mlperf", image), 2 * means / 255 - 1, rtol=0, atol=1e-5)

    def four(x: Tensor) -> Tensor:
        return (x[..., 1:-3:2] + 3 * x[..., 2:-2:2] + 3 * x[..., 3:-1:2] + x[..., 4::2]) / 8

    inner = four(four(x).mT).mT
    torch.testing.assert_close(levels("torchmetrics", image)[:, 1:-1, 1:-1], inner, rtol=0, atol=1e-3)


@pytest.mark.parametrize("how", INCEPTION_RESIZES)
def test_output_has_the_expected_scale_and_channel_order(how: str) -> None:
    image = np.zeros((299, 299, 3), np.uint8)
    image[..., 0], image[10, 20, 2] = 255, 128
    found = resize_image(how, image)
    assert found.shape == (3, 299, 299)
    assert found.dtype == torch.float32
    black, white, middle = (-1, 1, 128 / 127.5 - 1) if how == "mlperf" else (-1, 127 / 128, 0)
    assert np.unique(found[0].numpy()) == pytest.approx([white])
    assert np.unique(found[1].numpy()) == pytest.approx([black])
    assert float(found[2, 10, 20]) == pytest.approx(middle, abs=1e-6)


def test_clean_clips_the_overshoot_of_its_filter() -> None:
    image = np.where(np.arange(400)[:, None, None] % 40 < 20, 0, 255).astype(np.uint8) * np.ones((1, 400, 3), np.uint8)
    found = levels("clean", image)
    assert (float(found.min()), float(found.max())) == (0, 255)


@pytest.mark.parametrize("how", INCEPTION_RESIZES.values(), ids=INCEPTION_RESIZES)
def test_result_does_not_depend_on_other_images_in_the_batch(how: Callable[[Tensor], Tensor]) -> None:
    images = torch.tensor(np.stack([photograph(seed, 200, 310) for seed in range(3)]))
    torch.testing.assert_close(how(images)[1:2], how(images[1:2]), rtol=0, atol=0)


def test_all_resizes_differ_on_a_large_image() -> None:
    outputs = {how: levels(how, IMAGES[2]) for how in INCEPTION_RESIZES}
    gaps = {(one, other): float((outputs[one] - outputs[other]).abs().mean()) for one in outputs for other in outputs if one < other}
    assert min(gaps.values()) > 0.1
