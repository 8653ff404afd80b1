"""How alike two pictures look: SSIM and LPIPS, both through torchmetrics."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.image.lpips import _LPIPS  # it brings the heads' weights, and asks the network for the rest

from sdbench.encoders import at_hand
from sdbench.encoders.pixels import F32, U8, device, exact, rgb
from sdbench.errors import UserError
from sdbench.models.checks import check_finite

BATCH = 8


def ssim(x: U8, y: U8) -> F32:
    """Structural similarity (Wang et al. 2004) of each picture with its partner, N x H x W x 3 uint8 twice => (N,), at most 1.

    Gaussian window of 11 px, sigma 1.5, K 0.01 and 0.03, of the values 0..255 of each channel, averaged over all pixels,
    the picture reflected at its border. In float64: in float32, as torchmetrics has it by itself, a picture of plain areas
    reaches only 0.9992 with itself.
    """

    def measured(a: Tensor, b: Tensor) -> Tensor:
        found: Tensor = structural_similarity_index_measure(a.double(), b.double(), data_range=255.0, reduction="none")  # type: ignore[assignment]  # a pair only where its parts are asked for
        return found

    return _compare(measured, x, y)


def lpips(x: U8, y: U8) -> F32:
    """Learned perceptual distance (Zhang et al. 2018), AlexNet, version 0.1, N x H x W x 3 uint8 twice => (N,); 0 = the same.

    Raises:
        MissingError: AlexNet's weights are not at hand.
    """
    network = _lpips()
    return _compare(lambda a, b: network(a / 127.5 - 1, b / 127.5 - 1).flatten(1).mean(1), x, y)


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
    network = _LPIPS(pretrained=True, net="alex", pnet_rand=True)  # the heads are pretrained, the network random
    mine = {name: state[f"features.{name.split('.', 1)[1]}"] for name in network.net.state_dict()}
    network.net.load_state_dict(mine)
    return network.eval()


def read_lpips(file: Path) -> nn.Module:
    """The same from a file of torchvision's.

    Raises:
        UserError: it is no AlexNet's, or not finite.
    """
    try:
        network = with_alexnet(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:
        raise UserError(f"{file} does not hold torchvision's AlexNet: {type(error).__name__}: {error}; fetch it again") from error
    check_finite(network, "AlexNet", file)
    return network.to(device())


@cache
def _lpips() -> nn.Module:
    return read_lpips(at_hand.weight_file(at_hand.find("lpips-alex")))
