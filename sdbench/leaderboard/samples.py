"""Sheets of sample images: the thumbnails of a section's records, a row for each model, a column for each prompt and noise."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sdbench.arrays import U8
from sdbench.disk import write_bytes
from sdbench.errors import UserError
from sdbench.image_files import decode, naming, png_bytes, read_images
from sdbench.leaderboard import MAX_MODELS
from sdbench.leaderboard.standings import Row, Section, sections

COLUMNS, GAP_PX, MIN_WIDTH_PX = 8, 4, 96


def write(board: Sequence[Row], results: Path) -> list[Path]:
    """Write a sheet for each suite with images, from its newest section, `samples-<family>-<suite>.png`, and return their paths.

    Rows are in the order of the leaderboard, the first 24 of those with images, the teacher's in any case. A sheet whose pixels would not
    change is left alone: another version of Pillow or zlib would write other bytes.

    Raises:
        UserError: an image cannot be read, or a file cannot be written.
    """
    newest: dict[Path, tuple[Row, ...]] = {}
    for section in sorted(sections(board), key=lambda section: max(record.created for record in section.records)):
        rows = _shown_rows(section)
        if rows and _shared_names(rows):
            newest[results / f"samples-{section.family}-{rows[0].record.suite.name}.png"] = rows
    for path, rows in newest.items():
        if not _holds(path, sheet := draw_sheet(rows)):
            # optimize=True takes nine times as long, a minute for 200 models, to save 5 %
            write_bytes(path, png_bytes(np.asarray(sheet)))
    return [*newest]


def _holds(path: Path, sheet: Image.Image) -> bool:
    """Whether a file holds these pixels; it may be missing or damaged."""
    try:
        with naming(path, "it is drawn again"):
            pixels, mode = decode(path)
    except UserError:
        return False
    return mode == sheet.mode and np.array_equal(pixels, np.asarray(sheet))


def _shown_rows(section: Section) -> tuple[Row, ...]:
    """The first rows with images; in place of the last of them the teacher's, if that would be left out."""
    rows = tuple(row for row in section.rows if row.thumbnails)
    first, rest = rows[:MAX_MODELS], rows[MAX_MODELS:]
    return (*first[:-1], section.teacher) if section.teacher in rest else first


def draw_sheet(rows: Sequence[Row]) -> Image.Image:
    """Draw the thumbnails that all rows share; small ones are enlarged by a whole factor, so that their pixels stay as they are.

    Raises:
        UserError: an image cannot be read.
    """
    names = _shared_names(rows)[:COLUMNS]
    images = [_read_enlarged([row.thumbnails[name] for name in names]) for row in rows]
    height, width = (max(line.shape[axis] for line in images) + GAP_PX for axis in (1, 2))
    page = Image.new("RGB", (len(names) * width - GAP_PX, len(rows) * height - GAP_PX), "white")
    for y, line in enumerate(images):
        for x, image in enumerate(line):
            page.paste(Image.fromarray(image), (x * width, y * height))
    return page


def _shared_names(rows: Sequence[Row]) -> list[str]:
    return sorted(set.intersection(*(set(row.thumbnails) for row in rows)))


def _read_enlarged(paths: Sequence[Path]) -> U8:
    images = read_images(paths, "restore it, or delete it: the sheet works without it")
    factor = max(1, -(-MIN_WIDTH_PX // images.shape[2]))
    return images.repeat(factor, 1).repeat(factor, 2)
