"""What a student trains on: captioned pictures, and the batches that are made of their latents and embeddings."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from distillation.pictures import Pictures
from distillation.recipe_tables import Training
from sdbench.latents import Batch, LatentPool
from sdbench.scenes.training.pool import Pool, to_pixels


class Squares:
    """Captioned pictures as SDXL trains on them: the shorter side scaled to `size_px`, the square in the middle cut out.

    What was scaled and cut is told to the UNet, as SDXL's micro-conditioning (arXiv 2307.01952, 2.2).
    """

    def __init__(self, pictures: Pictures, size_px: int) -> None:
        self._pictures, self.size_px, self.captions = pictures, size_px, pictures.captions

    @property
    def digest(self) -> str:
        """SHA-256 of captions, pictures and size; all pictures of a local source are read for it, once."""
        return hashlib.sha256(f"{self._pictures.digest} {self.size_px}".encode()).hexdigest()

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Pictures, N x 3 x H x W in -1..1, and original height and width, crop top and left, target height and width, N x 6.

        Raises:
            UndecodableError: a picture cannot be decoded.
        """
        squares, time_ids = zip(*(square(self._pictures.image(int(row)), self.size_px) for row in rows), strict=True)
        return to_pixels(np.stack(squares)), torch.tensor(time_ids, dtype=torch.float32)


def square(picture: Image.Image, size_px: int) -> tuple[npt.NDArray[np.uint8], tuple[int, ...]]:
    """The scaled picture's middle, size_px x size_px x 3, and its micro-conditioning."""
    width, height = picture.size
    scale = size_px / min(width, height)
    scaled = picture.resize((max(size_px, round(width * scale)), max(size_px, round(height * scale))), Image.Resampling.LANCZOS)
    left, top = ((side - size_px) // 2 for side in scaled.size)
    cut = scaled.crop((left, top, left + size_px, top + size_px))
    return np.asarray(cut, np.uint8), (height, width, top, left, size_px, size_px)


def scenes(n: int, work: Path) -> Pool:
    """Rendered scenes, drawn under `work` where they are not yet."""
    return Pool(work / "pool", n)


def batches(pool: LatentPool, settings: Training, device: str) -> Callable[[int], Batch]:
    """Number of a batch => the batch, the same in every run."""
    return lambda number: pool.batch(number, settings.batch, settings.seed, settings.drop, device)
