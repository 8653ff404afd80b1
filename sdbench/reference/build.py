"""Building and importing references. Pictures stream through the encoder in blocks, so memory does not grow with their number.

A block's features are kept under its content until the whole is done: a build that was killed goes on where it stood.
"""

import hashlib
import io
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from sdbench.arrays import F32, F64, U8
from sdbench.assets.sources import open_picture, read_table
from sdbench.disk import digest
from sdbench.encoders.catalogue import Encoder
from sdbench.errors import UserError
from sdbench.metrics.frechet import Gaussian, Moments
from sdbench.models.spec import NAME
from sdbench.reference.cards import KEPT, Card, card_of, folder, save
from sdbench.store import SUFFIXES, load_or_compute, mode_of

BLOCK = 64  # pictures in memory at a time


@dataclass(frozen=True)
class Pictures:
    """Real pictures, undecoded.

    Attributes:
        names: what an error calls each.
        read: the bytes of the i-th.
    """

    source: str
    names: Sequence[str]
    read: Callable[[int], bytes]


def in_folder(path: Path, n: int | None = None) -> Pictures:
    """The pictures below a folder, by name; the first `n` of them.

    Raises:
        UserError: there are fewer than `n`, or than 2.
    """
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES) if path.is_dir() else []
    return Pictures(path.name, [str(file) for file in files[: _enough(str(path), len(files), n)]], lambda row: files[row].read_bytes())


def in_dataset(what: str, split: str = "train", column: str | None = None, n: int | None = None) -> Pictures:
    """The pictures of whatever `datasets` opens; the first `n` rows.

    Raises:
        MissingError, UserError: as `sources.read_table`; or there are fewer than `n`, or than 2.
    """
    table = read_table(what, split)
    rows = table.pictures(column)

    def read(row: int) -> bytes:
        (picture,) = rows[row].values()
        with open_picture(picture) as file:
            return file.read()

    return Pictures(
        f"{table.version or table.name} ({split})", [f"row {row} of {what}" for row in range(_enough(what, len(rows), n))], read
    )


def _enough(where: str, found: int, n: int | None) -> int:
    wanted = 2 if n is None else n
    if wanted < 2:
        raise UserError(f"--n {n}: a reference is of at least 2 pictures")
    if found < wanted:
        raise UserError(f"{where} holds {found} pictures ({', '.join(sorted(SUFFIXES))}); a reference of {n or 'at least 2'} was asked for")
    return found if n is None else n


def build(name: str, pictures: Pictures, encoder: Encoder, runs: Path) -> Card:
    """Compute the reference of these pictures under an encoder, if it is not there yet => its card.

    Raises:
        UserError: a picture cannot be read, or the name is taken by other pictures or by other weights of the encoder.
    """
    taken, n = _free(name, encoder.name, runs), len(pictures.names)
    if taken:
        return _same(taken, pictures, encoder, runs)
    blocks = folder(name, runs) / f".{encoder.name}"
    moments, spread, whole = Moments(), [], hashlib.sha256()
    for rows, contents in _blocks(pictures, f"{name}, {encoder.name}"):
        hashes = [hashlib.sha256(content).digest() for content in contents]
        whole.update(b"".join(hashes))
        part = blocks / f"{digest([encoder.id(), b''.join(hashes).hex()])}.npy"
        features = load_or_compute(part, partial(_features, contents, [pictures.names[row] for row in rows], encoder))
        moments.add(features)
        spread.append(features[[_is_kept(row, n) for row in rows]])
    data = {"source": pictures.source, "sha256": whole.hexdigest()}
    made = _digest(data["sha256"], n, encoder.id())
    card = save(
        Card(name=name, digest=made, encoder=encoder.name, encoder_id=encoder.id(), data=data, n=n),
        moments.gaussian(), np.concatenate(spread), runs,
    )  # fmt: skip
    shutil.rmtree(blocks, ignore_errors=True)
    return card


def take(name: str, file: Path, encoder: str, n: int, source: str, runs: Path) -> Card:
    """Import published moments: a `.npz` with `mu` and `sigma`, as pytorch-fid writes them => its card.

    Args:
        encoder: what its maker says it was made with.
        n: pictures behind it, which the file itself does not say.
        source: where it was published.

    Raises:
        UserError: it holds something else, or the name is taken by another file or n.
    """
    content, mean, covariance = _published(file)
    if n < 2:
        raise UserError(f"--n {n}: statistics are of at least 2 pictures; say how many pictures {file} was made of")
    sha256 = hashlib.sha256(content).hexdigest()
    git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
    made = _digest(sha256, n, encoder)
    taken = _free(name, encoder, runs)
    if taken and taken.digest != made:
        raise _other(taken, f"{file} of n = {n} ({sha256[:12]})", runs)
    data = {"source": source, "sha256": sha256, "git": git}
    card = Card(name=name, digest=made, encoder=encoder, encoder_id=None, data=data, n=n)
    return taken or save(card, Gaussian(mean, covariance, n), None, runs)


