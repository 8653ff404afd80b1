"""Full-size models of human preference: PickScore v1 through transformers, HPS v2.1 through open_clip."""

import math
import unicodedata
from collections.abc import Sequence
from functools import cache, partial

import open_clip
from torch import Tensor
from transformers import CLIPModel

from sdbench.arrays import F32, U8
from sdbench.assets import weights
from sdbench.encoders import clip, pretrained
from sdbench.encoders.inference import encode, evaluator
from sdbench.encoders.pixels import resize_longest_edge, resize_shortest_edge
from sdbench.encoders.towers import Towers

HPS_ARCHITECTURE = "ViT-H-14"
_preprocess = partial(resize_shortest_edge, corner=math.floor)  # as transformers' processor crops


def towers(model: CLIPModel, name: str) -> Towers:
    """Both towers of PickScore, a CLIP of transformers."""
    weight, side = model.logit_scale, model.config.vision_config.image_size

    def image_features(some: U8) -> Tensor:
        embedded: Tensor = model.get_image_features(pixel_values=_preprocess(some, side, weight.device).to(weight.dtype)).pooler_output
        return embedded

    def images(given: U8) -> F32:
        return encode(given, image_features, clip.BATCH)

    def texts(captions: Sequence[str]) -> F32:
        tokens = _tokenizer()(list(captions)).to(weight.device)
        return encode(tokens, lambda some: model.get_text_features(input_ids=some).pooler_output, clip.CAPTIONS_BATCH)

    return Towers(name, weight.detach().exp().item(), images, texts)


@cache
def _tokenizer() -> open_clip.SimpleTokenizer:
    """The tokenizer of transformers' CLIP, made of open_clip's, which needs no files.

    The vocabulary is the same, the cleaning is not: transformers keeps typographic quotes, HTML entities and full-width letters.
    """
    tokenizer = open_clip.SimpleTokenizer()
    tokenizer.clean_fn = lambda text: " ".join(unicodedata.normalize("NFC", text).split()).lower()
    return tokenizer


@evaluator
def pickscore() -> Towers:
    """Load PickScore v1.

    Raises:
        MissingError: its weights are neither on this disk nor reachable.
        UserError: they are damaged.
    """
    asset = "pickscore-v1"
    model = pretrained.load_network(CLIPModel, weights.find(asset), safetensors=True)
    return towers(model, f"pickscore.v1-{weights.digest(asset)[:12]}")


@evaluator
def hps() -> Towers:
    """Load HPS v2.1: a CLIP ViT-H/14 whose images are resized by their longer edge.

    Raises:
        MissingError: its weights are neither on this disk nor reachable.
        UserError: they are damaged.
    """
    return clip.load_asset("hps-v2.1", HPS_ARCHITECTURE, "hpsv2.1", resize_longest_edge)
