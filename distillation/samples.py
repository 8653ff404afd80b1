"""Sample images of a full-size student during training. There is no ground truth to score them by, so they are only shown."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from sdbench.arrays import U8
from sdbench.models.loading import read_part
from sdbench.training.latents import LatentPool

SAMPLES, STEPS, GUIDANCE_SCALE, SEED = 4, 25, 7.5, 7
THUMBNAIL_PX = 512


class StudentSampler:
    """Draws images for the first captions of a pool, those for validation where there are any, each time from the same noise.

    Args:
        pool: source of the embeddings, so that no text encoders are needed.
        pipeline_folder: source of the VAE and the noise schedule.
        precision: makes the autocast context that the UNet runs in.

    Raises:
        UserError: weights of the VAE are missing or damaged.
    """

    def __init__(self, pool: LatentPool, pipeline_folder: Path, precision: Callable[[], AbstractContextManager[object]]) -> None:
        rows = (pool.validation_rows if len(pool.validation_rows) else np.arange(len(pool)))[:SAMPLES]
        self._batch, self._unconditional = (pool.batch_of_rows(rows, SEED, drop) for drop in (0, 1))
        self._precision = precision
        self._vae = read_part("vae", pipeline_folder / "vae", torch.float32)
        self._scheduler = EulerDiscreteScheduler.from_pretrained(pipeline_folder / "scheduler")

    @torch.no_grad()
    def __call__(self, unet: UNet2DConditionModel) -> tuple[U8, dict[str, float]]:
        """Draw images with a UNet; returns them in a row, H x W x 3 uint8, and no metrics."""
        batch, unconditional = self._batch.to(unet.device), self._unconditional.to(unet.device)
        pipeline = StableDiffusionXLPipeline(
            vae=self._vae.to(unet.device), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
            unet=unet, scheduler=self._scheduler, add_watermarker=False,
        )  # fmt: skip
        pipeline.vae.enable_slicing()  # decodes one image at a time, since training leaves little memory
        pipeline.set_progress_bar_config(disable=True)
        with self._precision():
            images = pipeline(
                prompt_embeds=batch.prompt_embeds,
                pooled_prompt_embeds=batch.pooled,
                negative_prompt_embeds=unconditional.prompt_embeds,
                negative_pooled_prompt_embeds=unconditional.pooled,
                latents=batch.noise,
                height=batch.noise.shape[2] * pipeline.vae_scale_factor,
                width=batch.noise.shape[3] * pipeline.vae_scale_factor,
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE_SCALE,
                output_type="pil",
            ).images
        self._vae.to("cpu")
        for image in images:
            image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
        return np.concatenate([np.asarray(image) for image in images], 1), {}
