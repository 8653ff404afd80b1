"""Run folders: files are complete or absent, and only what was stored is scored."""

import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sdbench.disk import digest, write_bytes
from sdbench.errors import UserError
from sdbench.probes import rounds_file
from sdbench.store import Store, load_or_compute

IMAGE = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs", {"model": "tiny"})


def files_of(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def shapes() -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=40, deadline=None)
@given(shapes(), st.randoms(use_true_random=False))
def test_images_are_read_back_exactly(tmp_path_factory: pytest.TempPathFactory, shape: tuple[int, int], random: Random) -> None:
    rng = np.random.default_rng(random.randrange(2**32))
    images = rng.integers(0, 256, (3, *shape, 3), dtype=np.uint8)
    store = Store(tmp_path_factory.mktemp("runs"), {})
    for name, image in zip("abc", images, strict=True):
        store.put(name, image)
    read = store.read(["c", "a", "b"])
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, images[[2, 0, 1]])


def test_run_folder_is_found_by_its_content(tmp_path: Path) -> None:
    one = Store(tmp_path, {"model": "tiny", "steps": 4})
    one.put("a", IMAGE)
    same, other = Store(tmp_path, {"steps": 4, "model": "tiny"}), Store(tmp_path, {"model": "tiny", "steps": 5})
    assert same.folder == one.folder
    assert same.missing(["b", "a", "c"]) == ["b", "c"]
    assert other.missing(["a"]) == ["a"]
    assert files_of(one.folder) == ["images/a.png", "manifest.json"]
    assert not other.folder.exists(), "looking for images writes nothing"


def test_digest_depends_on_content_but_not_on_key_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert len({digest(content) for content in ({"a": 1}, {"a": 1.5}, {"a": "1"}, {"a": None}, ["a", 1])}) == 5


