"""Full-size human-preference proxies: PickScore v1 through transformers, HPS v2.1 through open_clip."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import open_clip
import torch
from torch import Tensor
from transformers import CLIPModel

from sdbench.arrays import F32, U8
from sdbench.assets import weights
from sdbench.encoders import clip, folders
from sdbench.encoders.pixels import encode, exact, longest_edge, shortest_edge

HPS_ARCHITECTURE = "ViT-H-14"
_prepared = partial(shortest_edge, corner=math.floor)  # as transformers' processor crops


@dataclass(frozen=True, eq=False)
class PickScore:
    """A CLIP of transformers, and the name that features are kept under."""

    model: CLIPModel
    name: str

    @property
    def scale(self) -> float:
        """The factor of the cosine."""
        factor: float = self.model.logit_scale.detach().exp().item()
        return factor

    def images(self, images: U8, batch: int = clip.BATCH) -> F32:
        """N x H x W x 3 uint8 RGB => N x d."""
        weight, side = self.model.logit_scale, self.model.config.vision_config.image_size

        def features(some: U8) -> Tensor:
            pixels = _prepared(some, side, weight.device).to(weight.dtype)
            embedded: Tensor = self.model.get_image_features(pixel_values=pixels).pooler_output
            return embedded

        return encode(images, features, batch)

    def texts(self, captions: Sequence[str], batch: int = 64) -> F32:
        """Captions => N x d. The tokens are open_clip's: the same vocabulary, and no file of it to fetch."""
        tokens = clip.tokenize(captions).to(self.model.logit_scale.device)
        with exact():
            parts = [self.model.get_text_features(input_ids=part).pooler_output.cpu().numpy() for part in torch.split(tokens, batch)]
        return np.concatenate(parts)


@cache
def pickscore() -> PickScore:
    """PickScore v1 with its weights.

    Raises:
        MissingError: they are not at hand.
        UserError: they are damaged.
    """
    asset = "pickscore-v1"
    return PickScore(folders.read(CLIPModel, weights.find(asset), safetensors=True), f"pickscore.v1-{weights.digest(asset)[:12]}")


@cache
def hps() -> clip.Clip:
    """HPS v2.1 with its weights: a CLIP ViT-H/14 whose pictures are resized to the longer edge.

    Raises:
        MissingError: they are not at hand.
        UserError: they are damaged.
    """
    asset = "hps-v2.1"
    file = weights.find(asset)  # before a network is built
    model = clip.fill(clip.build(open_clip.get_model_config(HPS_ARCHITECTURE)), file)
    return clip.Clip(model, f"hpsv2.1-{weights.digest(asset)[:12]}", longest_edge)
