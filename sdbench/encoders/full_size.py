"""The full-size family's evaluators, from the Hub or its cache: CLIP ViT-L/14 through open_clip, PickScore v1 through transformers."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, CLIPModel

from sdbench.errors import MissingError

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
BATCH = 16  # fixed: features may change in their last digits with it
CLIP, CLIP_WEIGHTS = "ViT-L-14-quickgelu", "openai"  # OpenAI's weights were trained with the quick GELU
PICKSCORE, PICKSCORE_PROCESSOR = "yuvalkirstain/PickScore_v1", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"


def clip_images(images: U8) -> F32:
    """N x H x W x 3 uint8 RGB => N x 768."""
    model, preprocess, _ = clip()
    return _batched(lambda batch: model.encode_image(torch.stack([preprocess(image) for image in batch]).to(_device())), images)


def clip_texts(captions: Sequence[str]) -> F32:
    """Captions => N x 768; a long caption is cut so that its end-of-text token stays."""
    model, _, tokenizer = clip()
    with torch.inference_mode():
        embedded: F32 = model.encode_text(tokenizer(list(captions)).to(_device())).cpu().numpy()
    return embedded


def pickscore_images(images: U8) -> F32:
    """N x H x W x 3 uint8 RGB => N x 1024."""
    model, processor = pickscore()

    def encode(batch: list[Image.Image]) -> Tensor:
        pixels = processor(images=batch, return_tensors="pt").pixel_values.to(_device())
        features: Tensor = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
        return features

    return _batched(encode, images)


def pickscore_texts(captions: Sequence[str]) -> tuple[F32, float]:
    """Captions => N x 1024, and the logit scale."""
    model, processor = pickscore()
    tokens = processor(text=list(captions), padding=True, truncation=True, max_length=77, return_tensors="pt").to(_device())
    with torch.inference_mode():
        embedded: F32 = model.text_projection(model.text_model(**tokens).pooler_output).cpu().numpy()
        return embedded, model.logit_scale.exp().item()


@cache
def clip() -> tuple[Any, Callable[[Image.Image], Tensor], Callable[[list[str]], Tensor]]:
    """Model, preprocessing of a picture, tokenizer."""
    try:
        model, _, preprocess = open_clip.create_model_and_transforms(CLIP, pretrained=CLIP_WEIGHTS, device=_device())
    except Exception as error:
        raise _missing(f"open_clip {CLIP} ({CLIP_WEIGHTS})", error) from error
    return model.eval(), preprocess, open_clip.get_tokenizer(CLIP)


@cache
def pickscore() -> tuple[CLIPModel, Any]:
    """Model and processor."""
    try:
        model = CLIPModel.from_pretrained(PICKSCORE, use_safetensors=True, dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(PICKSCORE_PROCESSOR)
    except Exception as error:
        raise _missing(f"{PICKSCORE} and {PICKSCORE_PROCESSOR}", error) from error
    return model.to(_device()).eval(), processor


def _missing(what: str, error: Exception) -> MissingError:
    return MissingError(
        f"weights of {what} are neither cached nor reachable ({type(error).__name__}); go online once, or copy them into the Hub's cache"
    )


def _batched(encode: Callable[[list[Image.Image]], Tensor], images: U8) -> F32:
    with torch.inference_mode():
        starts = range(0, len(images), BATCH)
        parts = [encode([Image.fromarray(image) for image in images[start : start + BATCH]]).float().cpu().numpy() for start in starts]
    return np.concatenate(parts)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
