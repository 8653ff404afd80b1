"""LAION's aesthetic predictor V2 (Schuhmann 2022): the rating that people would give an image, from CLIP ViT-L/14's embedding of it.

It is published as five linear layers. Nothing stands between them but dropout, which is off in use, so together they are one affine map.
ImageReward has a head of the same layers.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sdbench.arrays import F64
from sdbench.assets import weights
from sdbench.errors import UserError

ASSET, BACKBONE = "aesthetic-laion-v2", "vit-l-14"
_LAYERS = tuple(f"layers.{place}" for place in (0, 2, 4, 6, 7))  # places in the published `nn.Sequential`, dropout included
TENSORS = tuple(f"{layer}.{part}" for layer in _LAYERS for part in ("weight", "bias"))


class Head(NamedTuple):
    """The rating of a normalised embedding, (d,), is its product with `weight`, (d,), plus `bias`."""

    weight: F64
    bias: float


def fold(state: Mapping[str, Tensor], asset: str) -> Head:
    """The affine map of the published layers, which an asset holds.

    Raises:
        UserError: a layer is missing, or does not fit the next.
    """
    try:
        first, *others = ((state[f"{layer}.weight"].double(), state[f"{layer}.bias"].double()) for layer in _LAYERS)
        weight, bias = first
        for matrix, shift in others:
            weight, bias = matrix @ weight, matrix @ bias + shift
        return Head(weight.squeeze(0).numpy(), bias.item())
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{asset} does not hold the five linear layers of its head ({error}); fetch it again") from error


def head() -> Head:
    """Load the predictor.

    Raises:
        MissingError: its weights are neither on this disk nor reachable.
        UserError: they are damaged.
    """
    return fold(torch.load(weights.find(ASSET), map_location="cpu", weights_only=True), ASSET)
