"""The command `scenes`: train the weights of the embedded family, or install trained ones."""

import argparse
from pathlib import Path

from sdbench.arguments import add_device
from sdbench.commands.console import AddCommand
from sdbench.errors import UserError, unknown_name
from sdbench.notes import print_note

PARTS = ("vae", "text", "reader", "features", "clip", "preference", "teacher")  # copied from `scenes.training.make`, which imports torch


def add_commands(add: AddCommand) -> None:
    """Add the command and its options."""
    training = add("scenes", _scenes, "train the weights of the embedded family, or install trained ones", common=False)
    training.add_argument(
        "action", choices=("train", "ship"), help="train: train the parts in WORK; ship: install them in this package, with a manifest"
    )
    training.add_argument("--parts", nargs="+", default=[], help=f"parts to train (default: all): {', '.join(PARTS)}")
    training.add_argument(
        "--results", type=Path, default=Path("results"), help="folder of results, for the training losses (default: results)"
    )
    training.add_argument("--work", type=Path, help="folder to train in; a killed run resumes from it (default: RESULTS/runs/training)")
    add_device(training)


def _scenes(arguments: argparse.Namespace) -> int:
    if arguments.parts and arguments.action == "ship":
        raise UserError("--parts is for scenes train; scenes ship installs all parts")
    for part in arguments.parts:
        if part not in PARTS:
            raise unknown_name("part of the embedded family", part, PARTS)
    from sdbench.machine import choose_device, environment
    from sdbench.scenes.training import make, ship

    work = arguments.work or arguments.results / "runs" / "training"
    workspace = make.Workspace(work, choose_device(arguments.device))
    if arguments.action == "ship":
        print_note(f"installed: {ship.ship(workspace, environment().model_dump(), arguments.results / 'training')}")
        return 0
    for part in arguments.parts or PARTS:
        make.train_part(part, workspace)
    return 0
