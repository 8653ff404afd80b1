"""Image files: pixels are read upright and as they are, or an error names the file."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, ExifTags, Image
from synthetic_images import damaged_exif, deep_png, png

from sdbench.arrays import U8
from sdbench.errors import UserError
from sdbench.image_files import decode, read_images, upright_size

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


@pytest.mark.parametrize("image", [IMAGE, np.full((16, 16, 3), 90, np.uint8)], ids=["noise", "flat"])
def test_flipped_bit_is_an_error_or_has_no_effect(image: U8, tmp_path: Path) -> None:
    path, content, errors = tmp_path / "a.png", png(image), 0
    for bit in range(0, len(content) * 8, 3):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            read = read_images([path], "make it again")
        except UserError:
            errors += 1
        else:
            np.testing.assert_array_equal(read[0], image)  # the bit does not affect the image
    assert errors > len(content) * 8 / 3 * 0.85


@pytest.mark.parametrize("mode", ["RGBA", "L", "LA", "P", "1", "I;16", "RGB;16"])
def test_only_8_bit_rgb_is_accepted(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "other.png"
    if mode == "RGB;16":
        path.write_bytes(deep_png())
    elif mode == "I;16":
        Image.fromarray(np.arange(30, dtype=np.uint16).reshape(6, 5)).save(path)
    else:
        Image.fromarray(IMAGE).convert(mode).save(path)
    with pytest.raises(UserError, match=rf"other\.png has mode {mode}, expected 8-bit RGB"):
        read_images([path], "")


def test_images_for_which_pillow_would_run_a_program_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("ran Ghostscript"))
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    (tmp_path / "a.png").write_bytes(drawing)
    with pytest.raises(UserError, match=r"a\.png cannot be read"):
        read_images([tmp_path / "a.png"], "")
    with pytest.raises(OSError, match="cannot identify image file"):
        decode(io.BytesIO(drawing))  # as references decode their images


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_exif_orientation_is_applied(kind: str, tmp_path: Path) -> None:
    """Pillow itself gives the size of a TIFF once it is upright."""
    exif, file = Image.Exif(), tmp_path / f"rotated.{kind}"
    exif[ExifTags.Base.Orientation] = 6  # to be shown rotated clockwise by 90 degrees
    Image.fromarray(IMAGE).save(file, exif=exif)
    np.testing.assert_array_equal(read_images([file], "")[0], np.rot90(IMAGE, -1))
    with Image.open(file) as image:
        assert upright_size(image) == IMAGE.shape[:2]


def test_exif_that_pillow_cannot_write_turns_an_image_too(tmp_path: Path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "rotated.png", exif=damaged_exif())
    with Image.open(tmp_path / "rotated.png") as image:
        assert upright_size(image) == IMAGE.shape[:2]
    np.testing.assert_array_equal(read_images([tmp_path / "rotated.png"], "")[0], np.rot90(IMAGE, -1))


def test_any_error_of_a_decoder_names_the_image(tmp_path: Path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "cut.png", exif=b"Exif\0\0II*\0")  # `struct.error`
    with pytest.raises(UserError, match=r"cut\.png cannot be read \(.*\); replace it\."):
        read_images([tmp_path / "cut.png"], "replace it")
