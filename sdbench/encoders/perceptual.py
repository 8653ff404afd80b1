"""How alike two pictures look: SSIM, and LPIPS through torchmetrics."""

import functools
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.functional.image.lpips import _LPIPS  # it brings the heads' weights, and asks the network for the rest

from sdbench.arrays import F32, U8
from sdbench.assets import weights
from sdbench.encoders.pixels import device, exact, rgb

BATCH = 8
RADIUS, SIGMA = 5, 1.5  # of SSIM's window, px


def ssim(x: U8, y: U8) -> F32:
    """Structural similarity (Wang et al. 2004) of each picture with its partner, N x H x W x 3 uint8 twice => (N,), at most 1.

    Gaussian window of 11 px, sigma 1.5, K 0.01 and 0.03, of the values 0..255 of each channel, averaged over all pixels,
    the picture reflected at its border: torchmetrics' formula. In its float32 a picture of plain areas reaches only 0.9992
    with itself; its window of two dimensions in float64 takes 26 s and 11 GB for two pictures of 1024 px. Hence this.
    """
    return _compare(_ssim, x, y)


def _ssim(x: Tensor, y: Tensor) -> Tensor:
    a, b = x.double(), y.double()
    mean_a, mean_b, aa, bb, ab = (_blurred(values) for values in (a, b, a * a, b * b, a * b))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    means, products = mean_a * mean_b, mean_a**2 + mean_b**2
    similarity = (2 * means + c1) * (2 * (ab - means) + c2) / ((products + c1) * (aa + bb - products + c2))
    return similarity.mean(dim=(1, 2, 3))


def _blurred(values: Tensor) -> Tensor:
    """N x 3 x H x W under the window, down and then across."""
    weights = [math.exp(-((place / SIGMA) ** 2) / 2) for place in range(-RADIUS, RADIUS + 1)]
    for dim in (2, 3):
        margins = [RADIUS * (dim == 3)] * 2 + [RADIUS * (dim == 2)] * 2
        wide, n = F.pad(values, margins, mode="reflect"), values.shape[dim]
        values = functools.reduce(torch.Tensor.add_, (weight / sum(weights) * wide.narrow(dim, at, n) for at, weight in enumerate(weights)))
    return values


def lpips(x: U8, y: U8) -> F32:
    """Learned perceptual distance (Zhang et al. 2018), AlexNet, version 0.1, N x H x W x 3 uint8 twice => (N,); 0 = the same.

    Raises:
        MissingError: AlexNet's weights are not at hand.
    """
    compared = network()
    return _compare(lambda a, b: compared(a / 127.5 - 1, b / 127.5 - 1).flatten(1).mean(1), x, y)


def _compare(measure: Callable[[Tensor, Tensor], Tensor], x: U8, y: U8) -> F32:
    if rgb(x).shape != rgb(y).shape:
        raise ValueError(f"paired pictures must have one shape, found {x.shape} and {y.shape}")
    with exact():
        sides = (
            [torch.from_numpy(side[at : at + BATCH]).to(device()).permute(0, 3, 1, 2).float() for side in (x, y)]
            for at in range(0, len(x), BATCH)
        )
        return np.concatenate([measure(*pair).cpu().numpy().reshape(-1) for pair in sides])


def with_alexnet(state: dict[str, Tensor]) -> nn.Module:
    """LPIPS over an AlexNet with torchvision's names of tensors."""
    made = _LPIPS(pretrained=True, net="alex", pnet_rand=True)  # the heads are pretrained, the network random
    mine = {name: state[f"features.{name.split('.', 1)[1]}"] for name in made.net.state_dict()}
    made.net.load_state_dict(mine)
    return made.eval()


@cache
def network() -> nn.Module:
    """LPIPS with its weights.

    Raises:
        MissingError: AlexNet's are not at hand.
        UserError: they are damaged.
    """
    return with_alexnet(torch.load(weights.find("lpips-alex"), map_location="cpu", weights_only=True)).to(device())
