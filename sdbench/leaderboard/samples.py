"""A sheet of sample pictures: the thumbnails of the records of a section, a row each, the same prompts in each column."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from sdbench.disk import write_bytes
from sdbench.leaderboard.standings import Row, sections

COLUMNS, GAP_PX, LEAST_PX = 8, 4, 96


def write(board: Sequence[Row], results: Path) -> list[Path]:
    """One sheet for each section that has pictures, `samples-<family>-<suite>.png` => their paths, rows as in the leaderboard."""
    made = []
    for section in sections(board):
        rows = [row for row in section.rows if any((row.folder / "images").glob("*.png"))]
        if rows:
            path = results / f"samples-{section.family}-{rows[0].record.suite.name}.png"
            buffer = io.BytesIO()
            sheet(rows).save(buffer, "PNG", optimize=True)
            write_bytes(path, buffer.getvalue())
            made.append(path)
    return made


def sheet(rows: Sequence[Row]) -> Image.Image:
    """Rows of thumbnails, small ones enlarged by whole factors so that their pixels stay visible as they are."""
    names = sorted(path.name for path in (rows[0].folder / "images").glob("*.png"))[:COLUMNS]
    pictures = [[_read(row.folder / "images" / name) for name in names] for row in rows]
    width = max(picture.width for line in pictures for picture in line) + GAP_PX
    height = max(picture.height for line in pictures for picture in line) + GAP_PX
    page = Image.new("RGB", (len(names) * width - GAP_PX, len(rows) * height - GAP_PX), "white")
    for y, line in enumerate(pictures):
        for x, picture in enumerate(line):
            page.paste(picture, (x * width, y * height))
    return page


def _read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        factor = max(1, -(-LEAST_PX // image.width))
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
