"""Builds and imports references. Images stream through the encoder in blocks, so memory does not grow with their number.

The features of a block are stored by its content until the reference is complete: a build that was killed resumes where it stopped.
"""

import hashlib
import io
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from sdbench.arrays import F32, F64, U8
from sdbench.assets.sources import open_image, read_rows
from sdbench.disk import digest, locked
from sdbench.encoders.catalogue import Encoder
from sdbench.encoders.inference import BLOCK, computed_by
from sdbench.errors import UserError
from sdbench.image_files import FORMATS, RGB_MODES, SUFFIXES, decode, naming, upright_size
from sdbench.metrics.frechet import Gaussian, Moments
from sdbench.models.spec import NAME, NAME_RULE
from sdbench.notes import print_note, progress
from sdbench.reference.cards import MAX_FEATURES, Card, card_of, folder, save
from sdbench.store import load_or_compute

_OTHER_SUFFIXES = {".avif", ".bmp", ".gif", ".heic", ".heif", ".jxl", ".tif", ".tiff"}  # files that are left out, with a note
_WAY_OUT = "replace it, or remove it"


@dataclass(frozen=True)
class Images:
    """Real images, undecoded.

    Attributes:
        names: one for each image, for errors.
        read: returns the bytes of the image with this index.
    """

    source: str
    names: Sequence[str]
    read: Callable[[int], bytes]


def images_in_folder(path: Path, n: int | None = None) -> Images:
    """The images in a folder and its subfolders, sorted by name; only the first `n` if given.

    Raises:
        UserError: there is no folder, or it holds fewer than `n`, or fewer than 2 (or `n` is).
    """
    if not path.is_dir():
        raise UserError(f"there is no folder {path}; name the folder of the images with --images")
    found = sorted(path.rglob("*"))
    files = [file for file in found if file.suffix.lower() in SUFFIXES]
    if others := [suffix for file in found if (suffix := file.suffix.lower()) in _OTHER_SUFFIXES]:
        kinds = ", ".join(sorted({*others}))
        print_note(f"{path}: {len(others)} image files of other types ({kinds}) are left out; convert them to PNG to use them")
    kept = files[: _resolve_count(str(path), len(files), n, f" ({', '.join(sorted(SUFFIXES))})")]
    return Images(path.resolve().name, list(map(str, kept)), lambda row: kept[row].read_bytes())


def images_in_dataset(what: str, split: str = "train", column: str | None = None, n: int | None = None) -> Images:
    """The images of any source that `datasets` opens; only the first `n` rows if given.

    Raises:
        MissingError, UserError: see `sources.read_rows` and `Rows.images`; or there are fewer than `n`, or fewer than 2 (or `n` is).
    """
    rows = read_rows(what, split)
    images = rows.images(column)

    def read(row: int) -> bytes:
        (image,) = images[row].values()
        with open_image(image) as file:
            return file.read()

    return Images(
        f"{rows.version or rows.name} ({split})", [f"row {row} of {what}" for row in range(_resolve_count(what, len(images), n))], read
    )


def _resolve_count(where: str, found: int, n: int | None, kinds: str = "") -> int:
    """How many of the images found are wanted; `kinds` says which files count, for errors."""
    wanted = 2 if n is None else n
    if wanted < 2:
        raise UserError(f"--n {n}: a reference needs at least 2 images")
    if found < wanted:
        raise UserError(f"{where} holds {found} images{kinds}; expected {f'{n}, as --n asks' if n else 'at least 2'}")
    return found if n is None else n


