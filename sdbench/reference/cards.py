"""Reference statistics: what the features of real pictures look like, with the recipe that made them.

A reference is a name and an encoder: `references/<name>/<encoder>.json`, a card that says how it was made, beside a `.npz`
with its numbers. The card names the numbers' SHA-256 and the encoder's id, and its digest is over data, n and encoder, so
a damaged file, another encoder or another picture cannot pass for what was meant. `scenes` is rendered when first needed.
"""

import hashlib
import io
from dataclasses import dataclass
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
from sdbench.validation import Table

if TYPE_CHECKING:
    from sdbench.encoders.catalogue import Encoder  # which brings torch; what is at hand is told without it

SCENES_N, SCENES_SEED = 4096, 77
KEPT = 10_000  # features of so many pictures stay for kernel metrics: 80 MB at d = 2048


@dataclass(frozen=True)
class Reference:
    """Statistics of real pictures' features.

    Attributes:
        digest: over how they were made.
        features: of at most `KEPT` pictures, spread evenly; None where only moments were published.
    """

    digest: str
    statistics: Gaussian
    features: F32 | None


class Card(Table):
    """How a reference was made.

    Attributes:
        digest: over data, n and encoder; a record names the reference by it.
        encoder: its name.
        encoder_id: tells its weights; None for published statistics, whose makers only name it.
        data: what the pictures are: source, and the SHA-256 of them or of the published file.
        n: pictures behind the moments.
        features: pictures whose features are kept.
        file, sha256: the numbers.
        packages: versions that made it.
    """

    name: str
    digest: str
    encoder: str
    encoder_id: str | None
    data: dict[str, Any]
    n: int
    features: int = 0
    file: str = ""
    sha256: str = ""
    packages: dict[str, str] = Field(default_factory=lambda: environment().packages)


def find(name: str | None, encoder: "Encoder", runs: Path) -> Reference:
    """The reference of this name for this encoder.

    Raises:
        MissingError: the suite names none, or it was not built here.
        UserError: it was made with other weights of the encoder, or is damaged.
    """
    if name is None:
        raise MissingError(
            'reference: the suite names none; write `reference = "<name>"` into it (`sdbench reference list` shows those at hand)'
        )
    if name == "scenes":
        return _scenes(encoder, runs)
    card = card_of(name, encoder.name, runs)
    if card is None:
        raise MissingError(f"reference: {name!r} is not here for encoder {encoder.name!r}; {how_to_build(name, encoder.name)}")
    if card.encoder_id not in (None, encoder.id()):
        raise UserError(
            f"reference: {name!r} was made with encoder {card.encoder_id}, this is {encoder.id()}; features of two encoders cannot be compared. "
            f"Delete {folder(name, runs)} and build it again."
        )
    return load(card, runs)


def how_to_build(name: str, encoder: str) -> str:
    """The commands that make a reference."""
    return (
        f"build it from real pictures: `sdbench reference build {name} --images FOLDER --encoder {encoder}` (or --dataset), "
        f"or `sdbench reference import {name} FILE.npz --encoder {encoder} --n N --source WHERE`"
    )


def card_of(name: str, encoder: str, runs: Path) -> Card | None:
    """The card of a reference; None where it was not built.

    Raises:
        UserError: it cannot be read.
    """
    path = folder(name, runs) / f"{encoder}.json"
    try:
        return Card.model_validate_json(path.read_bytes()) if path.exists() else None
    except ValidationError as error:
        raise UserError(
            f"reference: {path} is no card of a reference ({error.errors()[0]['msg']}); delete it and build the reference again"
        ) from error


def all_cards(runs: Path) -> list[Card]:
    """Every reference at hand, by name and encoder."""
    found = [card_of(path.parent.name, path.stem, runs) for path in sorted((runs / "references").glob("*/*.json"))]
    return [card for card in found if card]


def check_name(name: str, runs: Path) -> None:
    """See that a reference of this name is here, for any encoder.

    Raises:
        UserError: there is none.
    """
    if name not in (known := {"scenes", *(card.name for card in all_cards(runs))}):
        raise unknown_name("reference", name, known, f"Or {how_to_build(name, 'ENCODER')}")


def load(card: Card, runs: Path) -> Reference:
    """The numbers that a card names.

    Raises:
        UserError: they are missing, or not those that were written.
    """
    path = folder(card.name, runs) / card.file
    again = f"delete {path.parent} and build the reference again"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"reference: {path} cannot be read ({error.strerror}); {again}") from error
    if hashlib.sha256(content).hexdigest() != card.sha256:
        raise UserError(f"reference: {path} is damaged: its SHA-256 is not the one on its card; {again}")
    with np.load(io.BytesIO(content)) as kept:
        return Reference(card.digest, Gaussian(kept["mean"], kept["covariance"], card.n), kept["features"] if card.features else None)


def save(card: Card, statistics: Gaussian, features: F32 | None, runs: Path) -> Card:
    """Write a reference: its numbers, then its card, which names them => the card as written."""
    buffer = io.BytesIO()
    kept = {"mean": statistics.mean, "covariance": statistics.covariance} | ({} if features is None else {"features": features})
    np.savez(buffer, allow_pickle=False, **kept)
    sha256 = hashlib.sha256(buffer.getvalue()).hexdigest()
    card = card.model_copy(
        update={"features": 0 if features is None else len(features), "file": f"{card.encoder}-{sha256[:12]}.npz", "sha256": sha256}
    )
    write_bytes(folder(card.name, runs) / card.file, buffer.getvalue())
    write_bytes(folder(card.name, runs) / f"{card.encoder}.json", card.model_dump_json(indent=1).encode() + b"\n")
    return card


def folder(name: str, runs: Path) -> Path:
    """Where the references of a name lie."""
    return runs / "references" / name


def _scenes(encoder: "Encoder", runs: Path) -> Reference:
    """Statistics of 4,096 rendered scenes of the training split: none of them shares a layout with a benchmark prompt."""
    recipe = {
        "source": "scenes",
        "split": "train",
        "seed": SCENES_SEED,
        "n": SCENES_N,
        "encoder": encoder.id(),
        "first": digest(_rendered(8).tolist()),
    }
    card = card_of("scenes", encoder.name, runs)
    if card is None or card.digest != digest(recipe):
        features = encoder.features(_rendered(SCENES_N))
        made = Card(name="scenes", digest=digest(recipe), encoder=encoder.name, encoder_id=encoder.id(), data=recipe, n=SCENES_N)
        card = save(made, gaussian(features), features, runs)
    return load(card, runs)


def _rendered(n: int) -> U8:
    return render([scene_at(index, "train", SCENES_SEED) for index in range(n)], range(n), SCENES_SEED)
