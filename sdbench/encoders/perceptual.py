"""Perceptual similarity of two images: SSIM, and LPIPS through torchmetrics."""

import math
from collections.abc import Callable
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS  # it ships the weights of the heads, but not of AlexNet

from sdbench.arrays import F64, U8
from sdbench.assets import weights
from sdbench.encoders.inference import device, evaluator, exact_inference
from sdbench.encoders.pixels import verified_rgb

BATCH = 8
RADIUS, SIGMA = 5, 1.5  # of SSIM's window, px


def ssim(x: U8, y: U8) -> F64:
    """Structural similarity (Wang et al. 2004) of each image with its partner, N x H x W x 3 uint8 both; returns (N,), at most 1.

    The formula is torchmetrics': Gaussian window of 11 px, sigma 1.5, K 0.01 and 0.03, on the values 0..255 of each channel,
    averaged over all pixels, with images reflected at their border. It is computed here because in torchmetrics' float32 an
    image of plain areas scores only 0.9992 against itself, and in float64 its two-dimensional window takes 26 s and 11 GB for
    two images of 1024 px.

    Raises:
        ValueError: other shapes or dtypes, or shapes that differ.
    """
    return _compare(_ssim, x, y)


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    a, b = x.double(), y.double()
    mean_a, mean_b, aa, bb, ab = (_gaussian_window(values) for values in (a, b, a * a, b * b, a * b))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    means, products = mean_a * mean_b, mean_a**2 + mean_b**2
    similarity = (2 * means + c1) * (2 * (ab - means) + c2) / ((products + c1) * (aa + bb - products + c2))
    return similarity.mean(dim=(1, 2, 3))


def _gaussian_window(values: Tensor) -> Tensor:
    """Values, N x 3 x H x W, averaged over the window, first down and then across."""
    weights = [math.exp(-((place / SIGMA) ** 2) / 2) for place in range(-RADIUS, RADIUS + 1)]
    for dim in (2, 3):
        margins = [RADIUS * (dim == 3)] * 2 + [RADIUS * (dim == 2)] * 2
        wide, n = F.pad(values, margins, mode="reflect"), values.shape[dim]
        values = reduce(torch.Tensor.add_, (weight / sum(weights) * wide.narrow(dim, at, n) for at, weight in enumerate(weights)))
    return values


def lpips(x: U8, y: U8) -> F64:
    """Learned perceptual distance (Zhang et al. 2018), AlexNet, version 0.1, of images N x H x W x 3 uint8; returns (N,), 0 = the same.

    Raises:
        MissingError, UserError: see `network`.
        ValueError: see `ssim`.
    """
    distance = network()
    return _compare(lambda a, b: distance(a / 127.5 - 1, b / 127.5 - 1).flatten(1).mean(1), x, y)


def _compare(measure: Callable[[Tensor, Tensor], Tensor], x: U8, y: U8) -> F64:
    if verified_rgb(x).shape != verified_rgb(y).shape:
        raise ValueError(f"paired images must have one shape, found {x.shape} and {y.shape}")
    with exact_inference():
        sides = (
            [torch.from_numpy(side[at : at + BATCH]).to(device()).permute(0, 3, 1, 2).float() for side in (x, y)]
            for at in range(0, len(x), BATCH)
        )
        return np.concatenate([measure(*pair).double().cpu().numpy() for pair in sides])


def build_lpips(state: dict[str, Tensor]) -> nn.Module:
    """Build LPIPS from the state dict of torchvision's AlexNet."""
    model = _LPIPS(pretrained=True, net="alex", pnet_rand=True)  # pretrained heads on a random AlexNet
    model.net.load_state_dict({name: state[f"features.{name.split('.', 1)[1]}"] for name in model.net.state_dict()})
    return model.eval()


@evaluator
def network() -> nn.Module:
    """Load LPIPS.

    Raises:
        MissingError: AlexNet's weights are neither on this disk nor reachable.
        UserError: they are damaged.
    """
    return build_lpips(torch.load(weights.find("lpips-alex"), map_location="cpu", weights_only=True)).to(device())
