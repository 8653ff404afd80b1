"""Thumbnails, and which images a record keeps as such: some that all models share, and the worst of this one."""

import io
import itertools
from collections.abc import Sequence

import numpy as np
from PIL import Image

from sdbench.arrays import U8
from sdbench.records import MAX_THUMBNAILS, Scores, Value

SIDE_PX = 256
SHARED = 32  # the first images of the suite


def choose_rows(scores: Scores, values: Sequence[Value], teacher: Scores | None) -> list[int]:
    """Rows of at most 64 images: the first 32, then, in turns, the worst of each kind.

    The worst are those that worsen a metric of the set most, and those that lose most to the teacher's image by a judge of win
    rates.

    Args:
        values: the metrics behind the scores, for their directions.
    """
    signs = {value.column: 1 if value.direction == "higher" else -1 for value in values if value.kind == "set"}
    ranked = [np.argsort(sign * scores.columns[name], kind="stable") for name, sign in signs.items() if name in scores.columns]
    judges = [name.removeprefix("win_rate.") for name in scores.columns if name.startswith("win_rate.")]
    ranked += [np.argsort(scores.columns[judge] - teacher.column_for(scores.keys, judge)) for judge in judges if teacher]
    all_rows = range(len(scores.keys))
    by_priority = itertools.chain(all_rows[:SHARED], itertools.chain.from_iterable(zip(*ranked, strict=True)), all_rows)
    return list(dict.fromkeys(map(int, by_priority)))[:MAX_THUMBNAILS]


def thumbnail(pixels: U8) -> bytes:
    """A PNG file of an image, H x W x 3, of at most 256 px on its longer side."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE_PX, SIDE_PX))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
