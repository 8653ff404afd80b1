"""The calls that are timed: the whole pipeline for a batch of one prompt, and each of its stages alone.

Each stage prepares its inputs, untimed, and returns the call to time. The calls do what the pipeline itself does at that place,
so that the stages add up to the pipeline, except for the conversion to images.
"""

from collections.abc import Callable
from typing import Any

import torch

from sdbench.generate import call_arguments, is_guided
from sdbench.scenes.grammar import EXAMPLE
from sdbench.schedulers import set_scheduler, set_timesteps
from sdbench.settings import Sampling

Call = Callable[[], object]


class Stages:
    """A loaded pipeline under a suite's sampling settings, with `batch` images in a call."""

    def __init__(self, pipe: Any, sampling: Sampling, batch: int = 1) -> None:
        self.pipe, self.sampling, self.batch = pipe, sampling, batch
        self._vae_dtype = pipe.vae.dtype
        self.guided = is_guided(sampling, pipe.unet.config)
        set_scheduler(pipe, sampling)

    def prepare(self, stage: str) -> Call:
        """Prepare a stage, one of `names.STAGES` or "short", and return the call to time."""
        with torch.no_grad():
            call: Call = getattr(self, stage)()
        return torch.no_grad()(call)

    def restore(self) -> None:
        """Put the VAE back into its dtype; the pipeline leaves it in float32 where decoding runs out of memory."""
        self.pipe.vae.to(dtype=self._vae_dtype)

    def pipeline(self) -> Call:
        """From prompt to images."""
        return self._pipeline_call(self.batch, self.sampling)

    def short(self, batch: int | None = None) -> Call:
        """The pipeline with a single step, which takes as much memory as with all steps."""
        return self._pipeline_call(batch or self.batch, self.sampling.with_one_step)

    def _pipeline_call(self, batch: int, sampling: Sampling, **changes: str) -> Call:
        arguments = {**call_arguments(sampling, [EXAMPLE] * batch), **changes}

        def call() -> object:
            return self.pipe(**arguments, generator=torch.Generator().manual_seed(0))

        return call

    def text_encoders(self) -> Call:
        """Both text encoders, on the prompt and, with guidance, the negative one."""
        return self._encode_prompt

    def unet_step(self) -> Call:
        """One forward of the UNet; with guidance, on twice the batch, whose halves are then combined."""
        text, negative, pooled, negative_pooled = self._encode_prompt()
        shape = self.sampling.shape_px
        sizes = torch.tensor([[*shape, 0, 0, *shape]], device=text.device, dtype=text.dtype)  # original, crop, target
        sizes, latents = sizes.repeat(self.batch, 1), self._latents()
        if self.guided:
            text, pooled, sizes = torch.cat([negative, text]), torch.cat([negative_pooled, pooled]), sizes.repeat(2, 1)
            latents = latents.repeat(2, 1, 1, 1)
        timestep = set_timesteps(self.pipe.scheduler, self.sampling, text.device)[0]
        # all arguments that the pipeline passes: with others, a compiled UNet would be compiled again
        added: dict[str, Any] = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}
        added |= {"timestep_cond": self._embedded_guidance(), "cross_attention_kwargs": None}

        def call() -> object:
            noise = self.pipe.unet(latents, timestep, encoder_hidden_states=text, **added, return_dict=False)[0]
            if not self.guided:
                return noise
            negative_noise, text_noise = noise.chunk(2)
            return negative_noise + self.sampling.guidance_scale * (text_noise - negative_noise)

        return call

    def scheduler(self) -> Call:
        """All steps of an image without the UNet: setting the timesteps, scaling the input and updating the latents."""
        scheduler, latents = self.pipe.scheduler, self._latents()

        def call() -> object:
            steps = set_timesteps(scheduler, self.sampling, latents.device)
            options = self.pipe.prepare_extra_step_kwargs(torch.Generator().manual_seed(0), self.sampling.eta or 0.0)
            if hasattr(scheduler, "set_begin_index"):
                scheduler.set_begin_index(0)  # without it the scheduler looks up the first step, which waits for the GPU
            noisy = latents
            for timestep in steps:
                scheduler.scale_model_input(noisy, timestep)
                noisy = scheduler.step(latents, timestep, noisy, **options, return_dict=False)[0]
            return noisy

        return call

    def vae_decode(self) -> Call:
        """From latents that the pipeline made to pixels; in float32 where the VAE needs that."""
        vae = self.pipe.vae
        upcast = vae.dtype == torch.float16 and vae.config.force_upcast
        output: Any = self._pipeline_call(self.batch, self.sampling.with_one_step, output_type="latent")()
        latents = output.images / vae.config.scaling_factor

        def call() -> object:
            if not upcast:
                return vae.decode(latents.to(vae.dtype), return_dict=False)[0]
            vae.to(dtype=torch.float32)
            pixels = vae.decode(latents.float(), return_dict=False)[0]
            vae.to(dtype=torch.float16)
            return pixels

        return call

    def _encode_prompt(self) -> Any:
        arguments = call_arguments(self.sampling, [EXAMPLE] * self.batch)
        return self.pipe.encode_prompt(
            arguments["prompt"],
            device=self.pipe.unet.device,
            do_classifier_free_guidance=self.guided,
            negative_prompt=arguments["negative_prompt"],
        )

    def _embedded_guidance(self) -> torch.Tensor | None:
        """The embedded guidance scale, batch x `time_cond_proj_dim`, for a UNet that takes it as an input; None for others."""
        unet = self.pipe.unet
        if (width := unet.config.time_cond_proj_dim) is None:
            return None
        scales = torch.tensor(self.sampling.guidance_scale - 1).repeat(self.batch)
        embedded: torch.Tensor = self.pipe.get_guidance_scale_embedding(scales, embedding_dim=width)
        return embedded.to(unet.device, unet.dtype)

    def _latents(self) -> torch.Tensor:
        """Latents, batch x channels x height / factor x width / factor."""
        unet, factor = self.pipe.unet, self.pipe.vae_scale_factor
        shape = self.batch, unet.config.in_channels, *(side // factor for side in self.sampling.shape_px)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(unet.device, unet.dtype)
