"""Model x prompts x seeds -> pictures in the store.

A picture's noise comes from a generator of its own on the CPU, keyed by (suite seed, prompt id, sample), so it does not
depend on order, batch or machine count. Batch number k always holds the same prompts at the same places: a resumed batch
fills up with its finished prompts, which costs what any padding costs, and its bytes cannot differ from an unbroken run's.
"""

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLPipeline,
    TCDScheduler,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import retrieve_timesteps
from torch import Tensor
from tqdm import tqdm

from sdbench.arrays import U8
from sdbench.disk import digest
from sdbench.encoders.precision import full_float32
from sdbench.errors import UserError
from sdbench.scenes.grammar import parse
from sdbench.scenes.render import render
from sdbench.settings import Sampling
from sdbench.store import Store
from sdbench.suites import Noise, Suite

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "dpmpp": DPMSolverMultistepScheduler,
    "euler": EulerDiscreteScheduler,
    "euler-ancestral": EulerAncestralDiscreteScheduler,
    "lcm": LCMScheduler,
    "tcd": TCDScheduler,
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Job:
    """One picture to make: its prompt, and the identity it is stored under."""

    prompt_id: str
    sample: int
    prompt: str
    image: str


def jobs(suite: Suite, sampling: Sampling, weights_digest: str | None) -> list[Job]:
    """The pictures a suite asks of a model, in order."""
    settings, noise = sampling.model_dump(exclude={"batch"}), suite.noise.identity()
    return [
        Job(prompt_id, 0, prompt, digest([weights_digest, prompt_id, prompt, settings, noise]))
        for prompt_id, prompt in suite.prompt_list().items()
    ]


def generate(todo: list[Job], store: Store, batch: int, make: Callable[[list[Job]], U8], title: str) -> None:
    """Make what is missing; `make` turns a full batch of jobs into N x H x W x 3 uint8.

    The batch before is written meanwhile, by one thread: to compress a picture of 1024 px takes a core a quarter of a second.
    """
    missing = set(store.missing([job.image for job in todo]))
    writing: list[Future[int]] = []
    bar = tqdm(total=len(todo), initial=len(todo) - len(missing), desc=f"{title}: pictures", unit="image", mininterval=1)

    def keep(group: list[Job], pictures: U8) -> int:
        fresh = [(job, pixels) for job, pixels in zip(group, pictures, strict=False) if job.image in missing]
        for job, pixels in fresh:
            store.put(job.image, pixels)
        return len(fresh)

    def wait() -> None:
        while writing:
            bar.update(writing.pop().result())

    with bar, ThreadPoolExecutor(1) as writer:
        try:
            for start in range(0, len(todo), batch):
                group = todo[start : start + batch]
                if missing.isdisjoint(job.image for job in group):
                    continue
                pictures = make(group + [group[-1]] * (batch - len(group)))
                wait()
                writing.append(writer.submit(keep, group, pictures))
        finally:
            wait()  # also where the next batch cannot be made: its error comes after that of a disk that is full


def rendered(group: list[Job]) -> U8:
    """The pictures that the renderer draws for the captions: the best any model can do."""
    return render([parse(job.prompt) for job in group], [int(job.prompt_id.split("-")[0]) for job in group], seed=1)


def sampler(pipeline: StableDiffusionXLPipeline, sampling: Sampling, noise: Noise) -> Callable[[list[Job]], U8]:
    """A function that makes a batch of pictures with the pipeline.

    The function raises `UserError` where a picture holds NaN or infinity.
    """
    set_scheduler(pipeline, sampling)
    device, dtype = pipeline.unet.device, DTYPES[sampling.dtype]
    side = sampling.size_px // pipeline.vae_scale_factor
    shape = (pipeline.unet.config.in_channels, side, side)

    def make(group: list[Job]) -> U8:
        latents = torch.stack([initial_noise(noise, job.prompt_id, job.sample, shape) for job in group]).to(device, dtype)
        generators = [_step_generator(noise, job) for job in group]
        with full_float32():  # a training loop's settings would make other pictures than the dtype says
            arguments = call_arguments(sampling, [job.prompt for job in group])
            pixels = pipeline(**arguments, latents=latents, generator=generators).images
        for job, picture in zip(group, pixels, strict=True):
            if not np.isfinite(picture).all():
                raise UserError(
                    f"the model made NaN or infinite pixels for prompt {job.prompt_id} ({job.prompt!r}) in {sampling.dtype}; try another dtype, or check its weights."
                )
        return np.asarray(np.rint(255 * np.clip(pixels, 0, 1)), np.uint8)

    return make


