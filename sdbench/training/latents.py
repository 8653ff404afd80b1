"""What a UNet of either family trains on: the latents of captioned pictures, and the embeddings of their captions.

Both are computed once and kept on disk, by `row_files`, under a name made of what they follow from. A batch follows from
(seed, step) alone, the same on every device.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sdbench.errors import UserError, unknown_name
from sdbench.models.checks import check_finite
from sdbench.models.files import part_files, read_json
from sdbench.models.loading import read_part
from sdbench.models.text_encoders import token_ids
from sdbench.training.loop import rows_of
from sdbench.training.processes import from_main
from sdbench.training.row_files import RowFile, filled

ENCODED_AT_ONCE_PX = {  # pixels of all pictures in one pass of the VAE, which decide a latent's last bits
    "cpu": 64 * 64 * 64,  # the shipped students' latents were made so
    "cuda": 4 * 1024 * 1024,  # a picture of 1024 px takes about 2 GB: some four tensors of 128 channels
}
COMPONENTS: dict[str, Any] = {  # of a pipeline, but for the UNet; None: weights, read with all checks
    "vae": None,
    "text_encoder": None,
    "text_encoder_2": None,
    "tokenizer": CLIPTokenizer,
    "tokenizer_2": CLIPTokenizer,
    "scheduler": DDIMScheduler,
}


class Captioned(Protocol):
    """Captioned pictures to train on."""

    @property
    def digest(self) -> str:
        """SHA-256 of pixels and captions."""

    @property
    def size_px(self) -> int:
        """Side of the squares that `read` gives."""

    @property
    def captions(self) -> Sequence[str]:
        """One for each picture."""

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Pictures as a VAE takes them, N x 3 x H x W float32 in -1..1, and SDXL's micro-conditioning, N x 6.

        The latter: original height and width, crop top and left, target height and width.

        Raises:
            UndecodableError: a picture cannot be decoded.
        """


