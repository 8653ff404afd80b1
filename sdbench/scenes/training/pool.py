"""A pool of rendered scenes, rendered once and stored on disk, because rendering takes longer than a step of a small network."""

import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sdbench.arrays import U8
from sdbench.disk import create_array, load_array, locked
from sdbench.notes import progress
from sdbench.scenes.grammar import Scene, Split, scene_at
from sdbench.scenes.networks import to_pixels
from sdbench.scenes.render import SIZE_PX, render
from sdbench.training.loop import draw_rows


class Pool:
    """`n` rendered scenes of a split as one memory-mapped array; implements `sdbench.training.latents.CaptionedImages`."""

    size_px = SIZE_PX
    max_undecodable = 0.0

    def __init__(self, folder: Path, n: int, split: Split = "train", seed: int = 0) -> None:
        self.n, self.split, self.seed = n, split, seed
        self.path = folder / f"{split}-{seed}-{n}-{self._digest_of_first()}.npy"
        with locked(self.path.with_suffix(".lock")):  # several processes may share a folder
            if not self.path.exists():
                self._render()
        self.images: U8 = load_array(self.path, "r")

    @cached_property
    def scenes(self) -> list[Scene]:
        """The scene of each image."""
        return [scene_at(index, self.split, self.seed) for index in range(self.n)]

    @cached_property
    def captions(self) -> list[str]:
        """The caption of each image."""
        return [scene.caption for scene in self.scenes]

    @cached_property
    def digest(self) -> str:
        """The SHA-256 (hex) of pixels and captions."""
        sha256 = hashlib.sha256(self.images.data)
        sha256.update("\n".join(self.captions).encode())
        return sha256.hexdigest()

    @property
    def image_digests(self) -> list[bytes]:
        """The SHA-256 of each image's pixels."""
        return [hashlib.sha256(image.data).digest() for image in self.images]

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Read images; returns N x 3 x H x W float32 in -1..1, and SDXL's micro-conditioning, N x 6: neither scaled nor cropped."""
        return self.pixels(rows), torch.tensor([(SIZE_PX, SIZE_PX, 0, 0, SIZE_PX, SIZE_PX)], dtype=torch.float32).repeat(len(rows), 1)

    def rows(self, number: int, batch: int, seed: int = 0) -> npt.NDArray[np.int64]:
        """Draw which images are in batch number `number`; returns `batch` row numbers."""
        return draw_rows(number, self.n, batch, seed)

    def pixels(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """The images of these rows as networks take them, N x 3 x H x W, float32 in -1..1."""
        return to_pixels(self.images[rows])

    def _digest_of_first(self) -> str:
        """The digest of the first captions and images, so that those of another grammar or renderer are not taken for this version's."""
        scenes = [scene_at(index, self.split, self.seed) for index in range(8)]
        captions = "\n".join(scene.caption for scene in scenes)
        return hashlib.sha256(captions.encode() + render(scenes, range(len(scenes)), self.seed).tobytes()).hexdigest()[:8]

    def _render(self) -> None:
        temporary = self.path.with_suffix(".part")
        images = create_array(temporary, np.uint8, (self.n, SIZE_PX, SIZE_PX, 3))
        for start in progress(range(0, self.n, 256), desc=f"rendering {self.split} scenes"):
            rows = range(start, min(start + 256, self.n))
            images[start : rows.stop] = render([self.scenes[row] for row in rows], rows, self.seed)
        images.flush()
        temporary.replace(self.path)
