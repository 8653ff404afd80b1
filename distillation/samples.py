"""What a full-size student makes while it trains; there is no truth to judge it by, so it is only shown."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

from sdbench.models.loading import read_part
from sdbench.training.latents import LatentPool

SHOWN, STEPS, GUIDANCE, SEED = 4, 25, 7.5, 7
SHEET_PX = 512


class Look:
    """Pictures of the first captions of a pool, the same noise each time.

    Args:
        pool: gives the embeddings; text encoders are not needed again.
        pipeline_folder: gives the VAE and the noise schedule.
        precision: context that the UNet computes in.
    """

    def __init__(self, pool: LatentPool, pipeline_folder: Path, precision: Callable[[], AbstractContextManager[object]]) -> None:
        rows = np.arange(min(SHOWN, len(pool)))
        self._batch, self._unconditional, self._precision = (
            pool.batch_of_rows(rows, SEED),
            pool.batch_of_rows(rows, SEED, drop=1),
            precision,
        )
        self._vae = read_part("vae", pipeline_folder / "vae", torch.float32)
        self._vae.enable_slicing()  # type: ignore[operator]  # an AutoencoderKL; one picture at a time, for training leaves little memory
        self._scheduler = EulerDiscreteScheduler.from_pretrained(pipeline_folder / "scheduler")

    @torch.no_grad()
    def __call__(self, unet: UNet2DConditionModel) -> tuple[npt.NDArray[np.uint8], dict[str, float]]:
        """A row of pictures, H x W x 3; and no values."""
        batch, unconditional = self._batch.to(unet.device), self._unconditional.to(unet.device)
        pipeline = StableDiffusionXLPipeline(
            vae=self._vae.to(unet.device), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None,
            unet=unet, scheduler=self._scheduler, add_watermarker=False,
        )  # fmt: skip
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
                guidance_scale=GUIDANCE,
                output_type="pil",
            ).images
        self._vae.to("cpu")
        for image in images:
            image.thumbnail((SHEET_PX, SHEET_PX))
        return np.concatenate([np.asarray(image) for image in images], 1), {}
