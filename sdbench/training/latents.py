"""The training data of UNets of both families: latents of captioned images, and embeddings of their captions.

Both are computed once for each kind of device, and stored by `row_files` under the digest of their inputs. What an earlier file has of
other inputs is copied. A batch depends only on (seed, its number), and has the same images and noise on every device.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor, nn
from transformers import CLIPTokenizer

from sdbench.disk import file_digest
from sdbench.errors import UserError
from sdbench.models.checks import check_finite
from sdbench.models.files import part_files, read_model_json
from sdbench.models.loading import read_part
from sdbench.models.text_encoders import token_ids
from sdbench.training.diffusion import Batch, check_diffusion
from sdbench.training.loop import draw_rows
from sdbench.training.processes import broadcast_from_main
from sdbench.training.row_files import RowFile, fill_and_load

ENCODING = 1  # raised with any change to how images are turned, converted, scaled, cropped or encoded, or captions embedded
ENCODE_BATCH_PX = {  # pixels in one pass of the VAE; another number changes the last bits of latents
    "cpu": 64 * 64 * 64,  # the latents of the shipped students were made with this
    "cuda": 1024 * 1024,  # one image of 1024 px fills a GPU, and takes about 2 GB; alone, it is copied wherever it is among others
}
COMPONENTS: dict[str, Any] = {  # parts of a pipeline except the UNet, and their classes; None: weights, loaded with all checks
    "vae": None,
    "text_encoder": None,
    "text_encoder_2": None,
    "tokenizer": CLIPTokenizer,
    "tokenizer_2": CLIPTokenizer,
    "scheduler": DDIMScheduler,
}


class CaptionedImages(Protocol):
    """Captioned images to train on."""

    @property
    def digest(self) -> str:
        """A digest that changes with pixels or captions."""

    @property
    def image_digests(self) -> Sequence[bytes]:
        """A digest for each image, that changes with its pixels or their size; of one that is left out, equal to no other."""

    @property
    def size_px(self) -> int:
        """The side of the square images that `read` returns."""

    @property
    def captions(self) -> Sequence[str]:
        """One caption for each image."""

    @property
    def max_undecodable(self) -> float:
        """The share of the images that may be left out because `read` cannot decode them."""

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Read images as a VAE takes them.

        Returns:
            Pixels, N x 3 x H x W float32 in -1..1, and SDXL's micro-conditioning (arXiv 2307.01952, 2.2), N x 6: original height and
            width, crop top and left, target height and width.

        Raises:
            UndecodableError: an image cannot be decoded.
        """


def load_components(folder: Path) -> dict[str, Any]:
    """Load the parts of a pipeline except its UNet, in float32 on the CPU.

    Raises:
        UserError: a part is missing, damaged or not finite.
    """
    return {
        name: _load_weights(name, folder / name) if kind is None else kind.from_pretrained(folder / name)
        for name, kind in COMPONENTS.items()
    }


def _check_complete(folder: Path) -> None:
    if missing := [name for name in COMPONENTS if not (folder / name).is_dir()]:
        raise UserError(f"{folder} is not a complete pipeline folder: no {', '.join(missing)}; expected {', '.join(COMPONENTS)}")


def _load_weights(part: str, folder: Path) -> nn.Module:
    model = read_part(part, folder, torch.float32)
    check_finite(model, part, folder)
    return model.eval().requires_grad_(requires_grad=False)


