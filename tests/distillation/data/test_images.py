"""Every layout gives the same images, captions and digest; errors name row and file."""

import hashlib
import io
import itertools
import json
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets.packaged_modules.parquet.parquet import Parquet
from PIL import EpsImagePlugin, ExifTags, Image
from synthetic_images import damaged_exif, png

from distillation.data import images as images_module
from distillation.data.images import open_images, open_sources
from sdbench.assets.sources import list_rows, read_rows
from sdbench.disk import size_text
from sdbench.errors import UndecodableError, UserError

pytestmark = pytest.mark.usefixtures("datasets_cache")
CAPTIONS = ["a red square", "Übung, mit Komma", "third", "last"]
ARRAYS = [np.random.default_rng(row).integers(0, 256, (4 + row, 7, 3), dtype=np.uint8) for row in range(4)]


FILES = [png(array) for array in ARRAYS]


def image_folder(folder: Path, rows: list[dict[str, Any]] | None = None, **files: bytes) -> Path:
    (folder / "in").mkdir(parents=True)
    for row, content in enumerate(FILES):
        (folder / "in" / f"{row}.png").write_bytes(content)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    rows = rows or [{"file_name": f"in/{row}.png", "caption": caption} for row, caption in enumerate(CAPTIONS)]
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def table(column: str = "text", captions: list[Any] = CAPTIONS, files: list[Any] = FILES) -> datasets.Dataset:
    features = datasets.Features({"image": datasets.Image(), column: datasets.Value("string")})
    return datasets.Dataset.from_dict({"image": files, column: captions}, features=features)


