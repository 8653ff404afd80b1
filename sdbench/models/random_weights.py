"""Pipelines of a known architecture with random weights: enough to measure latency, memory and MACs without the Hub.

The weights are scaled so that activations are as large as in a trained network (see `activation_scale`), because zeros,
tiny numbers and NaN are computed at different speeds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig

from sdbench.models import activation_scale
from sdbench.models.architectures import PARTS, Family, unet_config
from sdbench.models.digest import RANDOM_SEED
from sdbench.models.spec import ModelSpec
from sdbench.models.stock import CLASSES, PIPELINE
from sdbench.models.text_encoders import letter_tokenizer


def random_pipeline(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> Any:
    """Build a pipeline with random weights; no tensor ever exists in another dtype or on another device.

    Raises:
        RuntimeError: see `activation_scale.calibrate`.
    """
    parts = PARTS[spec.known_family]
    text = parts["text_encoder"]
    tokenizer = letter_tokenizer(vocabulary=text["vocab_size"], tokens=text["max_position_embeddings"])
    with _seeded_construction(dtype, device):
        networks = random_parts(spec.known_family, spec.architecture)
    # The scheduler is built on the CPU, as in a pipeline loaded from disk: NumPy reads its tables there.
    scheduler = getattr(diffusers, parts["scheduler"]["_class_name"]).from_config(parts["scheduler"])
    pipe = PIPELINE(**networks, tokenizer=tokenizer, tokenizer_2=tokenizer, scheduler=scheduler, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    activation_scale.calibrate(pipe)
    return pipe


def random_tiny_vae(full: Any) -> Any:
    """Build an `AutoencoderTiny` with random weights that decodes the latents of `full` to images of the same size, on its device.

    For SDXL's VAE it has the shape of TAESD (64 channels, images 8 times as wide as latents), for narrower VAEs fewer channels.

    Raises:
        RuntimeError: see `activation_scale.calibrate`.
    """
    widths, levels = (max(16, full.config.block_out_channels[0] // 2),), len(full.config.block_out_channels)
    blocks = {"num_encoder_blocks": (1, *(3,) * (levels - 1)), "num_decoder_blocks": (*(3,) * (levels - 1), 1)}
    sides = dict.fromkeys(("encoder_block_out_channels", "decoder_block_out_channels"), widths * levels)
    with _seeded_construction(full.dtype, full.device):
        tiny: Any = diffusers.AutoencoderTiny(latent_channels=full.config.latent_channels, **blocks, **sides)
    tiny.eval().requires_grad_(requires_grad=False)
    shape = (1, full.config.latent_channels, activation_scale.LATENT_SIDE, activation_scale.LATENT_SIDE)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(RANDOM_SEED)).to(full.device, full.dtype)
    activation_scale.calibrate_networks([tiny.decoder], lambda: tiny.decode(latents))
    return tiny


def random_parts(family: Family, architecture: str) -> dict[str, torch.nn.Module]:
    """Build the four networks of a pipeline as the libraries initialise them, in torch's default dtype and on its default device."""
    parts = PARTS[family]
    return {
        "unet": CLASSES["unet"](**unet_config(architecture, family)),
        "vae": CLASSES["vae"](**parts["vae"]),
        "text_encoder": CLASSES["text_encoder"](CLIPTextConfig(**parts["text_encoder"])),
        "text_encoder_2": CLASSES["text_encoder_2"](CLIPTextConfig(**parts["text_encoder_2"])),
    }


@contextmanager
def _seeded_construction(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    before = torch.get_default_dtype()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), device:
        torch.manual_seed(RANDOM_SEED)
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
