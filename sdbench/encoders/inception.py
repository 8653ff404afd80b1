"""The Inception network of the Frechet Inception Distance: TensorFlow's of 2015, in the port that pytorch-fid and torch-fidelity share.

It is torchvision's Inception v3 but for its pools: averages leave out the padding, and the last block takes a maximum
(Heusel et al. 2017; the port: Seitzer 2020). The file's tensors are named as torchvision's.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception as stock

from sdbench.arrays import F32, U8
from sdbench.assets import weights
from sdbench.encoders.pixels import device, encode
from sdbench.encoders.resize import INCEPTION

BATCH = 32  # fixed: features change in their last digits with it
ASSET = "inception-2015"
_CLASSES = 1008


def features(resize: str, pictures: U8) -> F32:
    """N x H x W x 3 uint8 RGB => N x 2048, the last pool's.

    Args:
        resize: `clean`, `tf1`, `mlperf` or `torchmetrics` (`encoders.resize`).
    """
    net, how = network(weights.find(ASSET)), INCEPTION[resize]

    def encoded(batch: U8) -> Tensor:  # resized one by one: 32 large pictures in float32 take some 400 MB
        pooled: Tensor = net(torch.cat([how(torch.tensor(picture, device=device())[None]) for picture in batch]))
        return pooled

    return encode(pictures, encoded, BATCH)


@cache
def network(file: Path) -> nn.Module:
    """The network with a state dict, N x 3 x 299 x 299 in -1..1 => N x 2048; its classifier is left out."""
    made: nn.Module = blank()
    made.load_state_dict(torch.load(file, weights_only=True, map_location="cpu"))
    made.fc = nn.Identity()
    return made.to(device())


def blank() -> Any:
    """The network before its weights, for evaluation, classifier included."""
    blocks = [stock.BasicConv2d, _A, stock.InceptionB, _C, stock.InceptionD, _E, stock.InceptionAux]
    made = stock.Inception3(_CLASSES, aux_logits=False, inception_blocks=blocks, init_weights=False)
    made.Mixed_7c.pool = _maximum
    return made.eval().requires_grad_(requires_grad=False)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


class _A(stock.InceptionA):  # type: ignore[misc]  # torchvision ships no types
    def _forward(self, x: Tensor) -> list[Tensor]:
        wide = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return [self.branch1x1(x), wide, double, self.branch_pool(_average(x))]


class _C(stock.InceptionC):  # type: ignore[misc]  # torchvision ships no types
    def _forward(self, x: Tensor) -> list[Tensor]:
        single = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return [self.branch1x1(x), single, double, self.branch_pool(_average(x))]


class _E(stock.InceptionE):  # type: ignore[misc]  # torchvision ships no types
    pool = staticmethod(_average)

    def _forward(self, x: Tensor) -> list[Tensor]:
        single, double = self.branch3x3_1(x), self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        singles = [self.branch3x3_2a(single), self.branch3x3_2b(single)]
        doubles = [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return [self.branch1x1(x), *singles, *doubles, self.branch_pool(self.pool(x))]