def parquet_folder(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for shard in range(2):
        table().select(range(2 * shard, 2 * shard + 2)).to_parquet(folder / f"train-0000{shard}-of-00002.parquet")
    table().to_parquet(folder / "test-00000-of-00001.parquet")
    return folder


def tar(path: Path, names: Sequence[str] = ("000.png", "001.png", "002.png", "003.png")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for image, caption, content in zip(names, itertools.cycle(CAPTIONS), itertools.cycle(FILES), strict=False):
            for name, data in ((image, content), (f"{image.partition('.')[0]}.txt", caption.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return path


def text_folder(folder: Path) -> Path:
    for row, (caption, content) in enumerate(zip(CAPTIONS, FILES, strict=True)):
        path = folder / f"{row // 2}_name" / f"{row}.PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")
    return folder


def bytes_table(path: Path, **columns: pa.DataType) -> Path:
    """Parquet as other programs than `datasets` write it, without a word on which column holds images."""
    ((name, kind),) = columns.items()
    cells = [{"bytes": content, "path": None} for content in FILES] if pa.types.is_struct(kind) else FILES
    pq.write_table(pa.table({name: pa.array(cells, kind), "caption": CAPTIONS}), path)
    return path


def closed_form(captions: list[str], files: list[bytes]) -> str:
    parts = (hashlib.sha256(part).digest() for caption, file in zip(captions, files, strict=True) for part in (caption.encode(), file))
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_every_layout_gives_the_same_images(tmp_path: Path) -> None:
    with_csv = image_folder(tmp_path / "csv [1]")
    (with_csv / "metadata.jsonl").unlink()
    lines = ["file_name,prompt", *(f'in/{row}.png,"{caption}"' for row, caption in enumerate(CAPTIONS))]
    (with_csv / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shards, archive = parquet_folder(tmp_path / "shards"), tar(tmp_path / "tars" / "0.tar")
    folders = image_folder(tmp_path / "plain"), with_csv, text_folder(tmp_path / "texts [1]"), shards
    struct = pa.struct({"bytes": pa.binary(), "path": pa.null()})
    tables = [bytes_table(tmp_path / f"{row}.parquet", image=kind) for row, kind in enumerate((pa.binary(), pa.large_binary(), struct))]
    for what in (*folders, shards / "train*.parquet", archive, archive.parent, *tables):
        images = open_images(str(what))
        assert images.name == what.name
        assert images.captions == CAPTIONS
        assert len(images) == 4
        assert images.digest == closed_form(CAPTIONS, FILES)
        for row, array in enumerate(ARRAYS):
            np.testing.assert_array_equal(np.asarray(images.image(row)), array)
            assert images.size(row) == (7, 4 + row)


def test_many_images_are_read_by_threads_and_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions, files, together = CAPTIONS * 3, FILES * 3, threading.Barrier(2, timeout=60)
    table(captions=captions, files=files).to_parquet(tmp_path / "many.parquet")

    def meet(image: dict[str, Any]) -> io.BytesIO:
        together.wait()
        return io.BytesIO(image["bytes"])

    monkeypatch.setattr(images_module, "open_image", meet)
    monkeypatch.setattr(images_module, "READ_AT_ONCE", 4)
    assert open_images(str(tmp_path / "many.parquet")).digest == closed_form(captions, files)


def test_a_folders_card_code_and_other_files_are_ignored(tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path / "shards [1]*")
    table(captions=["other"] * 4).to_parquet(tmp_path / "other.parquet")
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files: {tmp_path / 'other.parquet'}\n---\n", encoding="utf-8"
    )
    (folder / "shards.py").write_text("raise SystemExit('it ran')", encoding="utf-8")
    (folder / "train_log.jsonl").write_text("{}", encoding="utf-8")
    assert open_images(str(folder)).captions == CAPTIONS


def test_files_in_a_hidden_folder_are_read_where_there_are_no_others(tmp_path: Path) -> None:
    parquet_folder(tmp_path / "set" / ".data")
    (tmp_path / "set" / ".data" / "test-00000-of-00001.parquet").unlink()
    assert open_images(str(tmp_path / "set")).captions == CAPTIONS


@pytest.mark.parametrize("left", [0, 1000, 16 * tarfile.BLOCKSIZE])  # bytes; the last: all members
def test_a_tar_that_was_cut_off_is_refused_instead_of_read_up_to_there(left: int, tmp_path: Path) -> None:
    whole, cut = tar(tmp_path / "set" / "0.tar"), tmp_path / "set" / "1.tar"
    cut.write_bytes(whole.read_bytes()[:left])
    for what in (whole.parent, cut):
        with pytest.raises(UserError, match=r"1\.tar does not end as a tar does.*Copy or fetch it again, or leave it out"):
            open_images(str(what))


def test_tables_beside_tars_are_ignored(tmp_path: Path) -> None:
    archive = tar(tmp_path / "img2dataset" / "00000.tar")
    datasets.Dataset.from_dict({"url": ["a"], "caption": ["b"], "status": ["success"]}).to_parquet(archive.with_suffix(".parquet"))
    archive.with_name("00000_stats.json").write_text("{}", encoding="utf-8")
    assert open_images(str(archive.parent)).captions == CAPTIONS


def test_tables_beside_captioned_files_are_ignored(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "img2dataset")
    datasets.Dataset.from_dict({"url": ["a"], "caption": ["b"], "status": ["success"]}).to_parquet(folder / "00000.parquet")
    assert open_images(str(folder)).captions == CAPTIONS


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_a_captioned_preview_beside_tables_or_tars_and_hidden_files_are_ignored(kind: str, tmp_path: Path) -> None:
    folder = parquet_folder(tmp_path / "set") if kind == "parquet" else tar(tmp_path / "set" / "0.tar").parent
    (folder / "preview.png").write_bytes(FILES[0])
    (folder / "preview.txt").write_text("a preview", encoding="utf-8")
    assert open_images(str(folder)).captions == CAPTIONS
    texts = text_folder(tmp_path / "texts")
    for hidden in (texts / "._0.png", texts / ".thumbnails" / "0.png"):
        hidden.parent.mkdir(exist_ok=True)
        hidden.write_bytes(b"not an image")
    assert open_images(str(texts)).captions == CAPTIONS


def test_a_caption_has_no_byte_order_mark_and_all_images_are_of_one_split(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "texts")
    (folder / "0_name" / "0.txt").write_text(CAPTIONS[0], encoding="utf-8-sig")
    assert open_images(str(folder)).captions == CAPTIONS
    with pytest.raises(UserError, match="texts has no split 'test': images with a text file beside each are all of split 'train'"):
        read_rows(str(folder), "test")


@pytest.mark.parametrize("make", [image_folder, text_folder])
def test_the_current_folder_is_called_by_its_name(make: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make(tmp_path / "mine"))
    assert open_images(".").name == "mine"


def test_text_files_beside_a_table_of_captions_are_ignored(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "both")
    (folder / "in" / "0.txt").write_text("another caption", encoding="utf-8")
    assert open_images(str(folder)).captions == CAPTIONS


def test_of_bytes_and_declared_images_the_images_are_read(tmp_path: Path) -> None:
    table().add_column("thumbnail", [b"not an image"] * 4).to_parquet(tmp_path / "both.parquet")
    np.testing.assert_array_equal(np.asarray(open_images(str(tmp_path / "both.parquet")).image(0)), ARRAYS[0])


def test_a_caption_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    folder = text_folder(tmp_path / "texts")
    caption = folder / "1_name" / "2.txt"
    caption.write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"1_name/2\.txt is not UTF-8"):
        open_images(str(folder))


def test_the_digest_depends_on_content_not_on_the_path(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "one")
    first = open_images(str(folder)).digest
    shutil.move(folder, tmp_path / "other")
    assert open_images(str(tmp_path / "other")).digest == first
    (tmp_path / "other" / "in" / "2.png").write_bytes(FILES[1])
    assert open_images(str(tmp_path / "other")).digest == closed_form(CAPTIONS, [FILES[0], FILES[1], FILES[1], FILES[3]])
    rows = [{"file_name": f"in/{row}.png", "caption": CAPTIONS[row]} for row in (1, 0, 2, 3)]
    assert open_images(str(image_folder(tmp_path / "turned", rows))).digest != first


@pytest.mark.parametrize("make", [image_folder, parquet_folder])
def test_a_digest_is_cached_until_a_file_changes(make: Callable[[Path], Path], tmp_path: Path, digest_cache: Path) -> None:
    source = make(tmp_path / "source")
    first = open_images(str(source)).digest
    (noted,) = digest_cache.iterdir()
    assert noted.read_bytes() == b"".join(hashlib.sha256(file).digest() for file in FILES)
    others = FILES[::-1]
    noted.write_bytes(b"".join(hashlib.sha256(file).digest() for file in others))
    assert open_images(str(source)).digest == closed_form(CAPTIONS, others), "read from the note"
    last = [path for path in sorted(source.rglob("*")) if path.suffix in {".png", ".parquet"}][-1]
    os.utime(last, ns=(1, 1))
    assert open_images(str(source)).digest == first


def test_images_become_upright_rgb(tmp_path: Path) -> None:
    half = np.array([[[255, 0, 0, 128], [0, 0, 255, 255], [9, 9, 9, 0]]], np.uint8)
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 255, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6  # shown turned clockwise by 90 degrees
    tiff = io.BytesIO()
    Image.new("CMYK", (1, 1), (0, 255, 255, 0)).save(tiff, "TIFF")
    cases = {
        "half.png": (png(half), [[[255, 127, 127], [0, 0, 255], [255, 255, 255]]]),
        "gray-alpha.png": (png(half[..., [0, 3]]), [[[255] * 3, [0] * 3, [255] * 3]]),
        "palette.png": (png(palette, transparency=0), [[[255, 255, 255], [10, 20, 30]]]),
        "gray.png": (png(np.array([[3, 200]], np.uint8)), [[[3] * 3, [200] * 3]]),
        "gray-16.png": (png(np.array([[0x8040, 0xFFFF, 0x00FF]], np.uint16)), [[[0x80] * 3, [0xFF] * 3, [0] * 3]]),
        "16.pgm": (b"P5 2 1 65535\n\x80\x40\x00\xff", [[[0x80] * 3, [0] * 3]]),
        "bits.png": (png(Image.new("1", (1, 1), 1)), [[[255] * 3]]),
        "cmyk.tif": (tiff.getvalue(), [[[255, 0, 0]]]),
        "turned.png": (png(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), exif=turned), [[[1, 2, 3]], [[4, 5, 6]]]),
        "damaged.png": (png(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8), exif=damaged_exif()), [[[1, 2, 3]], [[4, 5, 6]]]),
    }
    files = {name: content for name, (content, _) in cases.items()}
    rows = [{"file_name": name, "text": name} for name in files]
    images = open_images(str(image_folder(tmp_path / "modes", rows, **files)))
    for row, (name, (_, expected)) in enumerate(cases.items()):
        image = images.image(row)
        assert image.mode == "RGB", name
        np.testing.assert_array_equal(np.asarray(image), expected, err_msg=name)
        assert images.size(row) == image.size, name


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_is_that_of_the_upright_image(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    images = open_images(
        str(image_folder(tmp_path / "one", [{"file_name": "in/0.png", "text": "a"}], **{"in/0.png": png(ARRAYS[0], exif=exif)}))
    )
    assert images.size(0) == images.image(0).size


def cached(cache: Path, tmp_path: Path, commit: str) -> None:
    """Fill the cache as if a Hub dataset had been opened: `datasets` names the folder by its commit."""
    table().to_parquet(tmp_path / f"{commit}.parquet")
    builder = Parquet(dataset_name="Painted-Cats", hash=commit, data_files={"train": [str(tmp_path / f"{commit}.parquet")]})
    builder.download_and_prepare()
    there = cache / "owner___painted-cats" / "default" / "0.0.0"
    there.mkdir(parents=True, exist_ok=True)
    shutil.move(builder.cache_dir, there / commit)


def test_a_hub_dataset_is_opened_from_the_cache_and_identified_by_its_commit(tmp_path: Path, datasets_cache: Path) -> None:
    digests, of_rows = [], set[bytes]()
    for commit in ("a" * 40, "b" * 40):
        cached(datasets_cache, tmp_path, commit)
        images = open_images("owner/Painted-Cats")
        assert images.captions == CAPTIONS
        np.testing.assert_array_equal(np.asarray(images.image(3)), ARRAYS[3])
        digests.append(images.digest)
        assert replace(images, version=images.version and images.version.replace("text", "title")).image_digests == images.image_digests
        of_rows |= {*images.image_digests}
    assert digests == [hashlib.sha256(f"owner/Painted-Cats/default@{letter * 40}\0text".encode()).hexdigest() for letter in "ab"]
    assert len(of_rows) == 2 * len(CAPTIONS)


def test_a_missing_hub_dataset_is_an_error_with_a_way_out() -> None:
    with pytest.raises(UserError, match=r"cannot read 'owner/dogs' as a dataset \(.*Where there is a network, open it once"):
        open_images("owner/dogs")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"file_name": "in/0.png", "text": 3}], r"column 'text' holds .*int64.*; expected text"),
        (
            [{"file_name": "in/0.png", "title": "a"}],
            r"none of its columns \(image, title\) is called prompt or caption or text or clean_prompts or txt; .*Name it with",
        ),
        ([{"file_name": "in/0.png", "text": "a", "prompt": "b"}], "text and prompt of its columns"),
        ([{"file_name": "../0.png", "text": "a"}], r"\.\./0\.png"),
        ([{"text": "a"}], "`file_name`"),
    ],
)  # fmt: skip
def test_an_invalid_row_is_named(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        _ = open_images(str(image_folder(tmp_path / "images", rows))).digest


def test_a_caption_column_can_be_named(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "both", [{"file_name": "in/0.png", "text": "a", "prompt": "b"}])
    assert open_images(str(folder), caption_column="prompt").captions == ["b"]
    with pytest.raises(UserError, match="unknown column of both 'promt'; did you mean 'prompt'"):
        open_images(str(folder), caption_column="promt")


def test_of_several_sources_a_named_caption_column_is_that_of_those_that_have_it(tmp_path: Path) -> None:
    both, other = ({"file_name": "in/0.png", "text": "a", "prompt": "b"}, {"file_name": "in/0.png", "caption": "c"})
    sources = [str(image_folder(tmp_path / str(number), [row])) for number, row in enumerate((both, other, both))]
    assert [images.captions for images in open_sources(sources, "prompt")] == [["b"], ["c"], ["b"]]
    with pytest.raises(UserError, match="text and prompt of its columns"):
        open_sources(sources, "caption")
    with pytest.raises(UserError, match="unknown column of 0 'promt'; did you mean 'prompt'"):
        open_sources(sources, "promt")


PCX = bytes.fromhex("0a05010800000000ff00ff00").ljust(65, b"\0") + b"\1\0\0"  # its palette would be 769 bytes before its end


@pytest.mark.parametrize("damaged", [b"no image at all", FILES[0][:-40], b"", PCX])
def test_an_undecodable_image_is_named_when_read(tmp_path: Path, damaged: bytes) -> None:
    rows = [{"file_name": "in/0.png", "text": "whole"}, {"file_name": "half.png", "text": "damaged"}]
    images = open_images(str(image_folder(tmp_path / "some", rows, **{"half.png": damaged})))
    assert images.image(0).size == (7, 4)
    with pytest.raises(UndecodableError, match=r"some: the image \S+half\.png of row 1 \('damaged'\) cannot be decoded"):
        images.image(1)


def test_a_deleted_image_counts_as_undecodable(tmp_path: Path) -> None:
    images = open_images(str(image_folder(tmp_path / "some")))
    (tmp_path / "some" / "in" / "1.png").unlink()
    with pytest.raises(UndecodableError, match=r"in/1\.png of row 1 \('Übung, mit Komma'\) cannot be decoded: .*No such file"):
        images.image(1)


def test_an_image_that_the_disk_does_not_give_is_not_called_damaged(tmp_path: Path) -> None:
    images = open_images(str(image_folder(tmp_path / "some")))
    (tmp_path / "some" / "in" / "1.png").unlink()
    (tmp_path / "some" / "in" / "1.png").symlink_to("1.png")
    for read in (images.image, images.size, lambda _: images.digest):
        with pytest.raises(UserError, match=r"in/1\.png of row 1 \('Übung, mit Komma'\) cannot be read: Too many levels") as caught:
            read(1)
        assert not isinstance(caught.value, UndecodableError)


def test_an_image_for_which_there_is_too_little_memory_is_not_called_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    images = open_images(str(image_folder(tmp_path / "some")))
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(MemoryError):
        images.image(1)


def test_an_image_for_which_pillow_would_run_a_program_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_, **__: pytest.fail("ran Ghostscript"))
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    images = open_images(str(image_folder(tmp_path / "some", [{"file_name": "a.png", "text": "a"}], **{"a.png": drawing})))
    with pytest.raises(UserError, match=r"a\.png of row 0 \('a'\) cannot be decoded"):
        images.image(0)


