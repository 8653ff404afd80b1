"""The sheet of sample images: each column is one prompt, even if single records lack images."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from boards import png
from factories import GPU, make_record, make_scores
from PIL import Image

from sdbench import records
from sdbench.errors import UserError
from sdbench.leaderboard import MAX_MODELS, samples, standings
from sdbench.records import Value

PROMPTS = tuple(f"p{number:04d}" for number in range(10))


def write_record(results: Path, name: str, shades: Sequence[int], **changes: Any) -> Path:
    """Write a record with an image of a single shade for each of the prompts; returns its folder."""
    images = {f"{prompt}.png": png((shade, shade, shade), 32) for prompt, shade in zip(PROMPTS, shades, strict=False)}
    return records.write(make_record(name, **changes), make_scores(), images, results)


def write_sheet(results: Path) -> np.ndarray:
    """Write the only sheet; returns the shade in the middle of each of its images."""
    (path,) = samples.write(standings.read_rows(results), results)
    assert path == results / "samples-scenes-quality.png"
    side = samples.MIN_WIDTH_PX + samples.GAP_PX  # 32 px are enlarged three times
    with Image.open(path) as image:
        assert [length % side for length in image.size] == [samples.MIN_WIDTH_PX, samples.MIN_WIDTH_PX]
        return np.asarray(image)[side // 2 :: side, side // 2 :: side, 0]


def test_rows_are_models_and_columns_are_prompts_that_all_of_them_have(tmp_path: Path) -> None:
    write_record(tmp_path, "scenes-teacher", range(10))
    student = write_record(tmp_path, "scenes-vega", range(100, 110))
    write_record(tmp_path, "scenes-without", ())
    assert write_sheet(tmp_path).tolist() == [[*range(8)], [*range(100, 108)]]
    (student / "images" / "p0001.png").unlink()
    shared = [0, *range(2, 9)]
    assert write_sheet(tmp_path).tolist() == [shared, [100 + shade for shade in shared]]
    (student / "images" / "p0002.png").write_bytes(png((0, 0, 0), 32)[:60])
    with pytest.raises(UserError, match=r"p0002\.png cannot be read .* delete it: the sheet works without it"):
        write_sheet(tmp_path)
    for path in (student / "images").iterdir():
        path.rename(path.with_stem(f"other-{path.stem}"))
    assert samples.write(standings.read_rows(tmp_path), tmp_path) == []


def test_sheet_is_written_again_only_where_its_pixels_change(tmp_path: Path) -> None:
    record = write_record(tmp_path, "scenes-teacher", range(10))
    write_sheet(tmp_path)
    sheet = tmp_path / "samples-scenes-quality.png"
    with Image.open(sheet) as image:
        image.save(sheet, compress_level=1)  # as another zlib may write it
    content = sheet.read_bytes()
    assert write_sheet(tmp_path).tolist() == [[*range(8)]]
    assert sheet.read_bytes() == content
    sheet.write_bytes(content[:200])
    assert write_sheet(tmp_path).tolist() == [[*range(8)]]
    (record / "images" / "p0000.png").write_bytes(png((99, 99, 99), 32))
    assert write_sheet(tmp_path).tolist() == [[99, *range(1, 8)]]


def test_sheet_of_a_suite_on_several_machines_shows_the_newest_section(tmp_path: Path) -> None:
    write_record(tmp_path, "scenes-teacher", [1], created=datetime(2026, 1, 1, tzinfo=UTC))
    write_record(tmp_path, "scenes-teacher", [2], created=datetime(2026, 1, 2, tzinfo=UTC), machine=GPU)
    assert write_sheet(tmp_path).tolist() == [[2]]
    write_record(tmp_path, "scenes-vega", [3], created=datetime(2026, 1, 3, tzinfo=UTC))
    assert write_sheet(tmp_path).tolist() == [[1], [3]]


def test_sheet_has_the_first_rows_and_the_teachers_among_them(tmp_path: Path) -> None:
    write_record(tmp_path, "scenes-teacher", [200])
    for number in range(MAX_MODELS - 1):
        write_record(tmp_path, f"a{number:03d}", [number])
    assert write_sheet(tmp_path)[:, 0].tolist() == [200, *range(MAX_MODELS - 1)]
    larger = Value(name="parameters.unet", kind="count", direction="lower", unit="parameters", value=9e6)
    for number in range(MAX_MODELS):
        write_record(tmp_path, f"large{number:03d}", [100 + number], values=(larger,))
    assert write_sheet(tmp_path)[:, 0].tolist() == [*range(100, 99 + MAX_MODELS), 200]
