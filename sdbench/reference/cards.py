"""Reference statistics: the moments of real images' features, and how they were made.

A reference is identified by a name and an encoder: `references/<name>/<encoder>.json`, a card that says how it was made, next to a `.npz`
with the numbers. The card holds the SHA-256 of the numbers and the id of the encoder, and its digest is over data, n and encoder, so a
damaged file, a different encoder or a different image is always detected. `scenes` is rendered when it is first needed.
"""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, ValidationError

from sdbench.arrays import F32, U8
from sdbench.disk import digest, write_bytes
from sdbench.errors import MissingError, UserError, unknown_name
from sdbench.machine import environment
from sdbench.metrics.frechet import Gaussian, gaussian
from sdbench.scenes.grammar import scene_at
from sdbench.scenes.render import render
from sdbench.validation import Table, error_message

if TYPE_CHECKING:
    from sdbench.encoders.catalogue import Encoder  # imports torch, which listing references does not need

SCENES_N, SCENES_SEED = 4096, 77
MAX_FEATURES = 10_000  # images whose features are kept for kernel metrics: 80 MB at d = 2048


@dataclass(frozen=True)
class Reference:
    """Statistics of real images' features.

    Attributes:
        digest: that of the card.
        features: those of at most `MAX_FEATURES` images, spread evenly, n x d; None if only moments were published.
    """

    digest: str
    statistics: Gaussian
    features: F32 | None


class Card(Table):
    """How a reference was made.

    Attributes:
        digest: over data, n and encoder; records name the reference by it.
        encoder: the encoder's name.
        encoder_id: the encoder's name and the digest of its weights; None for published statistics, whose authors only name it.
        data: source of the images, and SHA-256 of the images or of the published file.
        n: number of images behind the moments.
        features: number of images whose features are kept.
        file, sha256: name and SHA-256 of the file with the numbers.
        packages: versions of the packages that made it.
    """

    name: str
    digest: str
    encoder: str
    encoder_id: str | None
    data: dict[str, Any]
    n: int
    features: int
    file: str
    sha256: str
    packages: dict[str, str] = Field(default_factory=lambda: environment().packages)


def find(name: str | None, encoder: "Encoder", runs: Path) -> Reference:
    """Load the reference of this name for an encoder.

    Raises:
        MissingError: the suite names none, or it was not built here.
        UserError: it was made with other weights of the encoder, or is damaged.
    """
    if name is None:
        raise MissingError(
            'reference: the suite names none; write `reference = "<name>"` into it (`sdbench reference list` shows those on this machine)'
        )
    if name == "scenes":
        return _scenes(encoder, runs)
    card = card_of(name, encoder.name, runs)
    if card is None:
        raise MissingError(f"reference: {name!r} has not been built for encoder {encoder.name!r}; {how_to_build(name, [encoder.name])}")
    if card.encoder_id not in (None, encoder.id()):
        raise UserError(
            f"reference: {name!r} was made with encoder {card.encoder_id}, but this is {encoder.id()}; features of different encoders "
            f"cannot be compared. Delete {folder(name, runs)} and build it again."
        )
    return load(card, runs)


def how_to_build(name: str, encoders: Sequence[str] = ()) -> str:
    """The commands that make a reference for these encoders, by default for one to choose, for error messages."""
    encoder = " ".join(encoders) or "ENCODER"
    return (
        f"build it from real images: `sdbench reference build {name} --images FOLDER --encoder {encoder}` (or --dataset), "
        f"or `sdbench reference import {name} FILE.npz --encoder {encoder} --n N --source WHERE`"
    )


def card_of(name: str, encoder: str, runs: Path) -> Card | None:
    """The card of a reference; None if it was not built.

    Raises:
        UserError: it is damaged.
    """
    path = folder(name, runs) / f"{encoder}.json"
    try:
        return Card.model_validate_json(path.read_bytes()) if path.exists() else None
    except ValidationError as error:
        raise UserError(
            f"reference: {path} is not the card of a reference ({error_message(error)}); delete it and build the reference again"
        ) from error


def list_cards(runs: Path) -> list[Card]:
    """The cards of all references, sorted by name and encoder.

    Raises:
        UserError: a card is damaged.
    """
    cards = [card_of(path.parent.name, path.stem, runs) for path in sorted((runs / "references").glob("*/*.json"))]
    return [card for card in cards if card]


def check_name(name: str, runs: Path) -> None:
    """Check that a reference of this name exists, for any encoder.

    Raises:
        UserError: there is none, or a card is damaged.
    """
    if name not in (known := {"scenes", *(card.name for card in list_cards(runs))}):
        raise unknown_name("reference", name, known, f"Or {how_to_build(name)}")


def load(card: Card, runs: Path) -> Reference:
    """Load the numbers that belong to a card.

    Raises:
        UserError: they are missing or damaged.
    """
    path = folder(card.name, runs) / card.file
    advice = f"delete {path.parent} and build the reference again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"reference: {path} cannot be read ({error.strerror}); {advice}") from error
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise UserError(f"reference: {path} is damaged: its SHA-256 is not the one on its card; {advice}")
    with np.load(io.BytesIO(content)) as arrays:
        return Reference(card.digest, Gaussian(arrays["mean"], arrays["covariance"], card.n), arrays["features"] if card.features else None)


def save(
    name: str, encoder: "Encoder", reference_digest: str, data: dict[str, Any], statistics: Gaussian, features: F32 | None, runs: Path
) -> Card:
    """Write the numbers of a reference, then its card, and return the card.

    Args:
        reference_digest, data: the card's `digest` and `data`.
        features: see `Reference`; None for published moments, whose authors only name the encoder.

    Raises:
        UserError: see `write_bytes`.
    """
    buffer = io.BytesIO()
    arrays = {"mean": statistics.mean, "covariance": statistics.covariance} | ({} if features is None else {"features": features})
    np.savez(buffer, allow_pickle=False, **arrays)
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    card = Card(
        name=name,
        digest=reference_digest,
        encoder=encoder.name,
        encoder_id=None if features is None else encoder.id(),
        data=data,
        n=statistics.n,
        features=0 if features is None else len(features),
        file=f"{encoder.name}-{sha256[:12]}.npz",
        sha256=sha256,
    )
    write_bytes(folder(name, runs) / card.file, buffer.getvalue())
    write_bytes(folder(name, runs) / f"{encoder.name}.json", card.model_dump_json(indent=1).encode() + b"\n")
    return card


def folder(name: str, runs: Path) -> Path:
    """The folder of all references of this name."""
    return runs / "references" / name


def _scenes(encoder: "Encoder", runs: Path) -> Reference:
    """Load or make the statistics of 4,096 rendered scenes of the training split, which shares no layout with a benchmark prompt."""
    recipe = {
        "source": "scenes",
        "split": "train",
        "seed": SCENES_SEED,
        "n": SCENES_N,
        "encoder": encoder.id(),
        "first": _first_scenes_digest(),
    }
    card = card_of("scenes", encoder.name, runs)
    if card is None or card.digest != digest(recipe):
        features = encoder.features(_render_scenes(SCENES_N))
        card = save("scenes", encoder, digest(recipe), recipe, gaussian(features), features, runs)
    return load(card, runs)


@cache  # a hundred thousand numbers as JSON, for every distance of every record
def _first_scenes_digest() -> str:
    """Digest of the first scenes, by which a change of the renderer shows."""
    return digest(_render_scenes(8).tolist())


def _render_scenes(n: int) -> U8:
    return render([scene_at(index, "train", SCENES_SEED) for index in range(n)], range(n), SCENES_SEED)
