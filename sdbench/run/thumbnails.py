"""Thumbnails, and which images a record keeps as such: some that all models share, and the worst of this one, with the teacher's."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from sdbench.arrays import U8
from sdbench.image_files import png_bytes
from sdbench.records import MAX_THUMBNAILS, Scores, Value
from sdbench.records.names import judge_of

SIDE_PX = 256
SHARED = 32  # the first images of the suite


def choose_images(scores: Scores, values: Sequence[Value], teacher: Scores | None, *, with_teacher: bool) -> list[tuple[int, bool]]:
    """Choose at most 64 images: the first 32, then, in turns, the worst of each kind.

    The worst are those that worsen a metric of the set most, and those that lose most to the teacher's image by a judge of win rates;
    beside the latter, the teacher's image.

    Args:
        values: the metrics behind the scores, for their directions.
        teacher: the teacher's scores.
        with_teacher: whether the teacher's images are at hand.

    Returns:
        For each image its row, and whether it is the teacher's.
    """
    signs = {value.column: 1 if value.direction == "higher" else -1 for value in values if value.kind == "set"}
    by_set = [np.argsort(sign * scores.columns[name], kind="stable") for name, sign in signs.items() if name in scores.columns]
    judges = [judge for name in scores.columns if (judge := judge_of(name))]
    by_loss = [np.argsort(scores.columns[judge] - teacher.column_for(scores.keys, judge)) for judge in judges if teacher]
    own = [(row, False) for row in range(len(scores.keys))]
    chosen = own[:SHARED]
    for place in range(len(own)):
        chosen += [(int(order[place]), False) for order in by_set]
        for row in [int(order[place]) for order in by_loss]:
            chosen += [(row, False), *([(row, True)] if with_teacher and row >= SHARED else [])]
    return list(dict.fromkeys([*chosen, *own]))[:MAX_THUMBNAILS]


def thumbnail(pixels: U8) -> bytes:
    """A PNG file of an image, H x W x 3, of at most 256 px on its longer side."""
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE_PX, SIDE_PX))
    return png_bytes(np.asarray(image), optimize=True)
