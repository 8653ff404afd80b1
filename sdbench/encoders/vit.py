"""Vision transformers whose features compare sets of images: DINOv2 ViT-L/14, and CLIP ViT-L/14 at 336 px.

For both, images are resized with Pillow's bicubic filter, rounded to bytes.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection, Dinov2Model

from sdbench.arrays import F32, U8
from sdbench.assets import weights
from sdbench.encoders import pretrained
from sdbench.encoders.inference import device, encode, evaluator
from sdbench.encoders.pixels import normalise, pillow_bicubic

BATCH = 16  # fixed: another size may change the last digits of features
DINOV2, CLIP = "dinov2-vit-l-14", "clip-vit-l-14-336"
DINOV2_PX, CLIP_PX = 224, 336
_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def dinov2(images: U8) -> F32:
    """DINOv2 features, the class token after the last norm, of images N x H x W x 3 uint8 RGB; returns N x 1024.

    Images are resized to 224 x 224 px, whatever their aspect ratio.

    Source: Stein et al. 2023; this is the default resize of their dgm-eval.

    Raises:
        MissingError, UserError: see `weights.find` and `load_network`.
    """
    mean, std = (torch.tensor(values, device=device())[:, None, None] for values in _IMAGENET)
    model = dinov2_network(weights.find(DINOV2))

    def encode_batch(batch: U8) -> Tensor:
        pixels = pillow_bicubic(batch, (DINOV2_PX, DINOV2_PX), device()).float() / 255
        features: Tensor = model(pixel_values=(pixels - mean) / std).pooler_output
        return features

    return encode(images, encode_batch, BATCH)


def clip(images: U8) -> F32:
    """CLIP embeddings of images N x H x W x 3 uint8 RGB; returns N x 768 of unit length.

    Images are cropped to the centre square and resized to 336 x 336 px.

    Source: Jayasumana et al. 2024 (CMMD).

    Raises:
        MissingError, UserError: see `weights.find` and `load_network`.
    """
    model = clip_network(weights.find(CLIP))

    def encode_batch(batch: U8) -> Tensor:
        pixels = pillow_bicubic(_crop_square(batch), (CLIP_PX, CLIP_PX), device()).float() / 255
        return F.normalize(model(pixel_values=normalise(pixels)).image_embeds)

    return encode(images, encode_batch, BATCH)


def _crop_square(images: U8) -> U8:
    """Crop N x H x W x 3 images to the largest centred square."""
    _, height, width, _ = images.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, top : top + side, left : left + side]


@evaluator
def dinov2_network(folder: Path) -> Any:
    """Load DINOv2 from its folder, for normalised images, N x 3 x 224 x 224.

    Raises:
        UserError: see `load_network`.
    """
    model = pretrained.load_network(Dinov2Model, folder, safetensors=True)
    embeddings = model.embeddings
    embeddings.position_embeddings = nn.Parameter(
        interpolate_positions(embeddings.position_embeddings, DINOV2_PX // model.config.patch_size)
    )
    return model


@evaluator
def clip_network(folder: Path) -> Any:
    """Load CLIP's image tower from its folder, for normalised images, N x 3 x 336 x 336.

    Raises:
        UserError: see `load_network`.
    """
    return pretrained.load_network(CLIPVisionModelWithProjection, folder, safetensors=False)


def interpolate_positions(trained: Tensor, side: int) -> Tensor:
    """Interpolate position embeddings, 1 x tokens x d, from 1 + n x n tokens to 1 + side x side, as DINOv2's own code does.

    It scales by (side + 0.1) / n. transformers scales by side / n, which gives other features below the training size.
    Source: facebookresearch/dinov2, `interpolate_pos_encoding`.
    """
    n = math.isqrt(trained.shape[1] - 1)
    if n == side:
        return trained
    grid = trained[:, 1:].reshape(1, n, n, -1).permute(0, 3, 1, 2)
    scaled = F.interpolate(grid, scale_factor=(side + 0.1) / n, mode="bicubic")
    return torch.cat([trained[:, :1], scaled.flatten(2).transpose(1, 2)], dim=1)
