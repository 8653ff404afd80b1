"""References: built once from any layout, resumable, checked when read, or imported from published moments."""

import hashlib
import io
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from fakes import colours
from PIL import ExifTags, Image
from synthetic_images import deep_png, deep_tiff, png

from sdbench import cli
from sdbench.arrays import F32, U8
from sdbench.commands import reference
from sdbench.disk import locked
from sdbench.encoders import inference, scenes
from sdbench.encoders.catalogue import ENCODERS, Encoder
from sdbench.encoders.inference import device
from sdbench.errors import MissingError, UserError
from sdbench.reference import build as building
from sdbench.reference import cards
from sdbench.reference.build import Images, build, images_in_dataset, images_in_folder, import_moments
from sdbench.reference.cards import find, list_cards

ROOT = Path(__file__).parents[2]
N, D = 11, 6
SIZES = [(8, 8), (8, 8), (5, 9), (8, 8), (9, 5), (5, 9)]  # height, width; real images have many
ARRAYS = [np.random.default_rng(row).integers(0, 256, (*SIZES[row % len(SIZES)], 3), dtype=np.uint8) for row in range(N)]


TOY = Encoder("toy", lambda: "toy-1234", colours, 6, 4)
FEATURES = np.concatenate([colours(array[None]) for array in ARRAYS])


FILES = [png(array) for array in ARRAYS]
DATA = hashlib.sha256(b"".join(hashlib.sha256(file).digest() for file in FILES)).hexdigest()


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "real"
    (folder / "more").mkdir(parents=True)
    for row, content in enumerate(FILES):
        (folder / ("more" if row > 8 else "") / f"{row:02d}.png").write_bytes(content)
    (folder / "notes.txt").write_text("no image", encoding="utf-8")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


# ---- building ----


def test_statistics_match_the_features_of_the_images(image_folder: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "BLOCK", 4)
    card = build("real", images_in_folder(image_folder), TOY, runs)
    found = find("real", TOY, runs)
    np.testing.assert_allclose(found.statistics.mean, FEATURES.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.statistics.covariance, np.cov(FEATURES.astype(np.float64), rowvar=False), rtol=1e-6, atol=1e-12)
    np.testing.assert_array_equal(found.features, FEATURES)
    assert found.features is not None
    assert found.features.dtype == np.float32
    assert (found.statistics.n, found.digest) == (N, card.digest)
    assert (card.encoder_id, card.data, card.n, card.features) == ("toy-1234", {"source": "real", "sha256": DATA}, N, N)
    assert {"numpy", "torch", "sdbench"} <= card.packages.keys()
    assert {path.name for path in (runs / "references" / "real").iterdir()} == {".lock", "toy.json", card.file}


