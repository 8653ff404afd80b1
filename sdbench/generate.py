"""Generate a model's images for a suite into the store.

The noise of an image comes from its own generator on the CPU, keyed by (suite seed, prompt id, sample), so it does not depend
on order, batch or number of machines. Batch number k always holds the same prompts at the same positions, and one sample of each, so more
samples leave the first ones' batches as they were. A resumed batch is filled up with prompts that are already finished, which costs as
much as padding would, so its bytes cannot differ from those of an unbroken run.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor

from sdbench.arrays import U8
from sdbench.disk import digest
from sdbench.errors import UserError
from sdbench.models.precision import full_float32
from sdbench.notes import progress
from sdbench.records.names import place_of_prompt
from sdbench.scenes.grammar import parse
from sdbench.scenes.render import render
from sdbench.schedulers import set_scheduler, set_timesteps
from sdbench.settings import Sampling
from sdbench.store import Store
from sdbench.suites import Noise, Suite


@dataclass(frozen=True)
class Job:
    """One image to make: its prompt, and the identity it is stored under."""

    prompt_id: str
    sample: int
    prompt: str
    image_id: str


def list_jobs(suite: Suite, sampling: Sampling, weights_digest: str | None) -> list[Job]:
    """The images that a suite asks of a model, in order: the first sample of every prompt, then the second of every prompt, and so on.

    The identity of a first sample does not name it, so that images stay valid that were made before there were others.

    Raises:
        MissingError, UserError: see `Suite.prompt_list` and `Noise.path`.
    """
    settings, noise, prompts = sampling.model_dump(exclude={"batch"}), suite.noise.identity(), suite.prompt_list()
    return [
        Job(prompt_id, sample, prompt, digest([weights_digest, prompt_id, prompt, settings, noise, *([sample] if sample else [])]))
        for sample in range(suite.samples)
        for prompt_id, prompt in prompts.items()
    ]


def select_part(jobs: list[Job], batch: int, part: tuple[int, int]) -> list[Job]:
    """The k-th of n parts of the jobs, for n processes that share a store.

    Parts get whole batches: images in the same batch may change each other's last bits.

    Args:
        part: (k, n), k from 1 to n.
    """
    return list(chain.from_iterable(_batches(jobs, batch)[part[0] - 1 :: part[1]]))


def _batches(jobs: list[Job], batch: int) -> list[list[Job]]:
    """The jobs in batches of one sample each, in order; the last batch of each sample may be short."""
    by_sample: dict[int, list[Job]] = {}
    for job in jobs:
        by_sample.setdefault(job.sample, []).append(job)
    return [group[start : start + batch] for group in by_sample.values() for start in range(0, len(group), batch)]


def generate(jobs: list[Job], store: Store, batch: int, make: Callable[[list[Job]], U8], title: str) -> None:
    """Make the images that the store lacks.

    While a batch is made, all cores write the previous one: compressing an image of 1024 px takes a core 0.2 s, perhaps longer than a GPU
    takes to draw it in few steps.

    Args:
        make: turns a full batch of jobs into images, N x H x W x 3 uint8.
        title: what the progress bar calls the model.

    Raises:
        UserError: an image cannot be written, or `make` raises it.
    """
    missing = set(store.missing([job.image_id for job in jobs]))
    writing: list[Future[None]] = []
    bar = progress(total=len(jobs), initial=len(jobs) - len(missing), desc=f"{title}: images", unit="image")

    def wait() -> None:
        for future in writing:
            future.result()
        bar.update(len(writing))  # a batch at once, since the bar is drawn at most once a second: it would show but one of its images
        writing.clear()

    with bar, ThreadPoolExecutor(os.cpu_count()) as writers:
        try:
            for group in _batches(jobs, batch):
                if missing.isdisjoint(job.image_id for job in group):
                    continue
                images = make(group + [group[-1]] * (batch - len(group)))
                wait()
                new = [(job.image_id, pixels) for job, pixels in zip(group, images, strict=False) if job.image_id in missing]
                writing += [writers.submit(store.put, image_id, pixels) for image_id, pixels in new]
        finally:
            wait()  # also where the next batch cannot be made, so that the error of a full disk comes first


def render_scenes(group: list[Job]) -> U8:
    """The renderer's own images of the captions, N x 64 x 64 x 3 uint8 RGB: the best that any model can do. All are of one sample.

    Raises:
        ValueError: a caption does not follow the grammar.
    """
    return render([parse(job.prompt) for job in group], [place_of_prompt(job.prompt_id) for job in group], seed=1 + group[0].sample)


def make_sampler(pipeline: StableDiffusionXLPipeline, sampling: Sampling, noise: Noise) -> Callable[[list[Job]], U8]:
    """Set the pipeline's scheduler and return a function that makes a batch of its images, N x H x W x 3 uint8 RGB.

    The function raises `UserError` where an image holds NaN; diffusers clips infinity to white or black.

    Raises:
        UserError: see `set_timesteps`.
    """
    set_scheduler(pipeline, sampling)
    set_timesteps(pipeline.scheduler, sampling, "cpu")  # refused before an image is drawn
    dtype: torch.dtype = getattr(torch, sampling.dtype)
    shape = (pipeline.unet.config.in_channels, *(side // pipeline.vae_scale_factor for side in sampling.shape_px))

    def make(group: list[Job]) -> U8:
        latents = torch.stack([initial_noise(noise, job.prompt_id, job.sample, shape) for job in group]).to(dtype)
        generators = [_step_generator(noise, job) for job in group]
        with full_float32():  # a training loop may have set a lower precision, which makes other images
            arguments = call_arguments(sampling, [job.prompt for job in group], output_type="pt")
            pixels = pipeline(**arguments, latents=latents, generator=generators).images.float()
        for job, is_broken in zip(group, pixels.isnan().flatten(1).any(1).tolist(), strict=True):
            if is_broken:
                raise UserError(
                    f"the model made NaN pixels for prompt {job.prompt_id} ({job.prompt!r}) in {sampling.dtype}; try another dtype, or "
                    "check its weights."
                )
        # To bytes where they are: a fourth of the numbers leaves the device, which else waits for one thread of the host.
        rounded = (255 * pixels.clamp(0, 1)).round().to(torch.uint8)
        return np.asarray(rounded.permute(0, 2, 3, 1).contiguous().cpu())

    return make


def is_guided(sampling: Sampling, unet: Mapping[str, Any]) -> bool:
    """Whether diffusers uses classifier-free guidance: each step is then two forwards of the UNet, for the prompt and the negative prompt.

    Args:
        unet: the UNet's configuration; one with `time_cond_proj_dim` (latent consistency models) takes the guidance scale as an input.
    """
    return sampling.guidance_scale > 1 and unet.get("time_cond_proj_dim") is None


def call_arguments(sampling: Sampling, prompts: list[str], *, output_type: str = "np") -> dict[str, Any]:
    """The arguments with which the stock pipeline is called, by default for images as arrays on the host."""
    given = {"timesteps": sampling.timesteps and [*sampling.timesteps], "eta": sampling.eta}
    height, width = sampling.shape_px
    return {
        "prompt": prompts,
        "negative_prompt": None if sampling.negative_prompt is None else [sampling.negative_prompt] * len(prompts),
        "num_inference_steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "height": height,
        "width": width,
        "output_type": output_type,
        **{name: value for name, value in given.items() if value is not None},
    }


def initial_noise(noise: Noise, prompt_id: str, sample: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal latents of this shape, float32 on the CPU.

    `fixed`, as in MLPerf, is the same latent for every prompt, from a file or from torch's generator with the suite's seed (whose
    last digits depend on the machine). `per_image` is keyed by 128 bits of (seed, prompt id, sample). Torch's CPU generator
    takes only 32 bits of a seed, so two of 30,000 images would share their noise with a probability of about one in ten.

    Raises:
        MissingError, UserError: see `Noise.path`; or the latent's file holds no finite tensor of this shape.
    """
    if path := noise.path():
        return _saved_latent(path, shape)
    if noise.kind == "fixed":
        return torch.randn(shape, generator=torch.Generator().manual_seed(noise.seed))
    random = np.random.Generator(np.random.Philox(key=_noise_key(noise, prompt_id, sample)))
    return torch.from_numpy(random.standard_normal(shape, np.float32))


def _noise_key(noise: Noise, prompt_id: str, sample: int) -> int:
    return int.from_bytes(hashlib.sha256(repr((noise.seed, prompt_id, sample)).encode()).digest()[:16], "little")


def _step_generator(noise: Noise, job: Job) -> torch.Generator:
    """The generator of the noise that some schedulers (ancestral, LCM) add at each step; each image has its own, as for its latents.

    Torch keeps 32 bits of the key, so two images of many may share this noise, but not their latents.
    """
    key = _noise_key(noise, job.prompt_id, job.sample) if noise.kind == "per_image" else noise.seed
    return torch.Generator().manual_seed(key % 2**63)


def _saved_latent(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The tensor in a file, C x H x W or 1 x C x H x W, in this shape and in float32."""
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