def build(name: str, images: Images, encoder: Encoder, runs: Path) -> Card:
    """Compute the reference of these images under an encoder, if it does not exist yet, and return its card.

    Raises:
        MissingError: the weights of the encoder are neither on this disk nor reachable.
        UserError: an image cannot be read or does not fit the encoder, the name is not allowed or is taken by other images or by other
            weights of the encoder, or the reference cannot be written.
    """
    existing, n = _existing_card(name, encoder.name, runs), len(images.names)
    with nullcontext() if existing else locked(folder(name, runs) / ".lock"):
        if existing := existing or card_of(name, encoder.name, runs):  # another command may have built it meanwhile
            _check_same(existing, images, encoder, runs)
            return existing
        blocks = folder(name, runs) / f".{encoder.name}"
        moments, kept, sha256 = Moments(), [], hashlib.sha256()
        for rows, contents, hashes in _read_blocks(images, f"{name}, {encoder.name}"):
            sha256.update(hashes)
            path = blocks / f"{digest([encoder.id(), computed_by(), hashes.hex()])}.npy"
            features = load_or_compute(path, partial(_features, contents, [images.names[row] for row in rows], encoder))
            moments.add(features)
            kept.append(features[[_is_kept(row, n) for row in rows]])
        data = {"source": images.source, "sha256": sha256.hexdigest()}
        reference_digest = _digest(data["sha256"], n, encoder.id())
        card = save(name, encoder, reference_digest, data, moments.gaussian(), np.concatenate(kept), runs)
        shutil.rmtree(blocks, ignore_errors=True)
        return card


def import_moments(name: str, file: Path, encoder: Encoder, n: int, source: str, runs: Path) -> Card:
    """Import published moments, a `.npz` with `mu` and `sigma` as pytorch-fid writes them, and return the card of the reference.

    Args:
        encoder: the encoder that its authors state.
        n: number of images behind it, which the file does not state.
        source: where it was published.

    Raises:
        UserError: the file holds something else or moments of other features, n is below 2, the name is not allowed or is taken by another
            file or n, or the reference cannot be written.
    """
    content, mean, covariance = _read_moments(file)
    if len(mean) != encoder.width:
        raise UserError(
            f"{file} holds statistics of {len(mean)} features, but {encoder.name!r} has {encoder.width}; name the encoder that made them "
            "with --encoder"
        )
    if n < 2:
        raise UserError(f"--n {n}: statistics need at least 2 images; say how many images {file} was made from")
    sha256 = hashlib.sha256(content).hexdigest()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    reference_digest = _digest(sha256, n, encoder.name)
    existing = _existing_card(name, encoder.name, runs)
    if existing and existing.digest != reference_digest:
        raise _conflict(existing, f"{file} with n = {n} ({sha256[:12]})", runs)
    data = {"source": source, "sha256": sha256, "git": git}
    return existing or save(name, encoder, reference_digest, data, Gaussian(mean, covariance, n), None, runs)


def _read_moments(file: Path) -> tuple[bytes, F64, F64]:
    """Read a file of published moments and return its bytes, mean and covariance."""
    try:
        content = file.read_bytes()
        with np.lib.npyio.NpzFile(io.BytesIO(content)) as published:
            mean, covariance = np.asarray(published["mu"], np.float64), np.asarray(published["sigma"], np.float64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{file} holds no statistics ({type(error).__name__}); expected a .npz with arrays `mu` (d) and `sigma` (d x d)"
        ) from error
    if mean.ndim != 1 or not mean.size or covariance.shape != (len(mean), len(mean)) or not _are_moments(mean, covariance):
        raise UserError(
            f"{file}: `mu` {mean.shape} and `sigma` {covariance.shape} are not a mean and a covariance; "
            "expected finite (d) and symmetric (d x d), without negative eigenvalues"
        )
    return content, mean, covariance


def _are_moments(mean: F64, covariance: F64) -> bool:
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all() and np.allclose(covariance, covariance.T)):
        return False
    eigenvalues = np.linalg.eigvalsh(covariance)
    return bool(eigenvalues[0] >= -1e-4 * abs(eigenvalues[-1]))  # rounding to float32 makes some slightly negative


def _existing_card(name: str, encoder: str, runs: Path) -> Card | None:
    """The card of an existing reference of this name; None if there is none. A name that is not allowed is an error."""
    if name == "scenes" or not NAME.fullmatch(name):
        raise UserError(f"a reference cannot be called {name!r}: {NAME_RULE}, and not `scenes`, which is rendered when it is needed")
    return card_of(name, encoder, runs)


def _check_same(existing: Card, images: Images, encoder: Encoder, runs: Path) -> None:
    """Check that an existing reference was built from these images with this encoder."""
    sha256 = hashlib.sha256()
    for _, _, hashes in _read_blocks(images, f"{existing.name}, checking"):
        sha256.update(hashes)
    if _digest(sha256.hexdigest(), len(images.names), encoder.id()) != existing.digest:
        raise _conflict(existing, f"{images.source} with n = {len(images.names)} ({sha256.hexdigest()[:12]}) under {encoder.id()}", runs)