class LatentPool:
    """Latents and caption embeddings of images, encoded with the VAE and text encoders of one pipeline.

    What is not on disk yet is encoded at construction; in a distributed run, each process encodes its share.

    Args:
        pipeline_folder: a diffusers folder; its `unet` is not needed.
        work: folder for `latents-<digest>.npy`, `captions-<digest>.npy` and, unless that is zeros, `unconditional-<digest>.npy`, and for
            the keys by which later pools find rows to copy.
        validation: number of images, at most a tenth of all, that `batch` never draws, spread evenly over the sources.

    Raises:
        UserError: the folder lacks a component, one is damaged, the pipeline is of another kind (see `check_diffusion`), too many
            images cannot be decoded, or the disk has too little space.
    """

    def __init__(self, pipeline_folder: Path, images: CaptionedImages, work: Path, device: str = "cpu", validation: int = 0) -> None:
        _check_complete(pipeline_folder)
        check_diffusion(pipeline_folder)
        self.images, self._folder, self._device = images, pipeline_folder, device
        self.scheduler: DDIMScheduler = DDIMScheduler.from_pretrained(pipeline_folder / "scheduler")
        kind = torch.device(device).type  # a GPU's latents have other last digits, and a run on the CPU is repeatable
        text_parts = [name for name in COMPONENTS if name.startswith(("text_encoder", "tokenizer"))]
        images_digest, captions_digest = broadcast_from_main(
            lambda: [_digest(images.digest, kind, pipeline_folder, parts) for parts in (["vae"], text_parts)]
        )
        n, chunk_size = len(images.captions), max(1, ENCODE_BATCH_PX[kind] // images.size_px**2)

        def inputs(parts: Sequence[str], rows: Iterable[bytes]) -> list[bytes]:
            network = _digest("", kind, pipeline_folder, parts).encode()
            return [hashlib.sha256(network + row).digest() for row in rows]

        latents = RowFile(
            work / f"latents-{images_digest}.npy",
            n,
            chunk_size,
            self.encode_images,
            images.read,
            images.max_undecodable,
            lambda: inputs(["vae"], images.image_digests),
        )
        captions = RowFile(
            work / f"captions-{captions_digest}.npy",
            n,
            64,
            self.embed_captions,
            inputs=lambda: inputs(text_parts, map(str.encode, images.captions)),
        )
        unconditional = RowFile(work / f"unconditional-{captions_digest}.npy", 1, 1, lambda _: self._embed([""]))
        files = [latents, captions] if _has_zero_unconditional(pipeline_folder) else [latents, captions, unconditional]
        self._images, self._captions, *rest = fill_and_load(*files)
        self._unconditional = rest[0] if rest else None
        decodable = np.setdiff1d(np.arange(n), latents.undecodable_rows())
        validation = min(validation, len(decodable) // 10)
        held_out = decodable[np.arange(validation) * len(decodable) // max(1, validation)]
        self._rows = np.concatenate([np.setdiff1d(decodable, held_out), held_out])  # in the files
        self.validation_rows = np.arange(len(decodable) - validation, len(decodable))
        self.__dict__.pop("parts", None)  # frees them: gigabytes at full size
        torch.cuda.empty_cache()  # NCCL allocates beside PyTorch, which keeps what was freed

    @cached_property
    def parts(self) -> dict[str, Any]:
        """The parts of the pipeline except its UNet, by name, on the device; loaded when first used."""
        parts = load_components(self._folder)
        return {name: part.to(self._device) if isinstance(part, nn.Module) else part for name, part in parts.items()}

    @property
    def latents(self) -> npt.NDArray[np.float16]:
        """The latents of all images, of the shape in `Batch`: scaled modes of the posterior, or zeros for undecodable images."""
        latents: npt.NDArray[np.float16] = self._images["latents"]
        return latents

    def batch(self, number: int, batch: int, seed: int, drop: float = 0.1, device: str = "cpu") -> Batch:
        """Draw a batch.

        Args:
            number: of the batch; decides, with the `seed` of the run, the images, the noise, the timesteps and the captions to drop.
            batch: number of images.
            drop: share of captions to replace by the unconditional embedding.
        """
        batch_seed = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])  # torch's generator ignores all but 32 bits
        return self.batch_of_rows(draw_rows(number, len(self), batch, seed), batch_seed, drop, device=device)

    def __len__(self) -> int:
        """Number of images to train on: those that could be decoded, without those for validation."""
        return len(self._rows) - len(self.validation_rows)

    def batch_of_rows(
        self, rows: npt.NDArray[np.int64], seed: int, drop: float = 0.0, least: int = 0, most: int | None = None, device: str = "cpu"
    ) -> Batch:
        """A batch of given rows, counted among decodable images: first those to train on, then `validation_rows`.

        `seed` decides the noise, the timesteps (`least` <= t < `most`; default: all) and the captions to drop.
        """
        n, rows = len(rows), self._rows[rows]
        generator = torch.Generator().manual_seed(seed)
        latents, time_ids = (torch.from_numpy(self._images[name][rows]).float() for name in ("latents", "time_ids"))
        noise = torch.randn(latents.shape, generator=generator)
        timesteps = torch.randint(least, most or self.scheduler.config.num_train_timesteps, (n,), generator=generator)
        kept = (torch.rand(n, generator=generator) >= drop).float()
        prompt_embeds = self._embeddings_with_dropout("prompt_embeds", rows, kept[:, None, None])
        pooled = self._embeddings_with_dropout("pooled", rows, kept[:, None])
        return Batch(latents, prompt_embeds, pooled, time_ids, noise, timesteps).to(device)

    def _embeddings_with_dropout(self, name: str, rows: npt.NDArray[np.int64], kept: Tensor) -> Tensor:
        """The captions' embeddings where `kept` is 1, and the unconditional one where it is 0."""
        conditional = torch.from_numpy(self._captions[name][rows]).float() * kept
        if self._unconditional is None:
            return conditional
        return conditional + torch.from_numpy(self._unconditional[name][[0]]).float() * (1 - kept)

    def encode_images(self, images: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Encode images as `CaptionedImages.read` returns them, and return their rows in the file.

        A GPU may compute in TF32, which has as many digits as the file's float16.
        """
        pixels, time_ids = images
        return {"latents": encode(self.parts["vae"], pixels.to(self._device)).half(), "time_ids": time_ids}

    def embed_captions(self, rows: npt.NDArray[np.int64]) -> dict[str, Tensor]:
        """Embed captions as `encode_prompt` of the stock pipeline does, and return their rows in the file."""
        return self._embed([self.images.captions[row] for row in rows])

    def _embed(self, captions: list[str]) -> dict[str, Tensor]:
        outputs = []
        for number in ("", "_2"):
            ids = token_ids(self.parts[f"tokenizer{number}"], captions).to(self._device)
            outputs.append(self.parts[f"text_encoder{number}"](ids, output_hidden_states=True))
        prompt_embeds = torch.cat([output.hidden_states[-2] for output in outputs], -1)
        return {"prompt_embeds": prompt_embeds.half(), "pooled": outputs[1].text_embeds.half()}


def _has_zero_unconditional(folder: Path) -> bool:
    """Whether the unconditional embedding of a pipeline is zeros: as its index says, by diffusers' default yes."""
    index = folder / "model_index.json"
    return bool(read_model_json(index).get("force_zeros_for_empty_prompt", True)) if index.exists() else True


def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """Encode images, N x 3 x H x W in -1..1; returns scaled modes of the posterior, of the shape in `Batch`."""
    latents: Tensor = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    return latents


def _digest(images: str, device: str, folder: Path, parts: Sequence[str]) -> str:
    sha256 = hashlib.sha256(f"{ENCODING}\0{images}\0{device}".encode())
    for path in (file for part in parts for file in part_files(folder / part, part)):
        sha256.update(path.name.encode() + bytes.fromhex(file_digest(path)))
    return sha256.hexdigest()[:16]
