"""What a student trains on: captioned pictures, and the batches that are made of their latents and embeddings."""

import bisect
import hashlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from distillation.data.pictures import Pictures, open_pictures
from distillation.recipe_tables import Training
from sdbench.scenes.networks import to_pixels
from sdbench.scenes.training.pool import Pool
from sdbench.training.latents import Batch, LatentPool


class Squares:
    """Captioned pictures as SDXL trains on them: the shorter side scaled to `size_px`, the square in the middle cut out.

    What was scaled and cut is told to the UNet, as SDXL's micro-conditioning (arXiv 2307.01952, 2.2). Of several sources, the
    rows of each follow those of the one before.
    """

    def __init__(self, sources: Sequence[Pictures], size_px: int) -> None:
        self._sources, self.size_px = sources, size_px
        self.captions = [caption for source in sources for caption in source.captions]
        self._ends = list(itertools.accumulate(map(len, sources)))

    @property
    def digest(self) -> str:
        """SHA-256 of the sources' digests in their order and of the size; all pictures of a local source are read for it, once."""
        return hashlib.sha256(" ".join([*(source.digest for source in self._sources), str(self.size_px)]).encode()).hexdigest()

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Pictures, N x 3 x H x W in -1..1, and original height and width, crop top and left, target height and width, N x 6.

        Raises:
            UndecodableError: a picture cannot be decoded.
        """
        squares, time_ids = zip(*(square(self._image(int(row)), self.size_px) for row in rows), strict=True)
        return to_pixels(np.stack(squares)), torch.tensor(time_ids, dtype=torch.float32)

    def _image(self, row: int) -> Image.Image:
        source = bisect.bisect_right(self._ends, row)
        return self._sources[source].image(row - self._ends[source] + len(self._sources[source]))


def square(picture: Image.Image, size_px: int) -> tuple[npt.NDArray[np.uint8], tuple[int, ...]]:
    """The scaled picture's middle, size_px x size_px x 3, and its micro-conditioning."""
    width, height = picture.size
    scale = size_px / min(width, height)
    scaled = picture.resize((max(size_px, round(width * scale)), max(size_px, round(height * scale))), Image.Resampling.LANCZOS)
    left, top = ((side - size_px) // 2 for side in scaled.size)
    cut = scaled.crop((left, top, left + size_px, top + size_px))
    return np.asarray(cut, np.uint8), (height, width, top, left, size_px, size_px)


def open_squares(sources: Sequence[str], caption_column: str | None, size_px: int) -> Squares:
    """Squares of the sources that a command line names, each as `open_pictures` reads it.

    Raises:
        UserError: a source cannot be read.
    """
    return Squares([open_pictures(source, caption_column=caption_column) for source in sources], size_px)


def scenes(n: int, work: Path) -> Pool:
    """Rendered scenes, drawn under `work` where they are not yet."""
    return Pool(work / "pool", n)


def passes(n_pictures: int, steps: int, settings: Training) -> float:
    """How often a run sees each of its pictures, on average: they are drawn with replacement."""
    return steps * settings.batch * settings.accumulation / n_pictures


def exposure(n_pictures: int, steps: int, settings: Training) -> str:
    """The same in words."""
    return f"{n_pictures:,} pictures, each seen {passes(n_pictures, steps, settings):,.1f} times on average"


def batches(pool: LatentPool, settings: Training, device: str) -> Callable[[int], Batch]:
    """Number of a batch => the batch, the same in every run."""
    return lambda number: pool.batch(number, settings.batch, settings.seed, settings.drop, device)