def _published(file: Path) -> tuple[bytes, F64, F64]:
    """What a file holds, and the moments in it."""
    try:
        content = file.read_bytes()
        with np.lib.npyio.NpzFile(io.BytesIO(content)) as published:
            mean, covariance = np.asarray(published["mu"], np.float64), np.asarray(published["sigma"], np.float64)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{file} is no file of statistics ({type(error).__name__}); expected a .npz with arrays `mu` (d) and `sigma` (d x d)"
        ) from error
    if mean.ndim != 1 or not mean.size or covariance.shape != (len(mean), len(mean)) or not _are_moments(mean, covariance):
        raise UserError(
            f"{file}: `mu` {mean.shape} and `sigma` {covariance.shape} are no mean and covariance; "
            "expected finite (d) and symmetric (d x d), without negative eigenvalues"
        )
    return content, mean, covariance


def _are_moments(mean: F64, covariance: F64) -> bool:
    if not np.isfinite(mean).all() or not np.allclose(covariance, covariance.T):
        return False
    eigenvalues = np.linalg.eigvalsh(covariance)
    return bool(eigenvalues[0] >= -1e-4 * abs(eigenvalues[-1]))  # rounding to float32 leaves some below 0


def _free(name: str, encoder: str, runs: Path) -> Card | None:
    """The card that a reference of this name has already.

    Raises:
        UserError: no reference may be called so.
    """
    if name == "scenes" or not NAME.fullmatch(name):
        raise UserError(f"a reference cannot be called {name!r}: expected letters, digits and .+-_; `scenes` is rendered when it is needed")
    return card_of(name, encoder, runs)


def _same(taken: Card, pictures: Pictures, encoder: Encoder, runs: Path) -> Card:
    """The card, where it is of these pictures and this encoder."""
    whole = hashlib.sha256()
    for _, contents in _blocks(pictures, f"{taken.name}, checking"):
        whole.update(b"".join(hashlib.sha256(content).digest() for content in contents))
    if _digest(whole.hexdigest(), len(pictures.names), encoder.id()) != taken.digest:
        raise _other(taken, f"{pictures.source} of n = {len(pictures.names)} ({whole.hexdigest()[:12]}) under {encoder.id()}", runs)
    return taken


def _other(taken: Card, asked: str, runs: Path) -> UserError:
    return UserError(
        f"reference {taken.name!r} for {taken.encoder!r} is there already, of {taken.data['source']} of n = {taken.n} ({taken.data['sha256'][:12]}) "
        f"under {taken.encoder_id or taken.encoder}; asked was {asked}. Choose another name, or delete {folder(taken.name, runs)}."
    )


def _digest(data: str, n: int, encoder: str) -> str:
    return digest({"data": data, "n": n, "encoder": encoder})


def _blocks(pictures: Pictures, title: str) -> Iterator[tuple[range, list[bytes]]]:
    n = len(pictures.names)
    with tqdm(total=n, desc=title, unit="image", mininterval=1) as bar:
        for start in range(0, n, BLOCK):
            rows = range(start, min(start + BLOCK, n))
            yield rows, [_read(pictures, row) for row in rows]
            bar.update(len(rows))


def _read(pictures: Pictures, row: int) -> bytes:
    try:
        return pictures.read(row)
    except OSError as error:
        raise UserError(f"picture {pictures.names[row]} cannot be read ({error.strerror}); put it there, or take it out") from error


def _decoded(content: bytes, name: str) -> U8:
    """A picture => H x W x 3 uint8 RGB, upright (as EXIF has it); gray ones get three equal channels, as every reference implementation gives them."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            mode = mode_of(image)
            ImageOps.exif_transpose(image, in_place=True)
            pixels = np.asarray(image.convert("RGB") if mode == "L" else image)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"picture {name} cannot be decoded ({error}); replace it, or take it out") from error
    if mode not in ("RGB", "L"):
        raise UserError(f"picture {name} has mode {mode}, expected 8-bit RGB or gray; convert it, or take it out")
    return pixels


def _features(contents: Sequence[bytes], names: Sequence[str], encoder: Encoder) -> F32:
    """Features of pictures of any sizes, in their order; those of one size go through the encoder together."""
    decoded = [_decoded(content, name) for content, name in zip(contents, names, strict=True)]
    sizes = [picture.shape for picture in decoded]
    rows = {size: [row for row, own in enumerate(sizes) if own == size] for size in dict.fromkeys(sizes)}
    try:
        parts = np.concatenate([encoder.features(np.stack([decoded[row] for row in group])) for group in rows.values()])
    except ValueError as error:
        raise UserError(f"{names[0]} to {names[-1]}: {error}; take pictures or an encoder that fit each other") from error
    order = [row for group in rows.values() for row in group]
    return np.asarray(parts[np.argsort(order)], np.float32)


def _is_kept(row: int, n: int) -> bool:
    """Whether the features of this row are among the `KEPT` of n, spread evenly."""
    return n <= KEPT or row * KEPT // n != (row + 1) * KEPT // n
