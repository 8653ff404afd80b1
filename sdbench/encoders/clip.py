"""CLIP through open_clip, for CLIP scores, and for preference models with the same architecture."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor

from sdbench.arrays import F32, U8
from sdbench.assets import weights
from sdbench.encoders.inference import device, encode, evaluator
from sdbench.encoders.pixels import resize_shortest_edge
from sdbench.encoders.towers import Towers, image_features, text_features

Prepare = Callable[[U8, int, torch.device], Tensor]  # takes images, the side of the network's input and the device
BATCH, CAPTIONS_BATCH = 16, 64  # fixed: another size may change the last digits of features
# Backbone, as named in protocols -> open_clip's configuration. OpenAI trained its weights with the quick GELU.
BACKBONES = {
    "vit-b-32": "ViT-B-32-quickgelu",
    "vit-b-16": "ViT-B-16-quickgelu",
    "vit-l-14": "ViT-L-14-quickgelu",
    "vit-h-14": "ViT-H-14",
}


def towers(model: open_clip.CLIP, name: str, prepare: Prepare = resize_shortest_edge) -> Towers:
    """Both towers of a CLIP, with the preprocessing of images. Long captions are cut, and keep their end-of-text token."""

    def images(given: U8) -> F32:
        weight, side = model.text_projection, model.visual.image_size[0]
        return encode(given, lambda some: image_features(model, prepare(some, side, weight.device).to(weight.dtype)), BATCH)

    def texts(captions: Sequence[str]) -> F32:
        return encode(tokenize(captions), lambda tokens: text_features(model, tokens), CAPTIONS_BATCH)

    return Towers(name, 100.0, images, texts)


def tokenize(captions: Sequence[str]) -> Tensor:
    """The token ids of captions, N x 77: 0 after the end-of-text token, which truncated captions have too."""
    tokens: Tensor = open_clip.tokenize(list(captions))
    return tokens


def build(config: Mapping[str, Any]) -> open_clip.CLIP:
    """Build a CLIP from an open_clip configuration, on the CPU, with random weights."""
    return open_clip.CLIP(**config).eval()


def load_weights(model: open_clip.CLIP, file: Path) -> open_clip.CLIP:
    """Load weights into a CLIP, from safetensors or a pickled state dict (weights only), and return the model on the encoders' device."""
    open_clip.load_checkpoint(model, str(file), strict=True, weights_only=True)
    return model.to(device())


@evaluator
def load(backbone: str) -> Towers:
    """Load a backbone of `BACKBONES`.

    Raises:
        MissingError: its weights are neither on this disk nor reachable.
        UserError: they are damaged.
    """
    return load_asset(f"clip-{backbone}", BACKBONES[backbone], f"clip.{backbone}", resize_shortest_edge)


def load_asset(asset: str, architecture: str, name: str, prepare: Prepare) -> Towers:
    """Load the weights of an asset into an architecture of open_clip.

    Raises:
        MissingError, UserError: see `load`.
    """
    file = weights.find(asset)  # fails before the network is built
    model = load_weights(build(open_clip.get_model_config(architecture)), file)
    return towers(model, f"{name}-{weights.digest(asset)[:12]}", prepare)
