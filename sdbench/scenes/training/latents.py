"""What a UNet of the embedded family trains on: the latents of a pool's pictures, and the embeddings of their captions.

Latents are computed once and kept on disk under a name made of their content. Captions are encoded as they come, which
costs a small share of a step. A batch follows from (seed, step) alone, the same on every device.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sdbench.errors import UserError, unknown
from sdbench.scenes.render import SIZE_PX
from sdbench.scenes.training.pool import Pool

TIME_IDS = (SIZE_PX, SIZE_PX, 0, 0, SIZE_PX, SIZE_PX)  # original height, width, crop top, left, target height, width
COMPONENTS: dict[str, Any] = {  # of a pipeline, but for the UNet
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
    "tokenizer": CLIPTokenizer,
    "tokenizer_2": CLIPTokenizer,
    "scheduler": DDIMScheduler,
}


@dataclass(frozen=True)
class Batch:
    """One step's inputs, before any noise is added.

    Attributes:
        latents: N x 4 x 16 x 16, clean, scaled by the VAE's `scaling_factor`.
        prompt_embeds: N x tokens x 96, zeros where the caption was dropped.
        pooled: N x 64, zeros where the caption was dropped.
        time_ids: N x 6, SDXL's micro-conditioning.
        noise: like `latents`.
        timesteps: N, int64 in 0..999.
    """

    latents: Tensor
    prompt_embeds: Tensor
    pooled: Tensor
    time_ids: Tensor
    noise: Tensor
    timesteps: Tensor


def noisy(scheduler: DDIMScheduler, batch: Batch) -> Tensor:
    """The latents at the batch's timesteps, as the UNet sees them."""
    noised: Tensor = scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
    return noised


def target(scheduler: DDIMScheduler, batch: Batch) -> Tensor:
    """What the UNet should say: the noise, or the velocity sqrt(a) noise - sqrt(1 - a) latents (arXiv 2202.00512)."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return batch.noise
    if kind == "v_prediction":
        velocity: Tensor = scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
        return velocity
    raise unknown("prediction type of a scheduler", kind, ("epsilon", "v_prediction"))


def predict(unet: UNet2DConditionModel, noised: Tensor, batch: Batch) -> Tensor:
    """The UNet's output for noised latents under the batch's conditions."""
    conditions = {"text_embeds": batch.pooled, "time_ids": batch.time_ids}
    output: Tensor = unet(noised, batch.timesteps, batch.prompt_embeds, added_cond_kwargs=conditions, return_dict=False)[0]
    return output


def components(folder: Path) -> dict[str, Any]:
    """A pipeline's parts but for its UNet, in float32 on the CPU.

    Raises:
        UserError: the folder lacks one.
    """
    if missing := [name for name in COMPONENTS if not (folder / name).is_dir()]:
        raise UserError(f"{folder} is not a complete pipeline folder: no {', '.join(missing)}; expected {', '.join(COMPONENTS)}")
    parts = {name: kind.from_pretrained(folder / name) for name, kind in COMPONENTS.items()}
    return {
        name: part.float().eval().requires_grad_(requires_grad=False) if isinstance(part, nn.Module) else part
        for name, part in parts.items()
    }


class LatentPool:
    """Latents and captions of a pool, for the text encoders, VAE and scheduler of one pipeline folder.

    Args:
        pipeline_folder: a diffusers folder; its `unet` is not needed.
        work: gets the latents, as `latents-<digest>.npy`.

    Attributes:
        parts: of the pipeline, by name.

    Raises:
        UserError: the folder lacks a component.
    """

    def __init__(self, pipeline_folder: Path, pool: Pool, work: Path) -> None:
        self.pool, self.parts = pool, components(pipeline_folder)
        self.scheduler: DDIMScheduler = self.parts["scheduler"]
        path = work / f"latents-{_digest(pipeline_folder / 'vae', pool)}.npy"
        if not path.exists():
            _encode(self.parts["vae"], pool, path)
        self.latents: npt.NDArray[np.float16] = np.load(path, mmap_mode="r")

    def batch(self, step: int, batch: int, seed: int, drop: float = 0.1, device: str = "cpu") -> Batch:
        """What step number `step` trains on.

        Args:
            step: chooses, with `seed`, the pictures, the noise, the timesteps and the captions to drop.
            batch: number of pictures.
            seed: of the run.
            drop: share of captions replaced by the unconditional embedding, which is zeros.
            device: where the tensors go; the text encoders stay on the CPU.
        """
        mixed = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])  # torch's generator takes 32 bits and drops the rest
        return self.at(self.pool.rows(step, batch, seed), mixed, drop, device=device)

    def at(
        self, rows: npt.NDArray[np.int64], seed: int, drop: float = 0.0, least: int = 0, most: int | None = None, device: str = "cpu"
    ) -> Batch:
        """The pool's pictures of these rows, with noise and timesteps (`least` <= t < `most`) that follow from `seed`."""
        n = len(rows)
        chance = torch.Generator().manual_seed(seed)
        latents = torch.from_numpy(self.latents[rows]).float()
        noise = torch.randn(latents.shape, generator=chance)
        timesteps = torch.randint(least, most or self.scheduler.config.num_train_timesteps, (n,), generator=chance)
        kept = (torch.rand(n, generator=chance) >= drop).float()
        prompt_embeds, pooled = self.embed([self.pool.scenes[row].caption for row in rows])
        prompt_embeds, pooled = prompt_embeds * kept[:, None, None], pooled * kept[:, None]
        time_ids = torch.tensor([TIME_IDS], dtype=torch.float32).repeat(n, 1)
        return Batch(*(tensor.to(device) for tensor in (latents, prompt_embeds, pooled, time_ids, noise, timesteps)))

    @torch.no_grad()
    def embed(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Captions => prompt embeddings N x tokens x 96 and pooled embeddings N x 64, as `encode_prompt` of the stock pipeline makes them."""
        outputs = []
        for number in ("", "_2"):
            tokens, encoder = self.parts[f"tokenizer{number}"], self.parts[f"text_encoder{number}"]
            ids = tokens(captions, padding="max_length", max_length=tokens.model_max_length, truncation=True, return_tensors="pt").input_ids
            outputs.append(encoder(ids, output_hidden_states=True))
        return torch.cat([output.hidden_states[-2] for output in outputs], -1), outputs[1].text_embeds


def _digest(vae: Path, pool: Pool) -> str:
    digest = hashlib.sha256(pool.images.data)
    for path in sorted(vae.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _encode(vae: AutoencoderKL, pool: Pool, path: Path) -> None:
    """Each picture's posterior mode, scaled => n x 4 x 16 x 16 float16."""
    side = SIZE_PX // 2 ** (len(vae.config.block_out_channels) - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    latents = np.lib.format.open_memmap(beside, "w+", np.float16, (pool.n, vae.config.latent_channels, side, side))
    for start in tqdm(range(0, pool.n, 64), desc="encoding latents", mininterval=2):
        rows = np.arange(start, min(start + 64, pool.n))
        latents[rows] = vae.encode(pool.pixels(rows)).latent_dist.mode() * vae.config.scaling_factor
    latents.flush()
    beside.rename(path)