@pytest.mark.parametrize("failing", ["write_bytes", "replace"])
def test_failed_write_keeps_existing_files_and_leaves_no_others(failing: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a", IMAGE)
    before = {name: (store.folder / name).read_bytes() for name in files_of(store.folder)}
    write = Path.write_bytes

    def write_half(path: Path, content: bytes) -> int:
        write(path, content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    def fail_to_replace(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    if failing == "write_bytes":
        monkeypatch.setattr(Path, "write_bytes", write_half)
    else:
        monkeypatch.setattr(os, "replace", fail_to_replace)
    for name in ("a", "b"):
        with pytest.raises(UserError, match=rf"cannot write .*{name}\.png: (No space left|Read-only).*name another folder"):
            store.put(name, 255 - IMAGE)
    assert {name: (store.folder / name).read_bytes() for name in files_of(store.folder)} == before


def join_rounds(target: Path, _: bytes) -> Path:
    rounds_file.write({("base", "tiny"): [target.parent / "round.json"]}, target)
    return target


def test_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a machine that goes down leaves an empty file, which counts as drawn."""
    flushed, fsync, replace = list[tuple[int, int]](), os.fsync, Path.replace

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        flushed.append((status.st_ino, status.st_size))

    def replace_flushed(path: Path, target: Path) -> Path:
        assert flushed == [(path.stat().st_ino, 3)]
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", replace_flushed)
    assert write_bytes(tmp_path / "a.png", b"abc").read_bytes() == b"abc"


@pytest.mark.parametrize("write", [write_bytes, join_rounds])
def test_two_writers_of_one_file_do_not_interfere(
    write: Callable[[Path, bytes], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    barrier, replace = threading.Barrier(2, timeout=30), Path.replace

    def replace_after_both_have_written(path: Path, target: Path) -> Path:
        barrier.wait()
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replace_after_both_have_written)
    content = {"machine_info": {}, "commit_info": {}, "datetime": "", "version": "", "benchmarks": []}
    (tmp_path / "round.json").write_text(json.dumps(content), encoding="utf-8")
    with ThreadPoolExecutor(2) as pool:
        paths = list(pool.map(lambda _: write(tmp_path / "rounds.json", json.dumps(content).encode()), range(2)))
    assert all(json.loads(path.read_text(encoding="utf-8")) == content for path in paths)
    assert set(files_of(tmp_path)) == {"rounds.json", "round.json"}


def test_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file in the way", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot write .*runs.*name another folder"):
        Store(tmp_path / "runs", {}).put("a", IMAGE)
    with pytest.raises(UserError, match="cannot write"):
        write_bytes(tmp_path / "runs" / "below" / "x", b"")


def test_missing_image_is_reported_with_its_path(store: Store) -> None:
    with pytest.raises(UserError, match=r"image .*images/a\.png cannot be read.*delete it and run again"):
        store.read(["a"])


@pytest.mark.parametrize("n_bytes", [0, 8, 20, 60, 100])
def test_truncated_image_is_reported_with_its_path(n_bytes: int, store: Store) -> None:
    store.put("good", IMAGE)
    store.put("cut", IMAGE)
    store.path("cut").write_bytes(store.path("cut").read_bytes()[:n_bytes])
    with pytest.raises(UserError, match=r"images/cut\.png cannot be read.*only that image is made again"):
        store.read(["good", "cut"])


def test_all_damaged_images_are_counted_and_the_first_named(store: Store) -> None:
    names = [f"{number:02d}" for number in range(15)]
    for name in names:
        store.put(name, IMAGE)
    store.verify(names)
    damaged = names[2:]
    for name in damaged:
        store.path(name).write_bytes(b"")
    with pytest.raises(UserError) as error:
        store.verify(names, "make it again")
    *first, last = str(error.value).splitlines()
    assert all(f"images/{name}.png cannot be read" in line for name, line in zip(damaged[:10], first, strict=True))
    assert all(line.endswith("; make it again.") for line in first)
    assert last == f"and 3 more images of {store.folder}"
    with pytest.raises(UserError) as single:
        store.verify(["00", "03"])
    assert str(single.value).endswith("; delete it and run again: only that image is made again.")


def test_decompression_bomb_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put("a", IMAGE)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UserError, match=r"a\.png cannot be read .*decompression bomb"):
        store.read(["a"])


def test_images_of_different_sizes_are_rejected(store: Store) -> None:
    store.put("a", IMAGE)
    store.put("b", IMAGE[:4])
    with pytest.raises(UserError, match=r"images/b\.png is 5 x 4 px, the first is 5 x 6"):
        store.read(["a", "b"])


def test_features_are_computed_once_for_the_same_images_and_encoder(store: Store) -> None:
    calls = []

    def compute() -> np.ndarray:
        calls.append(1)
        return np.arange(6, dtype=np.float64).reshape(2, 3) / 7

    first = store.features("net-1234", ["a", "b"], compute)
    again = Store(store.folder.parent, {"model": "tiny"}).features("net-1234", ["a", "b"], compute)
    assert len(calls) == 1
    assert first.dtype == again.dtype == np.float32
    np.testing.assert_array_equal(again, first)
    np.testing.assert_array_equal(first, compute().astype(np.float32))
    calls.clear()
    for name, images in (("net-5678", ["a", "b"]), ("net-1234", ["b", "a"]), ("net-1234", ["a"])):
        store.features(name, images, compute)
    assert len(calls) == 3


@pytest.mark.parametrize("damage", [*(lambda content, n=n: content[:n] for n in (0, 40, 140)), lambda content: content.replace(b"{", b"(")])
def test_damaged_features_are_computed_again(damage: Callable[[bytes], bytes], store: Store) -> None:
    features = np.arange(6, dtype=np.float32).reshape(2, 3)
    store.features("net-1234", ["a", "b"], lambda: features)
    (file,) = (store.folder / "features").iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    np.testing.assert_array_equal(store.features("net-1234", ["a", "b"], lambda: features), features)
    assert file.read_bytes() == content


def test_failed_features_are_not_stored(store: Store) -> None:
    def broken() -> np.ndarray:
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        store.features("net-1234", ["a"], broken)
    assert files_of(store.folder) == []


def test_features_that_cannot_be_stored_are_used_and_a_note_says_so(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    store.put("a", IMAGE)
    (store.folder / "features").write_text("a file in the way", encoding="utf-8")
    features = np.arange(6, dtype=np.float32).reshape(1, 6)
    np.testing.assert_array_equal(store.features("net-1234", ["a"], lambda: features), features)
    (note,) = capsys.readouterr().err.splitlines()
    assert note.startswith(f"cannot write {store.folder / 'features' / 'net-1234-'}")
    assert note.endswith("Until then, these features are computed whenever a metric needs them.")
    with pytest.raises(UserError, match="cannot write"):  # those of a reference, which takes hours and would be lost at the end
        load_or_compute(store.folder / "features" / "a.npy", lambda: features)
