"""Vision transformers by whose features sets of pictures are compared: DINOv2 ViT-L/14, and CLIP ViT-L/14 at 336 px.

Both take pictures that Pillow's bicubic filter has made smaller, rounded to bytes.
"""

import math
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection, Dinov2Model

from sdbench.arrays import F32, U8
from sdbench.assets import weights
from sdbench.encoders import folders
from sdbench.encoders.pixels import device, encode, normalised, pillow_bicubic

BATCH = 16  # fixed: features may change in their last digits with it
DINOV2, CLIP = "dinov2-vit-l-14", "clip-vit-l-14-336"
DINOV2_PX, CLIP_PX = 224, 336
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dinov2(pictures: U8) -> F32:
    """N x H x W x 3 uint8 RGB, squeezed to 224 x 224 px => N x 1024: the class token behind the last norm.

    Source: Stein et al. 2023, whose dgm-eval resizes so unless told otherwise.
    """
    mean, deviation = (torch.tensor(values, device=device())[:, None, None] for values in _IMAGENET)
    model = dinov2_network(weights.find(DINOV2))

    def encoded(batch: U8) -> Tensor:
        pixels = pillow_bicubic(batch, (DINOV2_PX, DINOV2_PX), device()).float() / 255
        features: Tensor = model(pixel_values=(pixels - mean) / deviation).pooler_output
        return features

    return encode(pictures, encoded, BATCH)


def clip(pictures: U8) -> F32:
    """N x H x W x 3 uint8 RGB, of each the middle square at 336 x 336 px => N x 768 of length 1.

    Source: Jayasumana et al. 2024 (CMMD).
    """
    model = clip_network(weights.find(CLIP))

    def encoded(batch: U8) -> Tensor:
        pixels = pillow_bicubic(_square(batch), (CLIP_PX, CLIP_PX), device()).float() / 255
        return F.normalize(model(pixel_values=normalised(pixels)).image_embeds)

    return encode(pictures, encoded, BATCH)


def _square(pictures: U8) -> U8:
    """The largest square in the middle, N x H x W x 3."""
    _, height, width, _ = pictures.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return pictures[:, top : top + side, left : left + side]


@cache
def dinov2_network(folder: Path) -> Any:
    """DINOv2 from its folder, for 224 px, N x 3 x 224 x 224 normalised."""
    model = folders.read(Dinov2Model, folder, safetensors=True)
    embeddings = model.embeddings
    embeddings.position_embeddings = nn.Parameter(positions(embeddings.position_embeddings, DINOV2_PX // model.config.patch_size))
    return model


@cache
def clip_network(folder: Path) -> Any:
    """CLIP's tower of pictures from its folder, N x 3 x 336 x 336 normalised."""
    return folders.read(CLIPVisionModelWithProjection, folder, safetensors=False)


def positions(trained: Tensor, side: int) -> Tensor:
    """Position embeddings of 1 + n x n tokens made those of 1 + side x side, 1 x tokens x d, as DINOv2's own code does.

    It scales by (side + 0.1) / n; transformers, by side / n, gives other features below the size that it was trained at.
    Source: facebookresearch/dinov2, `interpolate_pos_encoding`.
    """
    n = math.isqrt(trained.shape[1] - 1)
    if n == side:
        return trained
    grid = trained[:, 1:].reshape(1, n, n, -1).permute(0, 3, 1, 2)
    scaled = F.interpolate(grid, scale_factor=(side + 0.1) / n, mode="bicubic")
    return torch.cat([trained[:, :1], scaled.flatten(2).transpose(1, 2)], dim=1)
