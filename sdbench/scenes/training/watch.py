"""What a UNet in training makes: pictures of held-out captions, and the share that the attribute reader finds wholly right."""

import numpy as np
import numpy.typing as npt
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from sdbench.scenes.attributes import read_layouts
from sdbench.scenes.grammar import scene_at
from sdbench.scenes.networks import SceneNet
from sdbench.scenes.render import SIZE_PX
from sdbench.scenes.training.latents import LatentPool
from sdbench.scenes.training.pool import to_pixels

SEED, STEPS, GUIDANCE = 7, 12, 3.0
SHOWN, COLUMNS = 16, 8


class Watch:
    """Samples with a pool's pipeline, the same captions and noise each time.

    Args:
        latents: whose text encoders, scheduler and VAE are used.
        reader: the attribute reader.
        n: captions, in one batch.
    """

    def __init__(self, latents: LatentPool, reader: SceneNet, n: int = 64) -> None:
        self._parts, self._reader = latents.parts, reader
        self._scenes = [scene_at(index, "heldout", SEED) for index in range(n)]
        self._noise = torch.randn((n, *latents.latents.shape[1:]), generator=torch.Generator().manual_seed(SEED))

    @torch.no_grad()
    def __call__(self, unet: UNet2DConditionModel) -> tuple[npt.NDArray[np.uint8], dict[str, float]]:
        """The first pictures as a sheet, H x W x 3, and the accuracy over all."""
        pipeline = StableDiffusionXLPipeline(**self._parts, unet=unet, add_watermarker=False)
        for name in ("text_encoder", "text_encoder_2", "vae"):
            self._parts[name].to(unet.device)
        pipeline.set_progress_bar_config(disable=True)
        made = pipeline(
            prompt=[scene.caption for scene in self._scenes], latents=self._noise.to(unet.device), num_inference_steps=STEPS,
            guidance_scale=GUIDANCE, height=SIZE_PX, width=SIZE_PX, output_type="np",
        ).images  # fmt: skip
        for name in ("text_encoder", "text_encoder_2", "vae"):
            self._parts[name].to("cpu")  # where the training reads them
        pictures = np.asarray(np.rint(255 * made), np.uint8)
        read = read_layouts(self._reader(to_pixels(pictures)))
        right = np.mean([layout == scene.layout for layout, scene in zip(read, self._scenes, strict=True)])
        rows = pictures[:SHOWN].reshape(-1, COLUMNS, SIZE_PX, SIZE_PX, 3)
        return rows.transpose(0, 2, 1, 3, 4).reshape(-1, COLUMNS * SIZE_PX, 3), {"scene_accuracy": float(right)}
