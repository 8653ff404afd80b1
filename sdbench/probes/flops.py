"""Work of one UNet forward, counted without weights or device: on PyTorch's meta device nothing is computed or stored."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from sdbench.models.architectures import PARTS, unet_config


def unet_macs(config: Mapping[str, Any], *, latent_size: int, tokens: int) -> int:
    """Multiply-accumulates of one forward of a UNet at batch 1, attention included.

    PyTorch's counter knows convolutions, matrix products and attention, at 2 FLOPs a multiply-accumulate; norms,
    activations and sums, some per cent of the time but hardly of the work, are left out, as is usual.

    Args:
        config: of a `UNet2DConditionModel`.
        latent_size: side of the latents: pixels over the VAE's downsampling.
        tokens: length of the text.
    """
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(dict(config))
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(**empty_input(config, latent_size, tokens))
    return int(counter.get_total_flops()) // 2


def empty_input(config: Mapping[str, Any], latent_size: int, tokens: int) -> dict[str, Any]:
    """Arguments of a UNet's forward for one picture, on torch's default device, without any values."""
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return {
        "sample": torch.empty(1, config["in_channels"], latent_size, latent_size),
        "timestep": torch.empty(1),
        "encoder_hidden_states": torch.empty(1, tokens, config["cross_attention_dim"]),
        "timestep_cond": None if (guidance := config.get("time_cond_proj_dim")) is None else torch.empty(1, guidance),
        "added_cond_kwargs": {"text_embeds": torch.empty(1, pooled), "time_ids": torch.empty(1, 6)},
    }


def random_unet_input(architecture: str, family: Literal["sdxl", "scenes"], size_px: int) -> dict[str, Any]:
    """Arguments of `unet_macs` for an architecture, which need not be loaded for it."""
    parts = PARTS[family]
    latent_size = size_px // 2 ** (len(parts["vae"]["block_out_channels"]) - 1)
    return {
        "config": unet_config(architecture, family),
        "latent_size": latent_size,
        "tokens": parts["text_encoder"]["max_position_embeddings"],
    }