def test_digest_does_not_depend_on_the_layout_of_the_images(
    image_folder: Path, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = datasets.Dataset.from_dict(
        {"image": FILES, "caption": ["x"] * N},
        features=datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")}),
    )
    table.to_parquet(tmp_path / "table.parquet")
    one, other = (
        build("one", images_in_folder(image_folder), TOY, runs),
        build("other", images_in_dataset(str(tmp_path / "table.parquet")), TOY, runs),
    )
    assert one.digest == other.digest
    assert one.sha256 == other.sha256  # the statistics are bit-identical
    few = build("few", images_in_dataset(str(tmp_path / "table.parquet"), n=5), TOY, runs)
    assert few.n == 5
    assert few.digest != one.digest
    with pytest.raises(UserError, match=r"holds 11 images; expected 12, as --n asks"):
        images_in_dataset(str(tmp_path / "table.parquet"), n=12)
    with pytest.raises(UserError, match="0 image columns named 'caption'"):
        images_in_dataset(str(tmp_path / "table.parquet"), column="caption")


def test_reference_is_built_once_and_a_different_one_of_that_name_is_rejected(
    image_folder: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = build("real", images_in_folder(image_folder), TOY, runs)
    uncalled = Encoder("toy", lambda: "toy-1234", lambda _: pytest.fail("computed again"), 6, 4)
    assert build("real", images_in_folder(image_folder), uncalled, runs) == card
    others = {
        "fewer": (images_in_folder(image_folder, 5), uncalled),
        "other weights": (images_in_folder(image_folder), Encoder("toy", lambda: "toy-5678", colours, 6, 4)),
    }
    for images, encoder in others.values():
        with pytest.raises(
            UserError, match=r"reference 'real' for 'toy' exists already, from real with n = 11 .* Choose another name, or delete"
        ):
            build("real", images, encoder, runs)
    (image_folder / "03.png").write_bytes(FILES[4])
    with pytest.raises(UserError, match="exists already"):
        build("real", images_in_folder(image_folder), uncalled, runs)
    monkeypatch.undo()
    assert list_cards(runs) == [card]


def test_reference_that_another_command_builds_meanwhile_is_kept(image_folder: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def wait_for_another(path: Path) -> Iterator[None]:
        monkeypatch.setattr(building, "locked", locked)
        build("real", images_in_folder(image_folder, 5), TOY, runs)
        with locked(path):
            yield

    monkeypatch.setattr(building, "locked", wait_for_another)
    with pytest.raises(UserError, match="exists already, from real with n = 5"):
        build("real", images_in_folder(image_folder), TOY, runs)


@pytest.mark.parametrize(("upgraded", "computed"), [(False, N - 8), (True, N)])
def test_killed_build_resumes_under_the_same_versions(
    upgraded: bool, computed: int, image_folder: Path, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "BLOCK", 4)
    sizes: list[int] = []

    def interrupt_after_eight(images: U8) -> F32:
        sizes.append(len(images))
        if sum(sizes) > 8:
            raise KeyboardInterrupt
        return colours(images)

    with pytest.raises(KeyboardInterrupt):
        build("real", images_in_folder(image_folder), Encoder("toy", lambda: "toy-1234", interrupt_after_eight, 6, 4), runs)
    assert lookup_result(runs) == "missing"
    if upgraded:
        monkeypatch.setattr(inference, "version", lambda _: "99")
    done: list[int] = []

    def count(images: U8) -> F32:
        done.append(len(images))
        return colours(images)

    build("real", images_in_folder(image_folder), Encoder("toy", lambda: "toy-1234", count, 6, 4), runs)
    assert sum(done) == computed
    np.testing.assert_array_equal(find("real", TOY, runs).features, FEATURES)


def lookup_result(runs: Path) -> str:
    try:
        find("real", TOY, runs)
    except MissingError:
        return "missing"
    except UserError:
        return "refused"
    return "found"


def test_memory_does_not_grow_with_the_number_of_images(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "BLOCK", 8)
    monkeypatch.setattr(building, "MAX_FEATURES", 40)
    image = png(np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8))

    def peak(n: int) -> int:
        tracemalloc.start()
        card = build(f"n{n}", Images("same", [str(row) for row in range(n)], lambda _: image), TOY, runs)
        reached = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert (card.n, card.features) == (n, 40)
        return reached

    peak(48)  # warms up
    assert peak(400) < 1.2 * peak(50)


def test_images_of_one_size_go_through_the_encoder_in_its_batches(image_folder: Path, runs: Path) -> None:
    """As if it had got them all at once: so features keep their last digits."""
    seen: list[U8] = []

    def encode(images: U8) -> F32:
        seen.append(images)
        return colours(images)

    build("real", images_in_folder(image_folder), Encoder("toy", lambda: "toy-1234", encode, 6, 2), runs)
    groups = [[array for array in ARRAYS if array.shape[:2] == size] for size in dict.fromkeys(SIZES)]
    batches = [np.stack(group[start : start + 2]) for group in groups for start in range(0, len(group), 2)]
    assert [batch.tolist() for batch in seen] == [batch.tolist() for batch in batches]
    np.testing.assert_array_equal(find("real", TOY, runs).features, FEATURES)


def test_only_a_batch_of_photographs_is_decoded_at_a_time(runs: Path) -> None:
    image = np.zeros((512, 512, 3), np.uint8)
    content = png(image)
    encoder = Encoder("toy", lambda: "toy-1234", lambda images: images[:, 0, 0].astype(np.float32), 3, 4)
    tracemalloc.start()
    build("large", Images("same", [str(row) for row in range(64)], lambda _: content), encoder, runs)
    reached = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert reached < 32 * image.nbytes


@pytest.mark.parametrize(("n", "kept"), [(3, 3), (7, 7), (8, 7), (20, 7), (7001, 7)])
def test_kept_features_are_evenly_spaced(n: int, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "MAX_FEATURES", 7)
    rows = [row for row in range(n) if building._is_kept(row, n)]
    assert len(rows) == kept
    assert np.ptp(np.diff([-1, *rows])) <= 1


def tiff(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    return buffer.getvalue()


def palette(**options: Any) -> bytes:
    """One blue pixel of a palette whose second colour is red."""
    image = Image.new("P", (1, 1))
    image.putpalette([0, 0, 255, 255, 0, 0])
    return png(image, **options)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (png(Image.new("L", (1, 1), 200)), [200] * 3),
        (png(Image.new("1", (1, 1), 1)), [255] * 3),
        (palette(), [0, 0, 255]),
        (palette(transparency=b"\xff\x00"), [0, 0, 255]),
        (png(Image.new("LA", (1, 1), (9, 255))), [9] * 3),
        (png(Image.new("RGBA", (1, 1), (1, 2, 3, 255))), [1, 2, 3]),
        (tiff(Image.new("CMYK", (1, 1), (0, 255, 255, 0))), [255, 0, 0]),
    ],
    ids=["gray", "bits", "palette", "opaque palette", "opaque gray", "opaque", "CMYK"],
)
def test_opaque_images_of_8_bits_become_rgb(content: bytes, expected: list[int]) -> None:
    assert building._decode(content, "").tolist() == [[expected]]


@pytest.mark.parametrize(
    ("mode", "content"),
    [
        ("RGBA with transparency", png(Image.new("RGBA", (1, 1), (1, 2, 3, 254)))),
        ("LA with transparency", png(Image.new("LA", (1, 1), (9, 0)))),
        ("P with transparency", palette(transparency=b"\x80")),
        ("I;16", png(Image.new("I;16", (1, 1)))),
        ("LA;16", deep_png(2)),
        ("RGB;16", deep_png()),
        ("RGB;16", deep_tiff("<")),
        ("RGB;16", deep_tiff(">")),
        ("RGBA;16", deep_png(4)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_transparent_images_and_those_of_16_bits_are_rejected(mode: str, content: bytes) -> None:
    with pytest.raises(UserError, match=rf"^image 7 has mode {mode}, expected 8 bits and no transparency; convert it, or remove it$"):
        building._decode(content, "7")


def test_gray_images_get_three_channels_and_damaged_ones_are_named(image_folder: Path, runs: Path) -> None:
    gray = Image.fromarray(ARRAYS[0][..., 0])
    (image_folder / "00.png").write_bytes(png(gray))
    build("gray", images_in_folder(image_folder, 2), TOY, runs)
    expected = colours(np.repeat(ARRAYS[0][None, ..., :1], 3, axis=3))
    np.testing.assert_array_equal(find("gray", TOY, runs).features, np.concatenate([expected, FEATURES[1:2]]))
    for content in (b"no image", FILES[1][:60]):
        (image_folder / "01.png").write_bytes(content)
        with pytest.raises(UserError, match=r"01\.png cannot be read \(.*\); replace it, or remove it"):
            build("bad", images_in_folder(image_folder), TOY, runs)
    (image_folder / "01.png").unlink()
    (image_folder / "01.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"01\.png cannot be read"):
        build("bad", images_in_folder(image_folder), TOY, runs)


def test_photographs_are_rotated_upright() -> None:
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 8  # shown turned anticlockwise by 90 degrees
    for image in (ARRAYS[2], ARRAYS[2][..., 0]):
        np.testing.assert_array_equal(building._decode(png(image, exif=turned), "")[..., 0], np.rot90(ARRAYS[2][..., 0]))


@pytest.mark.parametrize("name", ["scenes", "", "../x", "a b", ".hidden"])
def test_invalid_names_are_rejected(name: str, image_folder: Path, runs: Path) -> None:
    with pytest.raises(UserError, match=r"a reference cannot be called .* a letter or digit first"):
        build(name, images_in_folder(image_folder), TOY, runs)


@pytest.mark.parametrize("n", [-5, 0, 1])
def test_fewer_than_two_images_are_rejected(n: int, image_folder: Path) -> None:
    with pytest.raises(UserError, match=rf"--n {n}: a reference needs at least 2 images"):
        images_in_folder(image_folder, n)


def test_folder_without_images_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds 0 images \(\.jpeg, \.jpg, \.png, \.webp\); expected at least 2"):
        images_in_folder(tmp_path)
    with pytest.raises(UserError, match=rf"^there is no folder {tmp_path}/nowhere; name the folder of the images with --images$"):
        images_in_folder(tmp_path / "nowhere")


def test_image_files_of_other_types_are_left_out_with_a_note(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images_in_folder(image_folder)
    assert capsys.readouterr().err == ""
    for name in ("a.TIF", "b.bmp", "more/c.bmp"):
        (image_folder / name).touch()
    assert len(images_in_folder(image_folder).names) == N
    assert "real: 3 image files of other types (.bmp, .tif) are left out; convert them to PNG to use them" in capsys.readouterr().err


# ---- finding ----


def test_missing_reference_error_tells_how_to_build_it(runs: Path) -> None:
    with pytest.raises(
        MissingError, match=r"^reference: 'real' has not been built for encoder 'toy'; .*`sdbench reference build real --images"
    ):
        find("real", TOY, runs)
    with pytest.raises(MissingError, match=r"^reference: the suite names none"):
        find(None, TOY, runs)


def test_reference_of_another_encoder_or_with_damaged_files_is_rejected(image_folder: Path, runs: Path) -> None:
    card = build("real", images_in_folder(image_folder), TOY, runs)
    with pytest.raises(UserError, match=r"^reference: 'real' was made with encoder toy-1234, but this is toy-5678"):
        find("real", Encoder("toy", lambda: "toy-5678", colours, 6, 4), runs)
    numbers = runs / "references" / "real" / card.file
    intact = numbers.read_bytes()
    for content in (intact[:-1], intact[:200] + b"x" + intact[201:], b""):
        numbers.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged: its SHA-256 is not the one on its card; delete .*real and build"):
            find("real", TOY, runs)
    numbers.unlink()
    with pytest.raises(UserError, match=r"\.npz cannot be read"):
        find("real", TOY, runs)
    (runs / "references" / "real" / "toy.json").write_text('{"name": "real"}', encoding="utf-8")
    with pytest.raises(UserError, match="is not the card of a reference"):
        find("real", TOY, runs)


@pytest.mark.usefixtures("fake_evaluators")
def test_scenes_reference_is_cached_and_rebuilt_for_another_encoder(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = ENCODERS["scenes.features"]
    first = find("scenes", encoder, runs)
    monkeypatch.setattr(scenes, "features", lambda _: pytest.fail("rebuilt"))
    again = find("scenes", encoder, runs)
    assert again.digest == first.digest
    np.testing.assert_array_equal(again.statistics.covariance, first.statistics.covariance)
    monkeypatch.setattr(scenes, "features", lambda images: 2 * colours(images))
    monkeypatch.setattr(scenes, "encoder_id", "{}.other".format)
    other = find("scenes", encoder, runs)
    assert other.digest != first.digest
    np.testing.assert_allclose(other.statistics.mean, 2 * first.statistics.mean)


def test_scenes_reference_has_the_digest_in_committed_records(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    named = {
        value["reference"]
        for path in ROOT.glob("results/scenes/quality@*/*/*/record.json")
        for value in json.loads(path.read_text(encoding="utf-8"))["values"]
        if value["name"] == "fd.scenes"
    }
    first_images = cards._render_scenes(8)
    render_few = lambda n: np.resize(first_images, (n if n < 64 else n // 64, 64, 64, 3))  # noqa: E731  # a 64th of all is enough here
    monkeypatch.setattr(cards, "_render_scenes", render_few)
    assert {find("scenes", ENCODERS["scenes.features"], runs).digest} == named


# ---- importing ----


def save_moments(path: Path, **changes: Any) -> Path:
    np.savez_compressed(path, **{"mu": FEATURES.mean(0), "sigma": np.cov(FEATURES, rowvar=False), **changes})
    return path


def test_published_moments_are_imported_with_their_source(runs: Path, tmp_path: Path) -> None:
    file = save_moments(tmp_path / "val.npz")
    card = import_moments("val", file, TOY, 500, "their repository", runs)
    found = find("val", Encoder("toy", lambda: "toy-whatever", colours, 6, 4), runs)  # its weights are unknown
    np.testing.assert_allclose(found.statistics.mean, FEATURES.mean(0))
    assert (found.features, found.statistics.n, card.encoder_id) == (None, 500, None)
    content = file.read_bytes()
    git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    assert card.data == {"source": "their repository", "sha256": hashlib.sha256(content).hexdigest(), "git": git}
    assert import_moments("val", file, TOY, 500, "their repository", runs) == card
    with pytest.raises(UserError, match=r"'val' for 'toy' exists already, from their repository with n = 500 .*requested: .* with n = 400"):
        import_moments("val", file, TOY, 400, "their repository", runs)


def test_moments_of_other_features_than_the_encoders_are_rejected(runs: Path, tmp_path: Path) -> None:
    """A run would notice only when all its images are drawn."""
    file = save_moments(tmp_path / "val.npz", mu=FEATURES.mean(0)[:3], sigma=np.cov(FEATURES[:, :3], rowvar=False))
    with pytest.raises(UserError, match=r"val\.npz holds statistics of 3 features, but 'toy' has 6; name the encoder that made them"):
        import_moments("val", file, TOY, 500, "their repository", runs)


def test_invalid_moments_are_rejected(runs: Path, tmp_path: Path) -> None:
    mean, covariance = FEATURES.mean(0), np.cov(FEATURES, rowvar=False)
    asymmetric = covariance.copy()
    asymmetric[0, 1] += 1
    impossible = covariance.copy()
    impossible[0, 1] = impossible[1, 0] = 2 * covariance[0, 0]  # a correlation above 1
    bad = {
        "no arrays": {"mu": mean, "sigma": np.zeros(3)},
        "of two sizes": {"mu": mean[:3]},
        "not finite": {"mu": mean * np.nan},
        "with a covariance that is not finite": {"sigma": covariance + np.inf},
        "not symmetric": {"sigma": asymmetric},
        "negative": {"sigma": -covariance},
        "impossible": {"sigma": impossible},
    }
    for changes in bad.values():
        with pytest.raises(UserError, match="are not a mean and a covariance"):
            import_moments("x", save_moments(tmp_path / "bad.npz", **changes), TOY, 10, "s", runs)
    np.savez(tmp_path / "other.npz", mean=mean)
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}], object), sigma=covariance)
    (tmp_path / "text.npz").write_text("no zip", encoding="utf-8")
    (tmp_path / "empty.npz").touch()
    np.save(tmp_path / "array.npy", mean)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    np.savez_compressed(tmp_path / "damaged.npz", mu=mean, sigma=covariance)
    content = bytearray((tmp_path / "damaged.npz").read_bytes())
    at = content.index(b"mu.npy") + len(b"mu.npy") + 20  # behind the name and the extra field with the size
    content[at : at + 8] = b"\xff" * 8
    (tmp_path / "damaged.npz").write_bytes(content)
    for name in ("other", "pickled", "text", "empty", "array", "damaged", "nowhere"):
        with pytest.raises(UserError, match=rf"{name}\.npz holds no statistics"):
            import_moments("x", tmp_path / f"{name}.npz", TOY, 10, "s", runs)
    with pytest.raises(UserError, match="--n 1: statistics need at least 2 images"):
        import_moments("x", save_moments(tmp_path / "good.npz"), TOY, 1, "s", runs)


# ---- the command ----


@pytest.fixture
def _toy_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENCODERS, "toy", TOY)
    monkeypatch.setattr(reference, "ENCODERS", ("toy", "far"))


@pytest.mark.usefixtures("_toy_encoder")
def test_command_builds_imports_and_lists(image_folder: Path, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--runs", str(runs), "--json"]
    assert cli.main(["reference", "build", "real", "--images", str(image_folder), "--encoder", "toy", "--n", "4", *options]) == 0
    (built,) = json.loads(capsys.readouterr().out)
    file = save_moments(tmp_path / "val.npz")
    assert cli.main(["reference", "import", "val", str(file), "--encoder", "toy", "--n", "500", "--source", "a paper", *options]) == 0
    (taken,) = json.loads(capsys.readouterr().out)
    assert cli.main(["reference", "list", *options]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == [built, taken]
    assert "n = 4       4 features kept" in err
    assert "moments only" in err
    assert "from a paper" in err


def test_encoder_runs_on_the_requested_device(image_folder: Path, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def recorded(images: U8) -> F32:
        seen.append(device())
        return colours(images)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(ENCODERS, "toy", Encoder("toy", lambda: "toy", recorded, 6, 4))
    monkeypatch.setattr(reference, "ENCODERS", ("toy",))
    args = ["reference", "build", "real", "--images", str(image_folder), "--encoder", "toy", "--runs", str(runs)]
    assert cli.main([*args, "--device", "gpu"]) == 2
    assert cli.main([*args, "--device", "cpu"]) == 0
    assert set(seen) == {torch.device("cpu")}


@pytest.mark.usefixtures("_toy_encoder")
def test_weights_of_all_encoders_are_checked_first(
    image_folder: Path, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent() -> str:
        raise MissingError("weights: 'far' is not on this disk")

    monkeypatch.setitem(ENCODERS, "far", Encoder("far", absent, colours, 6, 4))
    assert cli.main(["reference", "build", "real", "--images", str(image_folder), "--encoder", "toy", "far", "--runs", str(runs)]) == 2
    assert "'far' is not on this disk" in capsys.readouterr().err
    assert not runs.exists()


def test_images_that_an_encoder_rejects_are_named(image_folder: Path, runs: Path) -> None:
    with pytest.raises(UserError, match=r"00\.png to .*10\.png: the evaluators of scenes take N x 64 x 64 .*that fit each other"):
        build("real", images_in_folder(image_folder), ENCODERS["scenes.features"], runs)


@pytest.mark.usefixtures("_toy_encoder")
@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["build"], "are required: name, --encoder"),
        (["build", "x", "--encoder", "toy"], "either --images FOLDER or --dataset NAME"),
        (["build", "x", "--encoder", "toi", "--images", "."], "unknown encoder 'toi'; did you mean 'toy'?"),
        (["import", "x"], "are required: file, --encoder, --n, --source"),
        (["build", "x", "--encoder", "toy", "--images", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_incomplete_command_names_what_is_missing(args: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code: int | str | None = cli.main(["reference", *args])
    except SystemExit as done:  # of argparse
        code = done.code
    assert code == 2
    assert expected in capsys.readouterr().err
