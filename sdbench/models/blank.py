"""Pipelines of a known architecture with random weights: enough to measure latency, memory and FLOPs without the Hub."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from transformers import CLIPTextConfig

from sdbench.models.architectures import PARTS, unet_config
from sdbench.models.digest import RANDOM_SEED
from sdbench.models.spec import ModelSpec
from sdbench.models.stock import CLASSES, PIPELINE
from sdbench.models.text_encoders import letter_tokenizer


def random_pipeline(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> Any:
    """Build it in place: no tensor ever exists in another dtype or on another device."""
    parts = PARTS[spec.family]
    text = parts["text_encoder"]
    with tempfile.TemporaryDirectory() as made:
        tokens = letter_tokenizer(Path(made), vocabulary=text["vocab_size"], tokens=text["max_position_embeddings"])
    with _building(dtype, device):
        return PIPELINE(
            **random_parts(spec.family, spec.architecture),
            tokenizer=tokens,
            tokenizer_2=tokens,
            scheduler=_scheduler(parts["scheduler"]),
            add_watermarker=False,
        )


def random_parts(family: str, architecture: str) -> dict[str, torch.nn.Module]:
    """The four networks of a pipeline as the libraries initialise them, on torch's default device and dtype."""
    parts = PARTS[family]
    return {
        "unet": CLASSES["unet"](**unet_config(architecture, cast("Any", family))),
        "vae": CLASSES["vae"](**parts["vae"]),
        "text_encoder": CLASSES["text_encoder"](CLIPTextConfig(**parts["text_encoder"])),
        "text_encoder_2": CLASSES["text_encoder_2"](CLIPTextConfig(**parts["text_encoder_2"])),
    }


def _scheduler(config: dict[str, Any]) -> Any:
    return getattr(diffusers, config["_class_name"]).from_config(config)


@contextmanager
def _building(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    before = torch.get_default_dtype()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), device:
        torch.manual_seed(RANDOM_SEED)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
