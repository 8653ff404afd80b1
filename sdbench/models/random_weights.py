"""Pipelines of a known architecture with random weights: enough to measure latency, memory and FLOPs without the Hub.

The weights are brought to a scale at which numbers stay as large as in a trained network (`calibration`): zeros, tiny
numbers and NaN take other times.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import diffusers
import torch
from transformers import CLIPTextConfig

from sdbench.models import activation_scale
from sdbench.models.architectures import PARTS, unet_config
from sdbench.models.digest import RANDOM_SEED
from sdbench.models.spec import ModelSpec
from sdbench.models.stock import CLASSES, PIPELINE
from sdbench.models.text_encoders import letter_tokenizer


def random_pipeline(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> Any:
    """Build it in place: no tensor ever exists in another dtype or on another device.

    Raises:
        RuntimeError: a block's activations are not of a sane size.
    """
    parts = PARTS[spec.family]
    text = parts["text_encoder"]
    with tempfile.TemporaryDirectory() as made:
        tokens = letter_tokenizer(Path(made), vocabulary=text["vocab_size"], tokens=text["max_position_embeddings"])
    with _building(dtype, device):
        networks = random_parts(spec.family, spec.architecture)
    # The scheduler stays out of it, as in a pipeline that was read: NumPy takes its tables from the CPU.
    pipe = PIPELINE(**networks, tokenizer=tokens, tokenizer_2=tokens, scheduler=_scheduler(parts["scheduler"]), add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    activation_scale.calibrate(pipe)
    return pipe


def tiny_vae(full: Any) -> Any:
    """An `AutoencoderTiny` with random weights that takes a VAE's latents and gives pictures of its size, where that VAE is.

    TAESD's shape for SDXL's VAE (64 channels, a picture 8 times as wide as its latents), narrower for narrower ones.
    """
    widths, levels = (max(16, full.config.block_out_channels[0] // 2),), len(full.config.block_out_channels)
    blocks = {"num_encoder_blocks": (1, *(3,) * (levels - 1)), "num_decoder_blocks": (*(3,) * (levels - 1), 1)}
    sides = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), widths * levels)
    with _building(full.dtype, full.device):
        made: Any = diffusers.AutoencoderTiny(latent_channels=full.config.latent_channels, **blocks, **sides)
    made.eval().requires_grad_(requires_grad=False)
    shape = (1, full.config.latent_channels, activation_scale.LATENT_SIDE, activation_scale.LATENT_SIDE)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(RANDOM_SEED)).to(full.device, full.dtype)
    activation_scale.calibrate_network(made.decoder, lambda: made.decode(latents))
    return made


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
