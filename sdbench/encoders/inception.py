"""The Inception network of the Frechet Inception Distance: TensorFlow's of 2015, as ported for pytorch-fid and torch-fidelity.

It is torchvision's Inception v3 with different pooling: average pooling excludes the padding, and the last block has max pooling
(Heusel et al. 2017; the port: Seitzer 2020). The tensors in the file have torchvision's names.
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception as stock

from sdbench.arrays import F32, U8
from sdbench.assets import weights
from sdbench.encoders.inference import device, encode, evaluator
from sdbench.encoders.resize import INCEPTION_RESIZES

BATCH = 32  # fixed: another size changes the last digits of features
ASSET = "inception-2015"
_CLASSES = 1008


def features(resize: str, images: U8) -> F32:
    """Features of images, N x H x W x 3 uint8 RGB, from the last pool; returns N x 2048.

    Args:
        resize: `clean`, `tf1`, `mlperf` or `torchmetrics` (see `encoders.resize`).

    Raises:
        MissingError, UserError: see `weights.find`.
    """
    net, resize_image = network(weights.find(ASSET)), INCEPTION_RESIZES[resize]

    def encode_batch(batch: U8) -> Tensor:  # resizes one image at a time: 32 large ones in float32 take some 400 MB
        pooled: Tensor = net(torch.cat([resize_image(torch.tensor(image, device=device())[None]) for image in batch]))
        return pooled

    return encode(images, encode_batch, BATCH)


@evaluator
def network(file: Path) -> nn.Module:
    """Load the network from a state dict, without its classifier; it maps N x 3 x 299 x 299 in -1..1 to N x 2048."""
    net: nn.Module = build()
    net.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    net.fc = nn.Identity()
    return net.to(device())


def build() -> Any:
    """Build the network without loading weights, classifier included, in evaluation mode."""
    blocks = [stock.BasicConv2d, _A, stock.InceptionB, _C, stock.InceptionD, _E, stock.InceptionAux]
    net = stock.Inception3(_CLASSES, aux_logits=False, inception_blocks=blocks, init_weights=False)
    net.Mixed_7c.pool = _max_pool
    return net.eval().requires_grad_(requires_grad=False)


def _average_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


class _A(stock.InceptionA):  # type: ignore[misc]  # torchvision ships no types
    def _forward(self, x: Tensor) -> list[Tensor]:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch1x1(x), wide, double, self.branch_pool(_average_pool(x))]


class _C(stock.InceptionC):  # type: ignore[misc]  # torchvision ships no types
    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return [self.branch1x1(x), single, double, self.branch_pool(_average_pool(x))]


class _E(stock.InceptionE):  # type: ignore[misc]  # torchvision ships no types
    pool = staticmethod(_average_pool)

    def _forward(self, x: Tensor) -> list[Tensor]:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        singles = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        doubles = [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return [self.branch1x1(x), *singles, *doubles, self.branch_pool(self.pool(x))]
