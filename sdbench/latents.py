"""What a UNet of either family trains on: the latents of captioned pictures, and the embeddings of their captions.

Both are computed once and kept on disk under a name made of what they follow from; encoding that was killed goes on where
it stood. The processes of a distributed run share it out. Pictures that cannot be decoded are left out and said, up to one
in a hundred. A batch follows from (seed, step) alone, the same on every device.
"""

import hashlib
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTokenizer

from sdbench.errors import UndecodableError, UserError, unknown
from sdbench.models.checks import check_finite
from sdbench.models.files import part_files, read_json
from sdbench.models.loading import read_part
from sdbench.processes import from_main, sharing
from sdbench.training import rows_of

ENCODED_AT_ONCE_PX = {  # pixels of all pictures in one pass of the VAE, which decide a latent's last bits
    "cpu": 64 * 64 * 64,  # the shipped students' latents were made so
    "cuda": 4 * 1024 * 1024,  # a picture of 1024 px takes about 2 GB: some four tensors of 128 channels
}
READERS = 8  # threads that read and decode the next pictures while the device encodes
UNFLUSHED_S = 30.0  # of encoding, which is lost at most where a process is killed or the machine goes down
UNDECODABLE = 0.01  # of the pictures, which may be left out
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
    raise unknown("prediction type of a scheduler", kind, ("epsilon", "v_prediction"))


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
        self.pictures, self._folder, self._device = pictures, pipeline_folder, device
        self.scheduler: DDIMScheduler = DDIMScheduler.from_pretrained(pipeline_folder / "scheduler")
        texts = [name for name in COMPONENTS if name.startswith("t")]
        of_pictures, of_captions = from_main(lambda: [_digest(pictures.digest, pipeline_folder, names) for names in (["vae"], texts)])
        n, at_once = len(pictures.captions), max(1, ENCODED_AT_ONCE_PX[torch.device(device).type] // pictures.size_px**2)
        latents = _Rows(work / f"latents-{of_pictures}.npy", n, at_once, self._encoded, pictures.read)
        embeddings = _Rows(work / f"captions-{of_captions}.npy", n, 64, self.embedded)
        unconditional = _Rows(work / f"unconditional-{of_captions}.npy", 1, 1, lambda _: self._embedded([""]))
        self._pictures, self._captions, *rest = _kept(latents, embeddings, *([] if _zeros_for_empty(pipeline_folder) else [unconditional]))
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
            tokens, encoder = self.parts[f"tokenizer{number}"], self.parts[f"text_encoder{number}"]
            ids = tokens(captions, padding="max_length", max_length=tokens.model_max_length, truncation=True, return_tensors="pt").input_ids
            outputs.append(encoder(ids.to(self._device), output_hidden_states=True))
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


@dataclass(frozen=True)
class _Rows:
    """A file of `n` rows that `make` gives of what `read`, in threads, read for it; `at_once` of them at a time.

    Beside it, while it is not whole: itself with the suffix `.part`, and `.done`, a byte for each row, 1 once it is made.
    """

    path: Path
    n: int
    at_once: int
    make: Callable[[Any], dict[str, Tensor]]
    read: Callable[[npt.NDArray[np.int64]], Any] = lambda rows: rows

    @property
    def beside(self) -> Path:
        """The file that is not whole."""
        return self.path.with_suffix(".part")

    @property
    def done(self) -> Path:
        """The marks."""
        return self.path.with_suffix(".done")

    @property
    def begun(self) -> bool:
        """Whether file and marks are there and belong together."""
        return self.beside.exists() and self.done.exists() and self.done.stat().st_size == self.n

    def left_out(self) -> npt.NDArray[np.int64]:
        """Rows of pictures that cannot be decoded, once the file is whole."""
        noted = self.path.with_suffix(".left-out.npy")
        found: npt.NDArray[np.int64] = np.load(noted) if noted.exists() else np.zeros(0, np.int64)
        return found


@torch.no_grad()
def _kept(*wanted: _Rows) -> list[npt.NDArray[np.void]]:
    """The arrays of these files of one folder, with a field for each tensor; what is there already is not made again."""
    for rows, is_there in zip(wanted, from_main(lambda: _begin(wanted)), strict=True):
        if not is_there:
            _fill(rows)
            from_main(partial(_end, rows))
    return [np.load(rows.path, mmap_mode="r") for rows in wanted]


def _begin(wanted: Sequence[_Rows]) -> list[bool]:
    """See to a file and its marks for each that is not whole => which are whole.

    Where the disk cannot hold them all, writing would kill the process hours later, so that is seen first.
    """
    new = [rows for rows in wanted if not rows.path.exists() and not rows.begun]
    kinds = [_kind(rows) for rows in new]
    folder = wanted[0].path.parent
    folder.mkdir(parents=True, exist_ok=True)
    needed = sum(rows.n * kind.itemsize for rows, kind in zip(new, kinds, strict=True))
    if needed > (free := shutil.disk_usage(folder).free):
        fields = ", ".join(name for kind in kinds for name in kind.names or ())
        raise UserError(
            f"{folder} has {free / 1e9:.1f} GB free; {needed / 1e9:.1f} GB are needed for {fields} of {wanted[0].n:,} pictures. Make room, or name another folder with --work"
        )
    for rows, kind in zip(new, kinds, strict=True):
        rows.done.unlink(missing_ok=True)
        np.lib.format.open_memmap(rows.beside, "w+", kind, (rows.n,))  # takes no room before it is written to
        rows.done.write_bytes(bytes(rows.n))
    return [rows.path.exists() for rows in wanted]


def _kind(rows: _Rows) -> np.dtype[np.void]:
    """Fields of a row, from the first that can be made."""
    for row in range(rows.n):
        try:
            made = rows.make(rows.read(np.array([row])))
        except UndecodableError:
            if row < UNDECODABLE * rows.n:
                continue
            raise
        return np.dtype([(name, tensor.cpu().numpy().dtype, tuple(tensor.shape[1:])) for name, tensor in made.items()])
    raise UserError(f"there is nothing to make {rows.path} of")


def _fill(rows: _Rows) -> None:
    """Make this process's share of the rows that are not there; which chunks these are follows from their number alone.

    Rows are marked once they are on the disk, or as the process ends; those that cannot be made never are.
    """
    array, marks = np.load(rows.beside, mmap_mode="r+"), np.memmap(rows.done, np.uint8, "r+")
    (process, processes), chunks = sharing(), range(0, rows.n, rows.at_once)
    mine = [first for number, first in enumerate(chunks) if number % processes == process and not marks[first : first + rows.at_once].all()]
    fresh, flushed, torn = np.zeros(rows.n, bool), -UNFLUSHED_S, 0
    try:
        ahead = _read_ahead(rows.read, [np.arange(first, min(first + rows.at_once, rows.n)) for first in mine])
        for whole, read in tqdm(
            ahead, desc=f"encoding {rows.path.stem.split('-')[0]}", total=len(mine), mininterval=2, disable=process > 0
        ):
            for chunk, made in _made(rows, whole, read):
                if isinstance(made, UndecodableError):
                    torn += 1
                    if torn > UNDECODABLE * rows.n / processes:
                        raise made
                    tqdm.write(f"left out: {made}", file=sys.stderr)
                    continue
                for name, tensor in made.items():
                    array[name][chunk] = tensor.cpu().numpy()
                fresh[chunk] = True
            if time.monotonic() - flushed > UNFLUSHED_S:
                array.flush()
                marks[fresh] = 1
                flushed = time.monotonic()
    finally:
        array.flush()
        marks[fresh] = 1


def _read_ahead(
    read: Callable[[npt.NDArray[np.int64]], Any], chunks: Sequence[npt.NDArray[np.int64]]
) -> Iterator[tuple[npt.NDArray[np.int64], Callable[[], Any]]]:
    """Chunks in turn, each with a function that waits for what was read of it, while the next ones are read."""
    pool, pending = ThreadPoolExecutor(READERS), deque[tuple[npt.NDArray[np.int64], Callable[[], Any]]]()
    try:
        for chunk in chunks:
            pending.append((chunk, pool.submit(read, chunk).result))
            if len(pending) > READERS:
                yield pending.popleft()
        yield from pending
    finally:
        pool.shutdown(cancel_futures=True)


def _made(
    rows: _Rows, chunk: npt.NDArray[np.int64], read: Callable[[], Any]
) -> Iterator[tuple[npt.NDArray[np.int64], dict[str, Tensor] | UndecodableError]]:
    """What can be made of a chunk: all at once, or else one by one."""
    try:
        yield chunk, rows.make(read())
    except UndecodableError as error:
        if len(chunk) == 1:
            yield chunk, error
            return
        for row in chunk:
            alone = np.array([row])
            yield from _made(rows, alone, partial(rows.read, alone))


def _end(rows: _Rows) -> None:
    with suppress(FileNotFoundError):  # another run in the same folder was done sooner; both filled one file, with the same rows
        if len(left_out := np.flatnonzero(np.fromfile(rows.done, np.uint8) == 0)):
            np.save(rows.path.with_suffix(".left-out.npy"), left_out)
        rows.beside.rename(rows.path)
        rows.done.unlink()
