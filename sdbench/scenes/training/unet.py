"""Trains the teacher's UNet, SDXL's topology with fewer channels, on the latents of rendered scenes.

It predicts velocity, with a noise schedule that ends in pure noise (arXiv 2305.08891): with SDXL's own schedule, the colour of
the background leaks through the last step, and a small model then gets colours wrong.
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from sdbench.models.architectures import unet_config
from sdbench.training.diffusion import add_noise, predict, target
from sdbench.training.journal import Evaluate
from sdbench.training.latents import LatentPool
from sdbench.training.loop import Schedule, fit

SCHEDULE = Schedule(steps=6000, lr=2e-3, batch=48, warmup=200, ema=0.998, seed=1)


def train(
    work: Path,
    latents: LatentPool,
    schedule: Schedule = SCHEDULE,
    device: str = "cpu",
    architecture: str = "sdxl",
    name: str = "teacher",
    evaluate: Evaluate | None = None,
) -> UNet2DConditionModel:
    """Train a UNet from scratch and return the running average of its weights (without `ema`, the last ones)."""
    torch.manual_seed(schedule.seed)
    unet = UNet2DConditionModel(**unet_config(architecture, "scenes")).to(device).to(memory_format=torch.channels_last)

    def loss(step: int) -> dict[str, Tensor]:
        batch = latents.batch(step, schedule.batch, schedule.seed, device=device)
        return {"velocity": F.mse_loss(predict(unet, add_noise(latents.scheduler, batch), batch), target(latents.scheduler, batch))}

    return fit(unet, loss, schedule, work / name, evaluate=evaluate)