@dataclass(frozen=True)
class Batch:
    """One step's inputs, before any noise is added.

    Attributes:
        latents: N x 4 x H/8 x W/8 (H/4 x W/4 in the embedded family), clean, scaled by the VAE's `scaling_factor`.
        prompt_embeds: N x tokens x width, of both text encoders side by side; where the caption was dropped, the unconditional
            embedding, which is zeros, or that of "" where the pipeline's `force_zeros_for_empty_prompt` is false.
        pooled: N x width, of the second text encoder; likewise.
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

    def to(self, to: torch.device | str | torch.dtype) -> Self:
        """The same on another device or, but for timesteps and micro-conditioning, in another precision.

        In bfloat16 a side of 1365 px would become 1368.
        """
        exact = ("timesteps", "time_ids") if isinstance(to, torch.dtype) else ()
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        return type(self)(**{name: tensor if name in exact else tensor.to(to) for name, tensor in tensors.items()})


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
    raise unknown_name("prediction type of a scheduler", kind, ("epsilon", "v_prediction"))


def predict(unet: UNet2DConditionModel, noised: Tensor, batch: Batch) -> Tensor:
    """The UNet's output for noised latents under the batch's conditions."""
    conditions = {"text_embeds": batch.pooled, "time_ids": batch.time_ids}
    output: Tensor = unet(noised, batch.timesteps, batch.prompt_embeds, added_cond_kwargs=conditions, return_dict=False)[0]
    return output


def components(folder: Path) -> dict[str, Any]:
    """A pipeline's parts but for its UNet, in float32 on the CPU.

    Raises:
        UserError: the folder lacks one, or one is damaged or not finite.
    """
    _complete(folder)
    return {
        name: _weights(name, folder / name) if kind is None else kind.from_pretrained(folder / name) for name, kind in COMPONENTS.items()
    }


def check_diffusion(folder: Path) -> None:
    """Make sure that a pipeline's noise is added as DDPM adds it and its latents are only scaled, as training here does both.

    Raises:
        UserError: they are not, or a configuration cannot be read.
    """
    scheduler, vae = (read_json(folder / place) for place in ("scheduler/scheduler_config.json", "vae/config.json"))
    if "beta_schedule" not in scheduler or scheduler.get("use_flow_sigmas"):
        found = f"the noise of its scheduler, {scheduler.get('_class_name')}, follows no betas"
    elif vae.get("latents_mean"):
        found = "its VAE's latents are shifted by latents_mean"
    else:
        return
    raise UserError(
        f"the pipeline in {folder} is of another diffusion than is trained here: {found}; expected noise as DDPM adds it, and latents that are only scaled, as SDXL has them. Name another with --teacher"
    )


def _complete(folder: Path) -> None:
    if missing := [name for name in COMPONENTS if not (folder / name).is_dir()]:
        raise UserError(f"{folder} is not a complete pipeline folder: no {', '.join(missing)}; expected {', '.join(COMPONENTS)}")


def _weights(part: str, folder: Path) -> nn.Module:
    found = read_part(part, folder, torch.float32)
    check_finite(found, part, folder)
    return found.eval().requires_grad_(requires_grad=False)


class LatentPool:
    """Latents and captions of pictures, for the text encoders, VAE and scheduler of one pipeline folder.

    Args:
        pipeline_folder: a diffusers folder; its `unet` is not needed.
        pictures: what to encode.
        work: gets `latents-<digest>.npy` and `captions-<digest>.npy`.
        device: where what is not there yet is encoded, by this process its share.

    Attributes:
        scheduler: of the pipeline's noise schedule.

    Raises:
        UserError: the folder lacks a component, one is damaged, too many pictures cannot be decoded, or the disk has too little room.
    """

    def __init__(self, pipeline_folder: Path, pictures: Captioned, work: Path, device: str = "cpu") -> None:
        _complete(pipeline_folder)
        check_diffusion(pipeline_folder)
        self.pictures, self._folder, self._device = pictures, pipeline_folder, device
        self.scheduler: DDIMScheduler = DDIMScheduler.from_pretrained(pipeline_folder / "scheduler")
        texts = [name for name in COMPONENTS if name.startswith("t")]
        of_pictures, of_captions = from_main(lambda: [_digest(pictures.digest, pipeline_folder, names) for names in (["vae"], texts)])
        n, at_once = len(pictures.captions), max(1, ENCODED_AT_ONCE_PX[torch.device(device).type] // pictures.size_px**2)
        latents = RowFile(work / f"latents-{of_pictures}.npy", n, at_once, self._encoded, pictures.read)
        embeddings = RowFile(work / f"captions-{of_captions}.npy", n, 64, self.embedded)
        unconditional = RowFile(work / f"unconditional-{of_captions}.npy", 1, 1, lambda _: self._embedded([""]))
        self._pictures, self._captions, *rest = filled(latents, embeddings, *([] if _zeros_for_empty(pipeline_folder) else [unconditional]))
        self._unconditional = rest[0] if rest else None
        self._whole = np.setdiff1d(np.arange(n), latents.left_out())
        self.__dict__.pop("parts", None)  # gigabytes at full size, and done with

    @cached_property
    def parts(self) -> dict[str, Any]:
        """Of the pipeline, by name."""
        parts = components(self._folder)
        return {name: part.to(self._device) if isinstance(part, nn.Module) else part for name, part in parts.items()}

    @property
    def latents(self) -> npt.NDArray[np.float16]:
        """Of all pictures, modes of the posterior, scaled, n x 4 x H x W."""
        found: npt.NDArray[np.float16] = self._pictures["latents"]
        return found

    def batch(self, step: int, batch: int, seed: int, drop: float = 0.1, device: str = "cpu") -> Batch:
        """What step number `step` trains on.

        Args:
            step: chooses, with `seed`, the pictures, the noise, the timesteps and the captions to drop.
            batch: number of pictures.
            seed: of the run.
            drop: share of captions replaced by the unconditional embedding.
            device: where the tensors go.
        """
        mixed = int(np.random.SeedSequence((seed, step)).generate_state(1)[0])  # torch's generator takes 32 bits and drops the rest
        return self.at(rows_of(step, len(self), batch, seed), mixed, drop, device=device)

    def __len__(self) -> int:
        """Pictures that could be decoded."""
        return len(self._whole)

    def at(
        self, rows: npt.NDArray[np.int64], seed: int, drop: float = 0.0, least: int = 0, most: int | None = None, device: str = "cpu"
    ) -> Batch:
        """These of the pictures that could be decoded, with noise and timesteps (`least` <= t < `most`) that follow from `seed`."""
        n, rows = len(rows), self._whole[rows]
        chance = torch.Generator().manual_seed(seed)
        latents, time_ids = (torch.from_numpy(self._pictures[name][rows]).float() for name in ("latents", "time_ids"))
        noise = torch.randn(latents.shape, generator=chance)
        timesteps = torch.randint(least, most or self.scheduler.config.num_train_timesteps, (n,), generator=chance)
        kept = (torch.rand(n, generator=chance) >= drop).float()
        prompt_embeds = self._dropped("prompt_embeds", rows, kept[:, None, None])
        return Batch(latents, prompt_embeds, self._dropped("pooled", rows, kept[:, None]), time_ids, noise, timesteps).to(device)

    def _dropped(self, name: str, rows: npt.NDArray[np.int64], kept: Tensor) -> Tensor:
        """Embeddings of these captions where `kept` is 1, and the unconditional one where it is 0."""
        conditional = torch.from_numpy(self._captions[name][rows]).float() * kept
        return (
            conditional
            if self._unconditional is None
            else conditional + torch.from_numpy(self._unconditional[name][[0]]).float() * (1 - kept)
        )

    def encoded(self, rows: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """What is kept of these pictures, made anew; in float32, of which a GPU's convolutions may keep no more digits (TF32) than the file does."""
        return self._encoded(self.pictures.read(rows))

    def _encoded(self, read: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        pixels, time_ids = read
        return {"latents": encode(self.parts["vae"], pixels.to(self._device)).half(), "time_ids": time_ids}

    def embedded(self, rows: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """What is kept of these captions, made anew: embeddings as `encode_prompt` of the stock pipeline makes them."""
        return self._embedded([self.pictures.captions[row] for row in rows])

    def _embedded(self, captions: list[str]) -> dict[str, Tensor]:
        outputs = []
        for number in ("", "_2"):
            ids = token_ids(self.parts[f"tokenizer{number}"], captions).to(self._device)
            outputs.append(self.parts[f"text_encoder{number}"](ids, output_hidden_states=True))
        prompt_embeds = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        return {"prompt_embeds": prompt_embeds.half(), "pooled": outputs[1].text_embeds.half()}


def _zeros_for_empty(folder: Path) -> bool:
    """Whether a pipeline's unconditional embedding is zeros, as its index says; where there is none, or it says nothing, diffusers takes that."""
    index = folder / "model_index.json"
    return bool(read_json(index).get("force_zeros_for_empty_prompt", True)) if index.exists() else True


def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """N x 3 x H x W in -1..1 => the posterior's mode, scaled, N x 4 x H/8 x W/8."""
    latents: Tensor = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    return latents


def _digest(pictures: str, folder: Path, parts: Sequence[str]) -> str:
    digest = hashlib.sha256(pictures.encode())
    for path in (file for part in parts for file in part_files(folder / part, part)):
        with path.open("rb") as file:
            digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]