def test_an_image_has_a_digest_of_its_own_but_not_without_itself_or_its_caption(tmp_path: Path) -> None:
    expected = [hashlib.sha256(file).digest() for file in FILES]
    assert open_images(str(parquet_folder(tmp_path / "all"))).image_digests == expected
    table(captions=["a", "b", " ", "d"], files=[FILES[0], None, *FILES[2:]]).to_parquet(tmp_path / "holes.parquet")
    images = open_images(str(tmp_path / "holes.parquet"))
    found, again = images.image_digests, images.image_digests
    assert [found[0], found[3]] == [again[0], again[3]] == [expected[0], expected[3]]
    assert len({*found, *again, *expected}) == 8, "those of rows 1 and 2 differ even from themselves"


def test_a_missing_image_has_zeros_in_the_digest_until_it_is_there(tmp_path: Path) -> None:
    found = [hashlib.sha256(file).digest() for file in FILES]
    captions = [hashlib.sha256(caption.encode()).digest() for caption in CAPTIONS]
    found[1] = bytes(32)
    with_hole = hashlib.sha256(b"".join(itertools.chain(*zip(captions, found, strict=True)))).hexdigest()
    table(files=[FILES[0], None, *FILES[2:]]).to_parquet(tmp_path / "holes.parquet")
    folder = image_folder(tmp_path / "folder")
    (folder / "in" / "1.png").unlink()
    for source in (tmp_path / "holes.parquet", folder):
        images = open_images(str(source))
        assert images.digest == with_hole
        with pytest.raises(
            UndecodableError, match=r"of row 1 \('Übung, mit Komma'\) cannot be decoded: .*\. Replace it, or remove the row"
        ):
            images.image(1)
    (folder / "in" / "1.png").write_bytes(FILES[1])
    assert open_images(str(folder)).digest == closed_form(CAPTIONS, FILES)


