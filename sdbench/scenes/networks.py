"""The convolutional network of two evaluators: the attribute reader and the feature network of the Frechet distance."""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sdbench.arrays import U8
from sdbench.scenes.attributes import AttributeHeads


class Residual(nn.Module):
    """Two 3 x 3 convolutions with a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to N x C x H x W; returns the same shape."""
        return torch.relu(x + self.body(x))


class SceneNet(nn.Module):
    """Maps images to `width` features, and these to the attributes of the layout.

    There is no global pooling: features keep the position of things, because left and right are part of a layout.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            _conv(3, 16, stride=2), nn.ReLU(),
            _conv(16, 32, stride=2), nn.ReLU(), Residual(32),
            _conv(32, 64, stride=2), nn.ReLU(), Residual(64),
            _conv(64, 64, stride=2), nn.ReLU(), Residual(64),
        )  # fmt: skip  # a line a resolution
        self.project = nn.Linear(64 * 4 * 4, width)
        self.heads = AttributeHeads(width)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Load a saved network in float32 and evaluation mode."""
        tensors = load_file(path)
        net = cls(tensors["project.bias"].numel())
        net.load_state_dict(tensors)
        return net.eval()

    def features(self, pixels: Tensor) -> Tensor:
        """Compute the features of images, N x 3 x 64 x 64 in -1..1; returns N x width."""
        projected: Tensor = self.project(self.trunk(pixels).flatten(1))
        return projected

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Classify images, N x 3 x 64 x 64 in -1..1; returns logits by attribute name, N x classes each."""
        logits: dict[str, Tensor] = self.heads(torch.relu(self.features(pixels)))
        return logits


def to_pixels(images: U8) -> Tensor:
    """Convert images, N x H x W x 3 uint8, for these networks and for VAEs; returns N x 3 x H x W float32 in -1..1."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs))
