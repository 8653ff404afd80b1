"""The four ways to 299 px: each against the library that it is named after, or its formula, and against the others."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from pictures import SIZES, noise, photograph
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from sdbench.encoders.resize import INCEPTION_RESIZES
from sdbench.store import U8

PICTURES = [*(photograph(seed, *size) for seed, size in enumerate(SIZES)), noise(9, 300, 298)]


def resized(how: str, picture: U8) -> Tensor:
    return INCEPTION_RESIZES[how](torch.tensor(picture)[None])[0]


def levels(how: str, picture: U8) -> Tensor:
    """On the scale of bytes."""
    return resized(how, picture) * 128 + 128


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: str(picture.shape))
def test_clean_is_cleanfid_s_to_a_hundredth_of_a_level(picture: U8) -> None:
    theirs = pytest.importorskip("cleanfid.resize").build_resizer("clean")(picture)
    np.testing.assert_allclose(levels("clean", picture).numpy(), theirs.transpose(2, 0, 1), atol=0.01)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: str(picture.shape))
def test_mlperf_is_pytorch_fid_s_formula(picture: U8) -> None:
    theirs = 2 * torch.nn.functional.interpolate(to_tensor(picture)[None], size=(299, 299), mode="bilinear", align_corners=False)[0] - 1
    torch.testing.assert_close(resized("mlperf", picture), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: str(picture.shape))
def test_tf1_is_torch_fidelity_s_to_the_bit(picture: U8) -> None:
    peer = pytest.importorskip("torch_fidelity.interpolate_compat_tensorflow", reason="torch-fidelity is in the dependency group `peers`")
    pixels = torch.tensor(picture).permute(2, 0, 1)[None].float()
    theirs = peer.interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(299, 299), align_corners=False)[0]
    assert torch.equal(resized("tf1", picture), (theirs - 128) / 128)


def test_tf1_by_its_definition() -> None:
    picture = noise(1, 70, 410)
    ours = levels("tf1", picture)
    for y, x in ((0, 0), (17, 250), (150, 3), (298, 298)):
        down, across = y * 70 / 299, x * 410 / 299
        top, left = int(down), int(across)
        corners = picture[[[top], [min(top + 1, 69)]], [left, min(left + 1, 409)]].astype(float)  # 2 x 2 x 3
        (dy, dx) = down - top, across - left
        expected = np.einsum("y,x,yxc->c", [1 - dy, dy], [1 - dx, dx], corners)
        np.testing.assert_allclose(ours[:, y, x], expected, atol=0.02)  # places are float32


def test_at_half_the_size_each_weighs_pixels_as_it_should() -> None:
    """Of pixels 2 i - 1 to 2 i + 2: corner aligned bilinear takes one, centre aligned two, with antialias four."""
    picture = noise(1, 598, 598)
    x = torch.tensor(picture).permute(2, 0, 1).float()
    torch.testing.assert_close(levels("tf1", picture), x[:, ::2, ::2], rtol=0, atol=1e-3)
    means = (x[:, ::2] + x[:, 1::2]) / 2
    means = (means[..., ::2] + means[..., 1::2]) / 2
    torch.testing.assert_close(resized("mlperf", picture), 2 * means / 255 - 1, rtol=0, atol=1e-5)

    def four(x: Tensor) -> Tensor:
        return (x[..., 1:-3:2] + 3 * x[..., 2:-2:2] + 3 * x[..., 3:-1:2] + x[..., 4::2]) / 8

    inner = four(four(x).mT).mT
    torch.testing.assert_close(levels("torchmetrics", picture)[:, 1:-1, 1:-1], inner, rtol=0, atol=1e-3)


@pytest.mark.parametrize("how", INCEPTION_RESIZES)
def test_the_scale_of_bytes_and_the_place_of_channels(how: str) -> None:
    picture = np.zeros((299, 299, 3), np.uint8)
    picture[..., 0], picture[10, 20, 2] = 255, 128
    ours = resized(how, picture)
    assert ours.shape == (3, 299, 299)
    assert ours.dtype == torch.float32
    black, white, middle = (-1, 1, 128 / 127.5 - 1) if how == "mlperf" else (-1, 127 / 128, 0)
    assert ours[0].unique().numpy() == pytest.approx([white])
    assert ours[1].unique().numpy() == pytest.approx([black])
    assert float(ours[2, 10, 20]) == pytest.approx(middle, abs=1e-6)


def test_clean_clips_the_overshoot_of_its_filter() -> None:
    picture = np.where(np.arange(400)[:, None, None] % 40 < 20, 0, 255).astype(np.uint8) * np.ones((1, 400, 3), np.uint8)
    ours = levels("clean", picture)
    assert (float(ours.min()), float(ours.max())) == (0, 255)


@pytest.mark.parametrize("how", INCEPTION_RESIZES.values(), ids=INCEPTION_RESIZES)
def test_a_picture_does_not_depend_on_those_beside_it(how: Callable[[Tensor], Tensor]) -> None:
    pictures = torch.tensor(np.stack([photograph(seed, 200, 310) for seed in range(3)]))
    torch.testing.assert_close(how(pictures)[1:2], how(pictures[1:2]), rtol=0, atol=0)


def test_no_two_agree_on_a_large_picture() -> None:
    made = {how: levels(how, PICTURES[2]) for how in INCEPTION_RESIZES}
    gaps = {(one, other): float((made[one] - made[other]).abs().mean()) for one in made for other in made if one < other}
    assert min(gaps.values()) > 0.1
