"""The embedded family's evaluators: feature network, CLIP, preference model and attribute reader, digests checked."""

import json
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from sdbench.arrays import F32, U8
from sdbench.encoders.pixels import encode, exact
from sdbench.models.stock import quiet
from sdbench.scenes.attributes import read_layouts
from sdbench.scenes.embedded import checked, digest
from sdbench.scenes.grammar import Layout
from sdbench.scenes.networks import SceneNet

BATCH = 64  # fixed: features may change in their last digits with it


def encoder_id(name: str) -> str:
    """Name of an evaluator with the digest of its weights: features are cached under it."""
    file = {
        "features": "features.safetensors",
        "reader": "reader.safetensors",
        "clip": "clip.safetensors",
        "preference": "preference/model.safetensors",
    }[name]
    return f"{name}.scenes-{digest(checked(f'evaluators/{file}'))[:12]}"


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


def clip_images(images: U8) -> F32:
    """N x 64 x 64 x 3 uint8 RGB => N x 64 of the open_clip model."""
    return _batched(_clip().encode_image, images)


def clip_texts(captions: Sequence[str]) -> F32:
    """Captions => N x 64 of the open_clip model."""
    with exact():
        embedded: F32 = _clip().encode_text(_tokens(captions)).numpy()
    return embedded


def preference_images(images: U8) -> F32:
    """N x 64 x 64 x 3 uint8 RGB => N x 64 of the preference model."""
    model = _preference()
    return _batched(lambda batch: model.visual_projection(model.vision_model(pixel_values=batch).pooler_output), images)


def preference_texts(captions: Sequence[str]) -> tuple[F32, float]:
    """Captions => N x 64 of the preference model, and its logit scale."""
    model = _preference()
    with exact():
        embedded: F32 = model.text_projection(model.text_model(input_ids=_tokens(captions)).pooler_output).numpy()
    return embedded, model.logit_scale.detach().exp().item()


def pixels(images: U8) -> Tensor:
    """N x H x W x 3 uint8 => N x 3 x H x W float32 in -1..1, as all evaluators take them."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (64, 64, 3):
        raise ValueError(f"the scenes' evaluators take N x 64 x 64 x 3 uint8 RGB, found {images.shape} {images.dtype}")
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def _batched(network: Callable[[Tensor], Tensor], images: U8) -> F32:
    return encode(images, lambda batch: network(pixels(batch)), BATCH)


@cache
def _scene_net(name: str) -> SceneNet:
    return SceneNet.load(checked(f"evaluators/{name}.safetensors"))


@cache
def _clip() -> open_clip.CLIP:
    model = open_clip.CLIP(**json.loads(checked("evaluators/clip.json").read_text()))
    model.load_state_dict(load_file(checked("evaluators/clip.safetensors")))
    return model.eval()


@cache
def _preference() -> CLIPModel:
    quiet()
    return CLIPModel.from_pretrained(checked("evaluators/preference"), dtype=torch.float32).eval()


@cache
def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(checked("pipeline/tokenizer"))


def _tokens(captions: Sequence[str]) -> Tensor:
    tokenizer = _tokenizer()
    ids: Tensor = tokenizer(
        list(captions), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
    return ids
