"""Evaluates a UNet in training: draws images of held-out captions, and measures the share that the attribute reader finds correct."""

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from sdbench.arrays import U8
from sdbench.scenes.attributes import read_layouts
from sdbench.scenes.grammar import scene_at
from sdbench.scenes.networks import SceneNet, to_pixels
from sdbench.scenes.render import SIZE_PX
from sdbench.training.latents import LatentPool

SEED, STEPS, GUIDANCE = 7, 12, 3.0
BATCH, SHEET_IMAGES, COLUMNS = 64, 16, 8


class SceneEvaluation:
    """Draws images with the same captions and noise each time, and checks them.

    Args:
        latents: supplies text encoders, scheduler and VAE.
        n: number of captions, a multiple of the batch of 64.
    """

    def __init__(self, latents: LatentPool, reader: SceneNet, n: int = BATCH) -> None:
        self._parts, self._reader = latents.parts, reader
        self._scenes = [scene_at(index, "heldout", SEED) for index in range(n)]
        self._noise = torch.randn((n, *latents.latents.shape[1:]), generator=torch.Generator().manual_seed(SEED))

    def __call__(self, unet: UNet2DConditionModel) -> tuple[U8, dict[str, float]]:
        """Draw the images and check them.

        Returns:
            A sheet of the first images, H x W x 3 uint8, and `scene_accuracy`, the share of all images that are correct.
        """
        images = self.draw_images(unet)
        rows = images[:SHEET_IMAGES].reshape(-1, COLUMNS, SIZE_PX, SIZE_PX, 3)
        sheet = rows.transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS * SIZE_PX, 3)
        return sheet, {"scene_accuracy": float(np.mean(self.are_right(images)))}

    @torch.no_grad()
    def are_right(self, images: U8) -> list[bool]:
        """Whether each image, n x 64 x 64 x 3 in the order of the captions, shows what its caption asks for."""
        layouts = read_layouts(self._reader(to_pixels(images)))
        return [layout == scene.layout for layout, scene in zip(layouts, self._scenes, strict=True)]

    @torch.no_grad()
    def draw_images(self, unet: UNet2DConditionModel) -> U8:
        """Draw one image for each caption; returns n x 64 x 64 x 3 uint8."""
        pipeline = StableDiffusionXLPipeline(**self._parts, unet=unet, add_watermarker=False).to(unet.device)
        pipeline.set_progress_bar_config(disable=True)
        batches = [
            pipeline(
                prompt=[scene.caption for scene in self._scenes[start : start + BATCH]],
                latents=self._noise[start : start + BATCH].to(unet.device),
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                height=SIZE_PX,
                width=SIZE_PX,
                output_type="np",
            ).images
            for start in range(0, len(self._scenes), BATCH)
        ]
        return np.asarray(np.rint(255 * np.concatenate(batches)), np.uint8)
