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

from distillation.data.images import Images, open_sources
from distillation.recipe_tables import Training
from sdbench.arrays import U8
from sdbench.assets.sources import list_rows
from sdbench.errors import UserError
from sdbench.scenes.networks import to_pixels
from sdbench.scenes.training.pool import Pool
from sdbench.training.diffusion import Batch
from sdbench.training.latents import LatentPool

Made = TypeVar("Made")


class SquareImages:
    """Captioned images as SDXL trains on them: the shorter side scaled to `size_px`, then cropped to the central square.

    SDXL's micro-conditioning (arXiv 2307.01952, 2.2) tells the UNet about scaling and crop. Several sources are concatenated.

    Args:
        n: number of images that are needed; of more, the first ones are taken, with spares for those that cannot be decoded. Default: all.
        max_undecodable: share of the images that may be left out because they or their captions are missing or damaged; less than 1.

    Raises:
        UserError: more captions are missing.
    """

    def __init__(self, sources: Sequence[Images], size_px: int, n: int | None = None, max_undecodable: float = 0.0) -> None:
        self._sources, self.size_px, self.max_undecodable = sources, size_px, max_undecodable
        captions = [caption for source in sources for caption in source.captions]
        self.captions = captions if n is None else captions[: math.ceil(n / (1 - max_undecodable))]
        self._ends = list(itertools.accumulate(map(len, sources)))
        self._check_captions()

    def _check_captions(self) -> None:
        """Check before hours of encoding what is known without reading an image."""
        missing = [self._locate(row) for row, caption in enumerate(self.captions) if not caption.strip()]
        if len(missing) > self.max_undecodable * len(self.captions):
            by_source = itertools.groupby(missing, lambda place: place[0].name)
            where = "; ".join(f"{list_rows([row for _, row in places])} of {name}" for name, places in by_source)
            raise UserError(
                f"no caption in {where}. At most {100 * self.max_undecodable:.3g} % of {len(self.captions):,} images may be left out. "
                "Write these captions, remove the rows, or raise --max-undecodable"
            )

    @property
    def digest(self) -> str:
        """The SHA-256 (hex) of the sources' digests, in order, and of the size; and of the number of images where some are left out.

        Reads all images of a local source, once.

        Raises:
            UserError: an image is there and cannot be read.
        """
        whole = hashlib.sha256(" ".join([*(source.digest for source in self._sources), str(self.size_px)]).encode()).hexdigest()
        left_out = len(self.captions) < self._ends[-1]
        return hashlib.sha256(f"{whole} {len(self.captions)}".encode()).hexdigest() if left_out else whole

    @property
    def image_digests(self) -> list[bytes]:
        """See `CaptionedImages.image_digests`; the size is in it, since it decides the square."""
        digests = itertools.chain.from_iterable(source.image_digests for source in self._sources)
        return [each + f" {self.size_px}".encode() for each in itertools.islice(digests, len(self.captions))]

    @property
    def copied_bytes(self) -> int:
        """Disk that copies of the sources take in the cache of `datasets`; of image folders, only the tables of captions are copied."""
        files = {cached["filename"] for source in self._sources for cached in source.rows.cache_files}
        return sum(Path(file).stat().st_size for file in files)

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Read images as SDXL trains on them; see `CaptionedImages.read`."""
        images = (source.image(own_row) for source, own_row in map(self._locate, rows.tolist()))
        squares, time_ids = zip(*(crop_square(image, self.size_px) for image in images), strict=True)
        return to_pixels(np.stack(squares)), torch.tensor(time_ids, dtype=torch.float32)

    def _locate(self, row: int) -> tuple[Images, int]:
        """The source of an image, and its row there."""
        number = bisect.bisect_right(self._ends, row)
        source = self._sources[number]
        return source, row - self._ends[number] + len(source)


def crop_square(image: Image.Image, size_px: int) -> tuple[U8, tuple[int, ...]]:
    """The central square of the scaled image, size_px x size_px x 3 uint8, and its micro-conditioning (see `CaptionedImages.read`)."""
    width, height = image.size
    scale = size_px / min(width, height)
    scaled = image.resize((round(width * scale), round(height * scale)), Image.Resampling.LANCZOS)
    left, top = ((side - size_px) // 2 for side in scaled.size)
    square = scaled.crop((left, top, left + size_px, top + size_px))
    return np.asarray(square, np.uint8), (height, width, top, left, size_px, size_px)


def open_square_images(
    sources: Sequence[str], caption_column: str | None, size_px: int, n: int | None = None, max_undecodable: float = 0.0
) -> SquareImages:
    """Open the sources that a command line names, with `open_sources`; see `SquareImages`.

    Raises:
        UserError: a source cannot be read, or too many captions are missing.
    """
    return SquareImages(open_sources(sources, caption_column), size_px, n, max_undecodable)


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
