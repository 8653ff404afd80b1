"""What a student trains on: captioned images, and batches of their latents and embeddings."""

import bisect
import hashlib
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from distillation.data.images import Images, open_images
from distillation.recipe_tables import Training
from sdbench.arrays import U8
from sdbench.scenes.networks import to_pixels
from sdbench.scenes.training.pool import Pool
from sdbench.training.diffusion import Batch
from sdbench.training.latents import LatentPool
from sdbench.training.row_files import MAX_UNDECODABLE

Made = TypeVar("Made")


class SquareImages:
    """Captioned images as SDXL trains on them: the shorter side scaled to `size_px`, then cropped to the central square.

    SDXL's micro-conditioning (arXiv 2307.01952, 2.2) tells the UNet about scaling and crop. Several sources are concatenated.

    Args:
        n: number of images that are needed; of more, the first ones are taken, with spares for those that cannot be decoded. Default: all.
    """

    def __init__(self, sources: Sequence[Images], size_px: int, n: int | None = None) -> None:
        self._sources, self.size_px = sources, size_px
        captions = [caption for source in sources for caption in source.captions]
        self.captions = captions if n is None else captions[: math.ceil(n / (1 - MAX_UNDECODABLE))]
        self._ends = list(itertools.accumulate(map(len, sources)))

    @property
    def digest(self) -> str:
        """The SHA-256 (hex) of the sources' digests, in order, and of the size; and of the number of images where some are left out.

        Reads all images of a local source, once.

        Raises:
            UserError: an image is missing or cannot be read.
        """
        whole = hashlib.sha256(" ".join([*(source.digest for source in self._sources), str(self.size_px)]).encode()).hexdigest()
        left_out = len(self.captions) < self._ends[-1]
        return hashlib.sha256(f"{whole} {len(self.captions)}".encode()).hexdigest() if left_out else whole

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Read images as SDXL trains on them; see `CaptionedImages.read`."""
        squares, time_ids = zip(*(crop_square(self._image(int(row)), self.size_px) for row in rows), strict=True)
        return to_pixels(np.stack(squares)), torch.tensor(time_ids, dtype=torch.float32)

    def _image(self, row: int) -> Image.Image:
        source = bisect.bisect_right(self._ends, row)
        return self._sources[source].image(row - self._ends[source] + len(self._sources[source]))


def crop_square(image: Image.Image, size_px: int) -> tuple[U8, tuple[int, ...]]:
    """The central square of the scaled image, size_px x size_px x 3 uint8, and its micro-conditioning (see `CaptionedImages.read`)."""
    width, height = image.size
    scale = size_px / min(width, height)
    scaled = image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    left, top = ((side - size_px) // 2 for side in scaled.size)
    square = scaled.crop((left, top, left + size_px, top + size_px))
    return np.asarray(square, np.uint8), (height, width, top, left, size_px, size_px)


def open_square_images(sources: Sequence[str], caption_column: str | None, size_px: int, n: int | None = None) -> SquareImages:
    """Open the sources that a command line names, each with `open_images`; see `SquareImages`.

    Raises:
        UserError: a source cannot be read.
    """
    return SquareImages([open_images(source, caption_column=caption_column) for source in sources], size_px, n)


def scene_pool(n: int, work: Path) -> Pool:
    """`n` rendered scenes, rendered under `work` unless they are there already."""
    return Pool(work / "pool", n)


def numbered_batches(pool: LatentPool, settings: Training, device: str, processes: int = 1) -> Callable[[int], Batch]:
    """A function that returns the batch of a number, the same in every run.

    While a GPU computes, a thread makes the batch that this process needs next: the one `processes` numbers later.
    """

    def make(number: int) -> Batch:
        return pool.batch(number, settings.batch, settings.seed, settings.drop)

    get = make if device == "cpu" else made_ahead(make, processes)
    return lambda number: get(number).to(device)


def made_ahead(make: Callable[[int], Made], stride: int) -> Callable[[int], Made]:
    """As `make`; a thread then calls it for the number `stride` later, which is likely asked for next and only then raises its error."""
    thread, ahead = ThreadPoolExecutor(1), dict[int, Future[Made]]()

    def get(number: int) -> Made:
        made = ahead.pop(number, None) or thread.submit(make, number)
        ahead.clear()
        ahead[number + stride] = thread.submit(make, number + stride)
        return made.result()

    return get