def test_a_row_without_caption_counts_as_undecodable(tmp_path: Path) -> None:
    blank, lacking = (text_folder(tmp_path / name) for name in ("blank", "lacking"))
    (blank / "1_name" / "2.txt").write_text("\n", encoding="utf-8")
    (lacking / "1_name" / "2.txt").unlink()
    table(captions=[*CAPTIONS[:2], None, CAPTIONS[3]]).to_parquet(tmp_path / "holes.parquet")
    for source in (blank, lacking, tmp_path / "holes.parquet"):
        images = open_images(str(source))
        assert images.digest == closed_form([*CAPTIONS[:2], "", CAPTIONS[3]], FILES)
        assert images.size(3) == (7, 7)
        with pytest.raises(
            UndecodableError,
            match=rf"{source.name}: the image .*2\.PNG of row 2 \(''\) has no caption" if source.is_dir() else "row 2 .*no caption",
        ):
            images.size(2)


def test_of_many_rows_the_first_ones_are_listed() -> None:
    assert list_rows([7]) == "row 7"
    assert list_rows(range(102)).endswith(", 98, 99 and 2 more")


def test_images_of_another_format_than_the_first_of_a_tar_are_named_with_the_way_out(tmp_path: Path) -> None:
    archive = tar(tmp_path / "0.tar", [f"{row:03}.{'png' if row < 6 else 'jpg'}" for row in range(7)])
    images = open_images(str(archive))
    assert images.size(5) == (7, 5)
    with pytest.raises(
        UndecodableError, match=r"row 6 .*Of these tars only \.png files are read, as the first images are; convert the others"
    ):
        images.image(6)


