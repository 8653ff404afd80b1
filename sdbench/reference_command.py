"""What `sdbench reference` does: build, import or list."""

from argparse import Namespace
from pathlib import Path

from sdbench.encoders.catalogue import ENCODERS, Encoder
from sdbench.errors import UserError, unknown
from sdbench.reference import Card, cards
from sdbench.reference_build import Pictures, build, in_dataset, in_folder, take


def run(arguments: Namespace, runs: Path) -> list[Card]:
    """Do it => the cards of what was made, or of all that is at hand.

    Raises:
        UserError: an option is missing, or does not fit; or as `build` and `take`.
    """
    match arguments.action:
        case "build":
            encoders = [_encoder(name) for name in _given(arguments, "name", "encoder")[1]]
            pictures = _pictures(arguments)
            return [build(arguments.name, pictures, encoder, runs) for encoder in encoders]
        case "import":
            name, file, names, n, source = _given(arguments, "name", "file", "encoder", "n", "source")
            return [take(name, file, _encoder(encoder).name, n, source, runs) for encoder in names]
    return cards(runs)


def line(card: Card) -> str:
    """A reference in words."""
    kept = f"{card.features} features kept" if card.features else "moments only"
    return f"{card.name:20} {card.encoder:16} n = {card.n:<7} {kept:20} digest {card.digest}  of {card.data['source']}"


def _given(arguments: Namespace, *names: str) -> list[object]:
    missing = [name for name in names if not getattr(arguments, name)]
    if missing:
        known = {"name": "NAME", "file": "FILE"}
        raise UserError(
            f"sdbench reference {arguments.action} needs {', '.join(known.get(name, f'--{name}') for name in missing)}; see --help"
        )
    return [getattr(arguments, name) for name in names]


def _encoder(name: str) -> Encoder:
    if name not in ENCODERS:
        raise unknown("encoder", name, ENCODERS)
    return ENCODERS[name]


def _pictures(arguments: Namespace) -> Pictures:
    if (arguments.images is None) == (arguments.dataset is None):
        raise UserError("sdbench reference build takes its pictures from either --images FOLDER or --dataset NAME; give one of them")
    if arguments.images:
        return in_folder(arguments.images, arguments.n)
    return in_dataset(arguments.dataset, arguments.split, arguments.column, arguments.n)
