"""Stock SDXL pipelines so small that a test can afford them: 16 px, with the tensor names of a real architecture."""

from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdbench.models.architectures import PARTS, unet_config
from sdbench.models.text_encoders import letter_tokenizer, save_text_encoder

SIZE_PX = 16
UNET: dict[str, Any] = {"sample_size": 4, "block_out_channels": [4, 8, 16], "attention_head_dim": [1, 1, 2], "norm_num_groups": 4}
VAE: dict[str, Any] = {"sample_size": SIZE_PX, "block_out_channels": [4, 8, 8]}


def tiny_unet(architecture: str = "vega", seed: int = 0, **changes: Any) -> UNet2DConditionModel:
    """A narrow UNet; its text has the scenes' width, so it counts as that family."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(**{**unet_config(architecture, "scenes"), **UNET, **changes})


def save_tiny_pipeline(folder: Path, architecture: str = "vega", seed: int = 0) -> Path:
    """Write a whole pipeline in diffusers layout => its folder."""
    parts = PARTS["scenes"]
    torch.manual_seed(seed)
    for name, encoder in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        save_text_encoder(encoder(CLIPTextConfig(**{**parts[name], "num_hidden_layers": 2})), folder / name)
    tokens = letter_tokenizer(folder / "tokenizer", vocabulary=514, tokens=20)
    letter_tokenizer(folder / "tokenizer_2", vocabulary=514, tokens=20)
    StableDiffusionXLPipeline(
        vae=AutoencoderKL(**{**parts["vae"], **VAE}),
        text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"),
        text_encoder_2=CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2"),
        tokenizer=tokens,
        tokenizer_2=tokens,
        unet=tiny_unet(architecture, seed),
        scheduler=DDIMScheduler.from_config(parts["scheduler"]),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder)
    for name, encoder in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        save_text_encoder(encoder.from_pretrained(folder / name), folder / name)
    return folder
