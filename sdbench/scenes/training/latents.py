"""What a UNet of the embedded family trains on: the latents of a pool's pictures, and the embeddings of their captions.

Both are computed once and kept on disk under a name made of what they follow from. A batch follows from (seed, step)
alone, the same on every device.
"""

import hashlib
from collections.abc import Callable
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
        work: gets `latents-<digest>.npy` and `captions-<digest>.npy`.

    Attributes:
        parts: of the pipeline, by name.
        latents: n x 4 x 16 x 16, modes of the posterior, scaled.

    Raises:
        UserError: the folder lacks a component.
    """

    def __init__(self, pipeline_folder: Path, pool: Pool, work: Path) -> None:
        self.pool, self.parts = pool, components(pipeline_folder)
        self.scheduler: DDIMScheduler = self.parts["scheduler"]
        of_pictures = _digest(pool.images.data, pipeline_folder / "vae")
        captions = [scene.caption for scene in pool.scenes]
        of_captions = _digest("\n".join(captions).encode(), *(pipeline_folder / name for name in COMPONENTS if name.startswith("t")))
        self.latents = _kept(work / f"latents-{of_pictures}.npy", pool.n, lambda rows: encode(self.parts["vae"], pool.pixels(rows)))
        self._captions = _kept(work / f"captions-{of_captions}.npy", pool.n, lambda rows: self._flat([captions[row] for row in rows]))

    def batch(self, step: int, batch: int, seed: int, drop: float = 0.1, device: str = "cpu") -> Batch:
        """What step number `step` trains on.

        Args:
            step: chooses, with `seed`, the pictures, the noise, the timesteps and the captions to drop.
            batch: number of pictures.
            seed: of the run.
            drop: share of captions replaced by the unconditional embedding, which is zeros.
            device: where the tensors go.
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
        width = self.parts["text_encoder_2"].config.projection_dim
        captions = torch.from_numpy(self._captions[rows]).float() * kept[:, None]
        prompt_embeds, pooled = captions[:, :-width].reshape(n, self.parts["tokenizer"].model_max_length, -1), captions[:, -width:]
        time_ids = torch.tensor([TIME_IDS], dtype=torch.float32).repeat(n, 1)
        return Batch(*(tensor.to(device) for tensor in (latents, prompt_embeds, pooled, time_ids, noise, timesteps)))

    def _flat(self, captions: list[str]) -> Tensor:
        """Captions => N x (tokens x 96 + 64): prompt and pooled embeddings as `encode_prompt` of the stock pipeline makes them."""
        outputs = []
        for number in ("", "_2"):
            tokens, encoder = self.parts[f"tokenizer{number}"], self.parts[f"text_encoder{number}"]
            ids = tokens(captions, padding="max_length", max_length=tokens.model_max_length, truncation=True, return_tensors="pt").input_ids
            outputs.append(encoder(ids, output_hidden_states=True))
        return torch.cat([torch.cat([output.hidden_states[-2] for output in outputs], -1).flatten(1), outputs[1].text_embeds], 1)


def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """N x 3 x 64 x 64 in -1..1 => the posterior's mode, scaled, N x 4 x 16 x 16."""
    latents: Tensor = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    return latents


def _digest(data: bytes | memoryview, *folders: Path) -> str:
    digest = hashlib.sha256(data)
    for path in (file for folder in folders for file in sorted(folder.iterdir())):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _kept(path: Path, n: int, make: Callable[[npt.NDArray[np.int64]], Tensor]) -> npt.NDArray[np.float16]:
    """What `make` gives for n rows, as a file of float16; made where it is not there yet."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(".part")
        shape = make(np.arange(1)).shape[1:]
        array = np.lib.format.open_memmap(beside, "w+", np.float16, (n, *shape))
        for start in tqdm(range(0, n, 64), desc=f"encoding {path.stem.split('-')[0]}", mininterval=2):
            rows = np.arange(start, min(start + 64, n))
            array[rows] = make(rows)
        array.flush()
        beside.rename(path)
    kept: npt.NDArray[np.float16] = np.load(path, mmap_mode="r")
    return kept
