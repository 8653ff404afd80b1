"""Full-size models of human preference: PickScore v1 through transformers, HPS v2.1 through open_clip."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial

from torch import Tensor
from transformers import CLIPModel

from sdbench.arrays import F32, U8
from sdbench.assets import weights
from sdbench.encoders import clip, pretrained
from sdbench.encoders.inference import encode
from sdbench.encoders.pixels import resize_longest_edge, resize_shortest_edge

HPS_ARCHITECTURE = "ViT-H-14"
_preprocess = partial(resize_shortest_edge, corner=math.floor)  # as transformers' processor crops


@dataclass(frozen=True, eq=False)
class PickScore:
    """PickScore, a CLIP of transformers; see `catalogue.Towers` for `name` and `scale`."""

    model: CLIPModel
    name: str

    @property
    def scale(self) -> float:
        """The factor of the cosine."""
        factor: float = self.model.logit_scale.detach().exp().item()
        return factor

    def images(self, images: U8) -> F32:
        """Embed images, N x H x W x 3 uint8 RGB; returns N x d."""
        weight, side = self.model.logit_scale, self.model.config.vision_config.image_size

        def features(some: U8) -> Tensor:
            pixels = _preprocess(some, side, weight.device).to(weight.dtype)
            embedded: Tensor = self.model.get_image_features(pixel_values=pixels).pooler_output
            return embedded

        return encode(images, features, clip.BATCH)

    def texts(self, captions: Sequence[str]) -> F32:
        """Embed captions; returns N x d. open_clip tokenizes: it has the same vocabulary, and needs no files."""
        tokens = clip.tokenize(captions).to(self.model.logit_scale.device)
        return encode(tokens, lambda some: self.model.get_text_features(input_ids=some).pooler_output, clip.CAPTIONS_BATCH)


@cache
def pickscore() -> PickScore:
    """Load PickScore v1.

    Raises:
        MissingError: its weights are neither on this disk nor reachable.
        UserError: they are damaged.
    """
    asset = "pickscore-v1"
    model = pretrained.load_network(CLIPModel, weights.find(asset), safetensors=True)
    return PickScore(model, f"pickscore.v1-{weights.digest(asset)[:12]}")


@cache
def hps() -> clip.Clip:
    """Load HPS v2.1: a CLIP ViT-H/14 whose images are resized by their longer edge.

    Raises:
        MissingError: its weights are neither on this disk nor reachable.
        UserError: they are damaged.
    """
    return clip.load_asset("hps-v2.1", HPS_ARCHITECTURE, "hpsv2.1", resize_longest_edge)
