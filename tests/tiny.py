"""Tiny stock SDXL pipelines: 16 px, with the tensor names of a real architecture."""

import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from sdbench.disk import read_json, write_json
from sdbench.models.architectures import PARTS, Family, unet_config
from sdbench.models.text_encoders import letter_tokenizer, save_text_encoder
from sdbench.training.diffusion import Batch

SIZE_PX = 16
UNET: dict[str, Any] = {"sample_size": 4, "block_out_channels": [4, 8, 16], "attention_head_dim": [1, 1, 2], "norm_num_groups": 4}
TEXT: dict[str, Any] = {
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 514,
    "bos_token_id": 512,
    "eos_token_id": 513,
    "pad_token_id": 513,
}
VAE: dict[str, Any] = {"sample_size": SIZE_PX, "block_out_channels": [4, 8, 8]}


def tiny_unet(architecture: str = "vega", seed: int = 0, family: Family = "scenes", **changes: Any) -> UNet2DConditionModel:
    """A narrow UNet; its cross-attention has the text width of `family`, by which the family is recognised."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(**{**unet_config(architecture, family), **UNET, **changes})


def tiny_batch(seed: int) -> Batch:
    """Two latents, captions and timesteps for a tiny UNet of family `sdxl`."""
    torch.manual_seed(seed)
    timesteps = torch.randint(0, 1000, (2,))
    return Batch(torch.randn(2, 4, 8, 8), torch.randn(2, 5, 96), torch.randn(2, 64), torch.ones(2, 6), torch.randn(2, 4, 8, 8), timesteps)


def noise_unet(config: dict[str, Any]) -> UNet2DConditionModel:
    """A UNet with uniform noise as bfloat16 weights, in a fraction of the time of a real initialisation."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    noise = {name: torch.empty(like.shape, dtype=torch.bfloat16).uniform_() for name, like in unet.state_dict().items()}
    unet.load_state_dict(noise, assign=True)
    return unet


def edit_json(path: Path, **values: object) -> None:
    """Set values of a JSON object in a file, such as a configuration in a pipeline's folder."""
    write_json(path, read_json(path) | values)


def with_unet(pipeline: Path, folder: Path, unet: UNet2DConditionModel, **options: str) -> Path:
    """Copy a pipeline with another UNet, saved with the `save_pretrained` options; returns the copy's folder."""
    shutil.copytree(pipeline, folder, ignore=shutil.ignore_patterns("unet"))
    unet.save_pretrained(folder / "unet", **options)
    return folder


def save_tiny_pipeline(folder: Path, architecture: str = "vega", seed: int = 0, family: Family = "scenes") -> Path:
    """Write a complete tiny pipeline in diffusers layout; returns its folder."""
    parts = PARTS[family]
    torch.manual_seed(seed)
    encoders = {
        name: encoder(CLIPTextConfig(**{**parts[name], **TEXT}))
        for name, encoder in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection))
    }
    tokens = letter_tokenizer(vocabulary=514, tokens=parts["text_encoder"]["max_position_embeddings"])
    StableDiffusionXLPipeline(
        vae=AutoencoderKL(**{**PARTS["scenes"]["vae"], **VAE}),
        **encoders,
        tokenizer=tokens,
        tokenizer_2=tokens,
        unet=tiny_unet(architecture, seed, family),
        scheduler=DDIMScheduler.from_config(parts["scheduler"]),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    ).save_pretrained(folder)
    for name, encoder in encoders.items():
        save_text_encoder(encoder, folder / name)
    for name in ("tokenizer", "tokenizer_2"):
        tokens.backend_tokenizer.model.save(str(folder / name))  # vocab.json and merges.txt, as on the Hub, beside tokenizer.json
    return folder