def set_scheduler(pipeline: Any, sampling: Sampling) -> None:
    """Put the scheduler that the sampling names in the place of the pipeline's own, which lends its configuration."""
    if sampling.scheduler != "model":
        spacing = {} if sampling.timestep_spacing is None else {"timestep_spacing": sampling.timestep_spacing}
        pipeline.scheduler = SCHEDULERS[sampling.scheduler].from_config(pipeline.scheduler.config, **spacing)


def timesteps(scheduler: Any, sampling: Sampling, device: torch.device | str) -> Tensor:
    """Set the scheduler's timesteps as the pipeline does => them, (steps,)."""
    chosen = sampling.timesteps and [*sampling.timesteps]
    found: Tensor = retrieve_timesteps(scheduler, sampling.steps, device, chosen)[0]
    return found


def is_guided(sampling: Sampling, unet: Mapping[str, Any]) -> bool:
    """Whether a step is two forwards of the UNet, with the prompt and the negative one: classifier-free guidance, as diffusers decides it.

    Args:
        sampling: its guidance scale.
        unet: configuration; one with `time_cond_proj_dim` (of latent consistency models) is told the guidance scale instead.
    """
    return sampling.guidance_scale > 1 and unet.get("time_cond_proj_dim") is None


def call_arguments(sampling: Sampling, prompts: list[str]) -> dict[str, Any]:
    """What the stock pipeline is called with."""
    given = {"timesteps": sampling.timesteps and [*sampling.timesteps], "eta": sampling.eta}
    return {
        "prompt": prompts,
        "negative_prompt": None if sampling.negative_prompt is None else [sampling.negative_prompt] * len(prompts),
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "height": sampling.size_px,
        "width": sampling.size_px,
        "output_type": "np",
        **{name: value for name, value in given.items() if value is not None},
    }


def initial_noise(noise: Noise, prompt_id: str, sample: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal latents, float32 on the CPU => `shape`.

    `fixed` is MLPerf's: the same latent for every prompt, from a file or from torch's generator with the suite's seed (whose
    last digits depend on the machine). `per_image` is keyed by 128 bits of (seed, prompt id, sample); torch's CPU generator
    takes 32 bits of a seed, with which two of 30,000 pictures share their noise with odds of about one in ten.

    Raises:
        UserError: the latent's file holds something else.
    """
    if path := noise.path():
        return _saved_latent(path, shape)
    if noise.kind == "fixed":
        return torch.randn(shape, generator=torch.Generator().manual_seed(noise.seed))
    random = np.random.Generator(np.random.Philox(key=_key(noise, prompt_id, sample)))
    return torch.from_numpy(random.standard_normal(shape, np.float32))


def _key(noise: Noise, prompt_id: str, sample: int) -> int:
    return int.from_bytes(hashlib.sha256(repr((noise.seed, prompt_id, sample)).encode()).digest()[:16], "little")


def _step_generator(noise: Noise, job: Job) -> torch.Generator:
    """What a scheduler draws from that adds noise at each step (ancestral, LCM), one for each picture as for its latents."""
    key = _key(noise, job.prompt_id, job.sample) if noise.kind == "per_image" else noise.seed
    return torch.Generator().manual_seed(key % 2**63)


@cache
def _saved_latent(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The tensor of a file, C x H x W or 1 x C x H x W."""
    try:
        latent = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises nearly anything for what it cannot read
        raise UserError(
            f"the suite's latent {path} cannot be read as a tensor ({type(error).__name__}); save it with torch.save"
        ) from error
    if not isinstance(latent, Tensor) or tuple(latent.shape) not in (shape, (1, *shape)) or not latent.isfinite().all():
        found = f"{tuple(latent.shape)}" if isinstance(latent, Tensor) else type(latent).__name__
        raise UserError(f"the suite's latent {path} must be a finite tensor of shape {shape}, as the suite's size_px needs; found {found}")
    return latent.reshape(shape).float()
