"""The command `reference`: build, import or list reference statistics. Listing does not import torch."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sdbench.arguments import add_command, add_device, print_answer, print_json
from sdbench.commands.console import AddCommand, add_common, add_runs, places_from
from sdbench.errors import UserError, unknown_name
from sdbench.notes import print_note
from sdbench.reference.encoders import ENCODER_OF

if TYPE_CHECKING:
    from sdbench.reference.build import Images
    from sdbench.reference.cards import Card

ENCODERS = tuple(dict.fromkeys(ENCODER_OF.values()))


def add_commands(add: AddCommand) -> None:
    """Add the command and its options."""
    command = add("reference", _reference, "build reference statistics from real images, import published ones, or list them")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    building = add_command(actions, "build", "build reference statistics from real images")
    importing = add_command(actions, "import", "import published reference statistics")
    listing = add_command(actions, "list", "list the available references")
    for action in (building, importing):
        action.add_argument("name", help="name of the reference, for suites and --reference")
    importing.add_argument("file", type=Path, help=".npz file with `mu` and `sigma`")
    building.add_argument("--images", type=Path, help="folder of real images; give this or --dataset")
    building.add_argument("--dataset", help="dataset of real images, opened with `datasets`: a file, a folder or a name on the Hub")
    building.add_argument("--split", help="split of the dataset (default: train)")
    building.add_argument("--column", help="column of the dataset's images, if it has several")
    building.add_argument("--encoder", nargs="+", required=True, help=f"encoders to build for: {', '.join(ENCODERS)}")
    building.add_argument("--n", type=int, help="use only the first N images (default: all)")
    importing.add_argument("--encoder", nargs="+", required=True, help="encoders that the publisher used, by the names that build takes")
    importing.add_argument("--n", type=int, required=True, help="number of images that the statistics were computed from")
    importing.add_argument("--source", required=True, help="where the file was published")
    add_device(building)
    for action in (building, importing, listing):
        add_common(action, again=True)
        add_runs(action)


def _reference(arguments: argparse.Namespace) -> int:
    cards = _run(arguments, places_from(arguments).work)
    for card in cards:
        print_answer(_describe(card), arguments)
    if not cards:
        print_note("no reference was built or imported yet; the reference `scenes` is rendered when it is needed")
    print_json([card.model_dump() for card in cards], arguments)
    return 0


def _run(arguments: argparse.Namespace, runs: Path) -> "list[Card]":
    """Run the action, and return the cards of the references that were made, or of all that are available."""
    if arguments.action == "list":
        from sdbench.reference.cards import list_cards

        return list_cards(runs)
    for name in arguments.encoder:
        if name not in ENCODERS:
            raise unknown_name("encoder", name, ENCODERS)
    from sdbench.encoders import catalogue
    from sdbench.encoders.inference import evaluators_on
    from sdbench.machine import choose_device
    from sdbench.reference.build import build, import_moments

    encoders = [catalogue.ENCODERS[name] for name in arguments.encoder]
    if arguments.action == "import":
        return [import_moments(arguments.name, arguments.file, encoder, arguments.n, arguments.source, runs) for encoder in encoders]
    images = _images(arguments)
    with evaluators_on(choose_device(arguments.device)):
        for encoder in encoders:
            encoder.id()  # needs the weights, so those of all encoders are checked before the hours that the first may take
        return [build(arguments.name, images, encoder, runs) for encoder in encoders]


def _describe(card: "Card") -> str:
    """A reference in one line."""
    features = f"{card.features} features kept" if card.features else "moments only"
    return f"{card.name:20} {card.encoder:16} n = {card.n:<7} {features:20} digest {card.digest}  from {card.data['source']}"


def _images(arguments: argparse.Namespace) -> "Images":
    from sdbench.reference.build import images_in_dataset, images_in_folder

    if (arguments.images is None) == (arguments.dataset is None):
        raise UserError("sdbench reference build needs either --images FOLDER or --dataset NAME; give one of them")
    if arguments.images:
        if arguments.split or arguments.column:
            raise UserError("--split and --column are for --dataset; with --images, leave them out")
        return images_in_folder(arguments.images, arguments.n)
    return images_in_dataset(arguments.dataset, arguments.split or "train", arguments.column, arguments.n)