def _conflict(existing: Card, requested: str, runs: Path) -> UserError:
    return UserError(
        f"reference {existing.name!r} for {existing.encoder!r} exists already, from {existing.data['source']} with n = {existing.n} "
        f"({existing.data['sha256'][:12]}) under {existing.encoder_id or existing.encoder}; requested: {requested}. "
        f"Choose another name, or delete {folder(existing.name, runs)}."
    )


def _digest(data: str, n: int, encoder: str) -> str:
    return digest({"data": data, "n": n, "encoder": encoder})


def _read_blocks(images: Images, title: str) -> Iterator[tuple[range, list[bytes], bytes]]:
    """Blocks of images: their rows, their contents, and the SHA-256 of each, joined."""
    n = len(images.names)
    with progress(total=n, desc=title, unit="image") as bar:
        for start in range(0, n, BLOCK):
            rows = range(start, min(start + BLOCK, n))
            contents = [_read(images, row) for row in rows]
            yield rows, contents, b"".join(hashlib.sha256(content).digest() for content in contents)
            bar.update(len(rows))


def _read(images: Images, row: int) -> bytes:
    try:
        return images.read(row)
    except OSError as error:
        raise UserError(f"image {images.names[row]} cannot be read ({error.strerror}); restore it, or leave it out") from error


def _upright_size(content: bytes, name: str) -> tuple[int, int]:
    with naming(name, _WAY_OUT), Image.open(io.BytesIO(content), formats=FORMATS) as image:
        return upright_size(image)


def _decode(content: bytes, name: str) -> U8:
    """Decode an image that has 8 bits and no transparency, H x W x 3 uint8."""
    with naming(name, _WAY_OUT):
        pixels, mode = decode(io.BytesIO(content))
    if mode not in RGB_MODES:
        raise UserError(f"image {name} has mode {mode}, expected 8 bits and no transparency; convert it, or remove it")
    return pixels


def _features(contents: Sequence[bytes], names: Sequence[str], encoder: Encoder) -> F32:
    """The features of images of any sizes, N x d, in their order; only as many as the encoder's batch are decoded at a time."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # Pillow releases the GIL
        sizes = list(pool.map(_upright_size, contents, names))
        together = _batches(sizes, encoder.batch)

        def encode(batches: Sequence[Sequence[int]]) -> list[F32]:
            stacks = [np.empty((len(rows), *sizes[rows[0]][::-1], 3), np.uint8) for rows in batches]  # filled in place: stacking copies
            images, rows = chain.from_iterable(stacks), chain.from_iterable(batches)
            list(pool.map(lambda image, row: np.copyto(image, _decode(contents[row], names[row])), images, rows))
            return [encoder.features(stack) for stack in stacks]

        try:
            parts = np.concatenate([features for batches in together for features in encode(batches)])
        except ValueError as error:
            raise UserError(f"{names[0]} to {names[-1]}: {error}; choose images and an encoder that fit each other") from error
    order = [row for batches in together for rows in batches for row in rows]
    return np.asarray(parts[np.argsort(order)], np.float32)


def _batches(sizes: Sequence[tuple[int, int]], batch: int) -> list[list[list[int]]]:
    """Rows of images by batches of one size, and such batches in lists of at most `batch` images together.

    The batches are those of an encoder that gets all images of a size at once, whose features depend on them in their last digits.
    """
    together: list[list[list[int]]] = []
    for size in dict.fromkeys(sizes):
        group = [row for row, other in enumerate(sizes) if other == size]
        for start in range(0, len(group), batch):
            rows = group[start : start + batch]
            if not together or sum(map(len, together[-1])) + len(rows) > batch:
                together.append([])
            together[-1].append(rows)
    return together


def _is_kept(row: int, n: int) -> bool:
    """Whether the features of this row are among the `MAX_FEATURES` that are kept, spread evenly over n rows."""
    return n <= MAX_FEATURES or row * MAX_FEATURES // n != (row + 1) * MAX_FEATURES // n