def test_a_copy_for_which_the_disk_has_no_room_is_not_begun(tmp_path: Path, datasets_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, read_in_place = parquet_folder(tmp_path / "shards"), text_folder(tmp_path / "texts")
    sizes = [path.stat().st_size for path in folder.iterdir()]
    asked = list[Path]()

    def free(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=sum(sizes) - 1)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", free)
        with pytest.raises(UserError, match=rf"shards takes {size_text(sum(sizes))} once more in the cache .*HF_DATASETS_CACHE"):
            open_images(str(folder))
        assert open_images(str(read_in_place)).captions == CAPTIONS
        sizes[0] += 1
        assert open_images(str(folder)).captions == CAPTIONS
    assert asked == [datasets_cache] * 2
    assert open_images(str(folder)).captions == CAPTIONS


def test_an_invalid_source_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    table().remove_columns("image").to_parquet(tmp_path / "texts.parquet")
    bytes_table(tmp_path / "structs.parquet", clip=pa.struct({"bytes": pa.binary(), "path": pa.string(), "sampling_rate": pa.int64()}))
    pq.ParquetWriter(tmp_path / "none.parquet", table().data.table.schema).close()
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    for other in ("notes.doc", "list.csv"):
        (tmp_path / other).touch()
    for what, said in {
        "empty": r"nothing to read in .*empty: expected metadata\.jsonl.*; found nothing\. A line of metadata\.jsonl is "
        r"{\"file_name\": \"0\.png\", \"text\": \"a caption\"}",
        "nowhere": "nothing to read at '.*nowhere': it is not a folder, a file, a glob",
        "texts.parquet": r"texts\.parquet has 0 image columns; expected one. Its columns: text \(Value\)",
        "structs.parquet": r"structs\.parquet has 0 image columns; expected one. Its columns: clip \(dict\), caption \(Value\)",
        "list.csv": r"list\.csv is empty; write its rows, or leave it out",
        "none.parquet": "corresponds to no data",
        "damaged.parquet": r"cannot read '.*damaged\.parquet' as a dataset \(",
        "*": r"names files ending in , \.csv, \.doc, \.parquet; expected files of one kind: \.parquet",
        "*.[cp]*": r"names files ending in \.csv, \.parquet; expected files of one kind",
    }.items():
        with pytest.raises(UserError, match=said):
            open_images(str(tmp_path / what))
    with pytest.raises(UserError, match="nothing to read at '~nobody-of-that-name/images'"):
        open_images("~nobody-of-that-name/images")
