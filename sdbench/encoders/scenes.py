"""The embedded family's evaluators: feature network, CLIP, preference model and attribute reader, digests checked."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from sdbench.arrays import F32, U8
from sdbench.encoders.pixels import encode, exact
from sdbench.models.stock import silence_libraries
from sdbench.models.text_encoders import token_ids
from sdbench.scenes.attributes import read_layouts
from sdbench.scenes.embedded import checked, digest
from sdbench.scenes.grammar import Layout
from sdbench.scenes.networks import SceneNet, to_pixels

BATCH = 64  # fixed: features may change in their last digits with it


@dataclass(frozen=True, eq=False)
class Towers:
    """Both towers of a CLIP, N x 3 x 64 x 64 in -1..1 and N x tokens to N x 64, as protocols take the full-size ones."""

    name: str
    scale: float
    picture: Callable[[Tensor], Tensor]
    caption: Callable[[Tensor], Tensor]

    def images(self, images: U8) -> F32:
        """N x 64 x 64 x 3 uint8 RGB => N x 64."""
        return _batched(self.picture, images)

    def texts(self, captions: Sequence[str]) -> F32:
        """Captions => N x 64."""
        with exact():
            embedded: F32 = self.caption(token_ids(_tokenizer(), captions)).numpy()
        return embedded


@cache
def clip() -> Towers:
    """The open_clip model."""
    model = open_clip.CLIP(**json.loads(checked("evaluators/clip.json").read_text()))
    model.load_state_dict(load_file(checked("evaluators/clip.safetensors")))
    model.eval()
    return Towers(encoder_id("clip"), 100.0, model.encode_image, model.encode_text)


@cache
def preference() -> Towers:
    """The preference model."""
    silence_libraries()
    model = CLIPModel.from_pretrained(checked("evaluators/preference"), dtype=torch.float32).eval()
    return Towers(
        encoder_id("preference"),
        model.logit_scale.detach().exp().item(),
        lambda pictures: model.get_image_features(pixel_values=pictures).pooler_output,
        lambda ids: model.get_text_features(input_ids=ids).pooler_output,
    )


def encoder_id(name: str) -> str:
    """Name of an evaluator with the digest of its weights: features are cached under it."""
    file = {"preference": "preference/model"}.get(name, name)
    return f"{name}.scenes-{digest(checked(f'evaluators/{file}.safetensors'))[:12]}"


def features(images: U8) -> F32:
    """N x 64 x 64 x 3 uint8 RGB => N x 64 features for the Frechet distance."""
    return _batched(_scene_net("features").features, images)


def layouts(images: U8) -> list[Layout]:
    """What the attribute reader sees in each picture."""
    reader = _scene_net("reader")
    read: list[Layout] = []
    with exact():
        for start in range(0, len(images), BATCH):
            read += read_layouts(reader(pixels(images[start : start + BATCH])))
    return read


def pixels(images: U8) -> Tensor:
    """N x H x W x 3 uint8 => N x 3 x H x W float32 in -1..1, as all evaluators take them."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (64, 64, 3):
        raise ValueError(f"the scenes' evaluators take N x 64 x 64 x 3 uint8 RGB, found {images.shape} {images.dtype}")
    return to_pixels(images)


def _batched(network: Callable[[Tensor], Tensor], images: U8) -> F32:
    return encode(images, lambda batch: network(pixels(batch)), BATCH)


@cache
def _scene_net(name: str) -> SceneNet:
    return SceneNet.load(checked(f"evaluators/{name}.safetensors"))


@cache
def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(checked("pipeline/tokenizer"))
