"""`sdbench reference`: build, import or list reference statistics. Listing does not import torch."""

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from sdbench.errors import UserError, unknown_name
from sdbench.reference.cards import Card, list_cards

if TYPE_CHECKING:
    from sdbench.encoders.catalogue import Encoder
    from sdbench.reference.build import Images


def run(arguments: Namespace, runs: Path) -> list[Card]:
    """Run the action, and return the cards of the references that were made, or of all that are available.

    Raises:
        UserError: options do not fit together, an encoder's weights are not available, or see `list_cards`, `build` and `import_moments`.
    """
    if arguments.action == "list":
        return list_cards(runs)
    from sdbench.encoders.memory import evaluators_on
    from sdbench.machine import choose_device
    from sdbench.reference.build import build, import_moments

    if arguments.action == "import":
        encoders = [_encoder(name) for name in arguments.encoder]
        return [import_moments(arguments.name, arguments.file, encoder.name, arguments.n, arguments.source, runs) for encoder in encoders]
    encoders, images = [_encoder(name) for name in arguments.encoder], _images(arguments)
    with evaluators_on(choose_device(arguments.device)):
        for encoder in encoders:
            encoder.id()  # needs the weights, so those of all encoders are checked before the hours that the first may take
        return [build(arguments.name, images, encoder, runs) for encoder in encoders]


def describe(card: Card) -> str:
    """A reference in one line."""
    features = f"{card.features} features kept" if card.features else "moments only"
    return f"{card.name:20} {card.encoder:16} n = {card.n:<7} {features:20} digest {card.digest}  from {card.data['source']}"


def _encoder(name: str) -> "Encoder":
    from sdbench.encoders.catalogue import ENCODERS

    if name not in ENCODERS:
        raise unknown_name("encoder", name, ENCODERS)
    return ENCODERS[name]


def _images(arguments: Namespace) -> "Images":
    from sdbench.reference.build import images_in_dataset, images_in_folder

    if (arguments.images is None) == (arguments.dataset is None):
        raise UserError("sdbench reference build needs either --images FOLDER or --dataset NAME; give one of them")
    if arguments.images:
        return images_in_folder(arguments.images, arguments.n)
    return images_in_dataset(arguments.dataset, arguments.split, arguments.column, arguments.n)
