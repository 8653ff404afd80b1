"""Resizes images for the Inception network as four libraries do; their FIDs of the same images differ by several points.

Each function maps N x H x W x 3 uint8 RGB to N x 3 x 299 x 299 float32 on the same device, and has the name of its protocol.
Nothing is rounded to bytes in between.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SIDE_PX = 299
_SIZE = (SIDE_PX, SIDE_PX)


def clean(images: Tensor) -> Tensor:
    """clean-fid: Pillow's bicubic filter with antialias on floats, clipped to 0..255; then (x - 128) / 128 gives -1..1.

    PyTorch's filter differs from Pillow's by at most 5e-3 levels of 255, which moves features by less than 1e-6 of the largest (measured).
    """
    resized = F.interpolate(_channels_first(images).float(), _SIZE, mode="bicubic", antialias=True)
    return (resized.clamp(0, 255) - 128) / 128


def tf1(images: Tensor) -> Tensor:
    """torch-fidelity: TensorFlow 1's bilinear filter, with the corner, not the centre, of pixels at (0, 0); no antialias."""
    x = _channels_first(images).float()
    top, bottom, dy = _neighbours(x.shape[2], x.device)
    left, right, dx = _neighbours(x.shape[3], x.device)

    def row(at: Tensor) -> Tensor:
        near, far = x[:, :, at][..., left], x[:, :, at][..., right]
        return near + (far - near) * dx

    upper = row(top)
    return (upper + (row(bottom) - upper) * dy[:, None] - 128) / 128


def mlperf(images: Tensor) -> Tensor:
    """pytorch-fid, which MLPerf uses: bilinear without antialias on 0..1; then 2 x - 1 gives -1..1."""
    return 2 * F.interpolate(_channels_first(images).float() / 255, _SIZE, mode="bilinear") - 1


def torchmetrics(images: Tensor) -> Tensor:
    """Torchmetrics since 1.8: bilinear with antialias; then (x - 128) / 128 gives -1..1."""
    return (F.interpolate(_channels_first(images).float(), _SIZE, mode="bilinear", antialias=True) - 128) / 128


INCEPTION_RESIZES = {resize.__name__: resize for resize in (clean, tf1, mlperf, torchmetrics)}


def _channels_first(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2)


def _neighbours(n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """For each of 299 places along n pixels: the pixel before it, the one after it, and its position between them, 0..1."""
    place = torch.arange(SIDE_PX, device=device) * torch.tensor(n / SIDE_PX, device=device)
    before = place.long()
    return before, (before + 1).clamp_max(n - 1), place - before
