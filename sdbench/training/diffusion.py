"""What a UNet learns: the batches that it is given, their noise, and its target."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor

from sdbench.errors import UserError, unknown_name
from sdbench.models.files import read_model_json


@dataclass(frozen=True)
class Batch:
    """The inputs of one training step.

    Attributes:
        latents: N x 4 x H/8 x W/8 (H/4 x W/4 in the embedded family), without noise, scaled by the VAE's `scaling_factor`.
        prompt_embeds: N x tokens x width, both text encoders concatenated; for a dropped caption the unconditional embedding, which
            is zeros, or that of "" if the pipeline's `force_zeros_for_empty_prompt` is false.
        pooled: N x width, of the second text encoder; also unconditional for a dropped caption.
        time_ids: N x 6, SDXL's micro-conditioning.
        noise: of the shape of `latents`.
        timesteps: N, int64 in 0..999.
    """

    latents: Tensor
    prompt_embeds: Tensor
    pooled: Tensor
    time_ids: Tensor
    noise: Tensor
    timesteps: Tensor

    def to(self, to: torch.device | str | torch.dtype) -> Self:
        """The batch on another device or in another precision; timesteps and micro-conditioning keep their precision.

        In bfloat16, a side of 1365 px would become 1368.
        """
        exact = ("timesteps", "time_ids") if isinstance(to, torch.dtype) else ()
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{name: tensor if name in exact else tensor.to(to) for name, tensor in tensors.items()})


def add_noise(scheduler: DDIMScheduler, batch: Batch) -> Tensor:
    """The latents with noise at the batch's timesteps, the input of the UNet."""
    noised: Tensor = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    return noised


def target(scheduler: DDIMScheduler, batch: Batch) -> Tensor:
    """The UNet's target: the noise, or the velocity sqrt(a) noise - sqrt(1 - a) latents (arXiv 2202.00512), a from `alphas_cumprod`.

    Raises:
        UserError: the scheduler has another prediction type.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return batch.noise
    if kind == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
        return velocity
    raise unknown_name("prediction type of a scheduler", kind, ("epsilon", "v_prediction"))


def predict(unet: UNet2DConditionModel, noised: Tensor, batch: Batch) -> Tensor:
    """The UNet's output for noised latents under the batch's conditions."""
    conditions = {"text_embeds": batch.pooled, "time_ids": batch.time_ids}
    output: Tensor = unet(noised, batch.timesteps, batch.prompt_embeds, added_cond_kwargs=conditions, return_dict=False)[0]
    return output


def check_diffusion(folder: Path) -> None:
    """Check that a pipeline has DDPM's noise and latents that are only scaled, as training here assumes.

    Raises:
        UserError: the pipeline is of another kind, or a configuration cannot be read.
    """
    scheduler, vae = (read_model_json(folder / name) for name in ("scheduler/scheduler_config.json", "vae/config.json"))
    if "beta_schedule" not in scheduler or scheduler.get("use_flow_sigmas"):
        found = f"its scheduler, {scheduler.get('_class_name')}, has no betas"
    elif vae.get("latents_mean"):
        found = "its VAE's latents are shifted by latents_mean"
    else:
        return
    raise UserError(
        f"the pipeline in {folder} uses a kind of diffusion that cannot be trained here: {found}; expected DDPM's noise, and latents that "
        "are only scaled, as in SDXL. Name another with --teacher"
    )
