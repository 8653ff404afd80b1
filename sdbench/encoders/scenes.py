"""The evaluators of the embedded family: feature network, CLIP, preference model and attribute reader; their digests are checked."""

import json
from collections.abc import Callable, Sequence
from functools import cache, partial

import numpy as np
import open_clip
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from sdbench.arrays import F32, U8
from sdbench.disk import file_digest
from sdbench.encoders.inference import encode, exact_inference
from sdbench.encoders.towers import Towers
from sdbench.models.stock import silence_libraries
from sdbench.models.text_encoders import token_ids
from sdbench.scenes.attributes import read_layouts
from sdbench.scenes.embedded import verified_path
from sdbench.scenes.grammar import Layout
from sdbench.scenes.networks import SceneNet, to_pixels

BATCH, CAPTIONS_BATCH = 64, 512  # fixed: another size may change the last digits of features


def towers(name: str, scale: float, image: Callable[[Tensor], Tensor], caption: Callable[[Tensor], Tensor]) -> Towers:
    """Both towers of an evaluator.

    Args:
        image: takes N x 3 x 64 x 64 in -1..1; returns N x 64.
        caption: takes token ids, N x tokens; returns N x 64.
    """

    def texts(captions: Sequence[str]) -> F32:
        return encode(token_ids(_tokenizer(), captions), caption, CAPTIONS_BATCH)

    return Towers(name, scale, partial(_batched, image), texts)


@cache
def clip() -> Towers:
    """Load the open_clip model.

    Raises:
        UserError: its weights are missing or were changed.
    """
    model = open_clip.CLIP(**json.loads(verified_path("evaluators/clip.json").read_text(encoding="utf-8")))
    model.load_state_dict(load_file(verified_path("evaluators/clip.safetensors")))
    model.eval()
    return towers(encoder_id("clip"), 100.0, model.encode_image, model.encode_text)


@cache
def preference() -> Towers:
    """Load the preference model.

    Raises:
        UserError: its weights are missing or were changed.
    """
    silence_libraries()
    model = CLIPModel.from_pretrained(verified_path("evaluators/preference"), dtype=torch.float32).eval()
    return towers(
        encoder_id("preference"),
        model.logit_scale.detach().exp().item(),
        lambda images: model.get_image_features(pixel_values=images).pooler_output,
        lambda ids: model.get_text_features(input_ids=ids).pooler_output,
    )


def encoder_id(name: str) -> str:
    """The name of an evaluator and the digest of its weights, the key for stored features.

    Raises:
        UserError: they are missing or were changed.
    """
    file = {"preference": "preference/model"}.get(name, name)
    return f"{name}.scenes-{file_digest(verified_path(f'evaluators/{file}.safetensors'))[:12]}"


def features(images: U8) -> F32:
    """Features for the Frechet distance, N x 64, of images, N x 64 x 64 x 3 uint8 RGB.

    Raises:
        UserError: the weights are missing or were changed.
        ValueError: see `pixels`.
    """
    return _batched(_scene_net("features").features, images)


def layouts(images: U8) -> list[Layout]:
    """The layout that the attribute reader finds in each image, N x 64 x 64 x 3 uint8 RGB.

    Raises:
        UserError: the weights are missing or were changed.
        ValueError: see `pixels`.
    """
    reader = _scene_net("reader")
    found: list[Layout] = []
    with exact_inference():
        for start in range(0, len(images), BATCH):
            found += read_layouts(reader(pixels(images[start : start + BATCH])))
    return found


def pixels(images: U8) -> Tensor:
    """Convert images, N x 64 x 64 x 3 uint8 RGB, for the evaluators; returns N x 3 x 64 x 64 float32 in -1..1.

    Raises:
        ValueError: another shape or dtype.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != (64, 64, 3):
        raise ValueError(f"the evaluators of scenes take N x 64 x 64 x 3 uint8 RGB, found {images.shape} {images.dtype}")
    return to_pixels(images)


def _batched(network: Callable[[Tensor], Tensor], images: U8) -> F32:
    return encode(images, lambda batch: network(pixels(batch)), BATCH)


@cache
def _scene_net(name: str) -> SceneNet:
    return SceneNet.load(verified_path(f"evaluators/{name}.safetensors"))


@cache
def _tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(verified_path("pipeline/tokenizer"))
