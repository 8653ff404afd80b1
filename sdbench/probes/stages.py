"""The calls that are timed: the whole pipeline for one prompt, and each of its stages alone.

A stage that is asked for prepares its inputs untimed and returns the call; the calls do what the pipeline itself does at
that place, so that stages add up to the pipeline but for the scheduler and the conversion to pictures.
"""

import time
from collections.abc import Callable
from typing import Any

import torch

from sdbench.generate import SCHEDULERS, call_arguments
from sdbench.models.loading import load as load_pipeline
from sdbench.probes.request import Request
from sdbench.suites import Sampling

PROMPT = "a large red circle left of a small blue star on a pink background"
Call = Callable[[], object]


class Stages:
    """A loaded pipeline under a suite's sampling settings."""

    def __init__(self, pipe: Any, sampling: Sampling) -> None:
        self.pipe, self.sampling = pipe, sampling
        self.guided = sampling.guidance_scale > 1  # as diffusers decides it
        pipe.set_progress_bar_config(disable=True)
        if sampling.scheduler != "model":
            pipe.scheduler = SCHEDULERS[sampling.scheduler].from_config(pipe.scheduler.config)

    def prepare(self, stage: str) -> Call:
        """The call of this stage, one of `request.STAGES`."""
        with torch.no_grad():
            call: Call = getattr(self, stage)()
        return torch.no_grad()(call)

    def pipeline(self) -> Call:
        """Prompt to picture, batch 1."""
        arguments = call_arguments(self.sampling, [PROMPT])

        def call() -> object:
            return self.pipe(**arguments, generator=torch.Generator().manual_seed(0))

        return call

    def text_encoders(self) -> Call:
        """Both text encoders, on the prompt and, with guidance, the negative one."""
        return self._encode

    def unet_step(self) -> Call:
        """One forward of the UNet and the guidance that joins its halves: batch 2 with guidance, else 1."""
        text, negative, pooled, negative_pooled = self._encode()
        size = self.sampling.size_px
        sizes = torch.tensor([[size, size, 0, 0, size, size]], device=text.device, dtype=text.dtype)  # original, crop, target
        latents = self._latents()
        if self.guided:
            text, pooled, sizes = torch.cat([negative, text]), torch.cat([negative_pooled, pooled]), sizes.repeat(2, 1)
            latents = latents.repeat(2, 1, 1, 1)
        self.pipe.scheduler.set_timesteps(self.sampling.steps, device=text.device)
        timestep = self.pipe.scheduler.timesteps[0]
        added = {"text_embeds": pooled, "time_ids": sizes}

        def call() -> object:
            noise = self.pipe.unet(latents, timestep, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]
            if not self.guided:
                return noise
            negative_noise, text_noise = noise.chunk(2)
            return negative_noise + self.sampling.guidance_scale * (text_noise - negative_noise)

        return call

    def vae_decode(self) -> Call:
        """Latents to pixels, batch 1; with the detour through float32 where the VAE needs it."""
        vae = self.pipe.vae
        upcast = vae.dtype == torch.float16 and vae.config.force_upcast
        latents = self._latents() / vae.config.scaling_factor

        def call() -> object:
            if not upcast:
                return vae.decode(latents.to(vae.dtype), return_dict=False)[0]
            vae.to(dtype=torch.float32)
            pixels = vae.decode(latents.float(), return_dict=False)[0]
            vae.to(dtype=torch.float16)
            return pixels

        return call

    def _encode(self) -> Any:
        return self.pipe.encode_prompt(
            PROMPT,
            device=self.pipe.unet.device,
            do_classifier_free_guidance=self.guided,
            negative_prompt=self.sampling.negative_prompt,
        )

    def _latents(self) -> torch.Tensor:
        # 1, channels, size / factor, size / factor
        unet, side = self.pipe.unet, self.sampling.size_px // self.pipe.vae_scale_factor
        return torch.randn(1, unet.config.in_channels, side, side, generator=torch.Generator().manual_seed(0)).to(unet.device, unet.dtype)


def load(request: Request) -> tuple[Stages, float]:
    """The pipeline of a request, ready to be timed => its stages, seconds it took to load (without the imports)."""
    if request.device.startswith("cuda"):
        torch.cuda.set_device(request.device)
    start = time.perf_counter()
    pipe = load_pipeline(request.spec, dtype=request.dtype, device=request.device)
    return Stages(pipe, request.sampling), time.perf_counter() - start


def parameters(pipe: Any) -> dict[str, int]:
    """Parameters of the UNet and of all of the pipeline's networks."""
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    return {"unet": _count(pipe.unet), "pipeline": sum(map(_count, networks))}


def _count(network: torch.nn.Module) -> int:
    return sum(weights.numel() for weights in network.parameters())
