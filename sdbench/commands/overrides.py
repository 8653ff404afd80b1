"""The options that change settings of a suite for one command."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from sdbench.commands.console import places_from

if TYPE_CHECKING:
    from sdbench.api import Overrides

SCORING = ("metrics", "reference")  # what images made elsewhere can be given too


def add_overrides(command: argparse.ArgumentParser) -> None:
    """Add an option for each setting of `Overrides`."""
    own = command.add_argument_group("overrides of the suite", "with any of these, the suite is called '<name>-custom' in tables")
    own.add_argument("--steps", type=int, help="number of denoising steps")
    own.add_argument("--size-px", type=int, help="width and height of the images, in pixels")
    own.add_argument("--height-px", type=int, help="height of the images in pixels, where it differs from their width, --size-px")
    own.add_argument("--batch", type=int, help="batch size: number of images generated at a time")
    own.add_argument(
        "--n", type=int, help="number of prompts: the first N of the list; `hpdv2` is sorted by style, so its first 800 are anime"
    )
    own.add_argument(
        "--samples-per-prompt",
        type=int,
        metavar="N",
        help="number of images drawn for each prompt (default: the suite's, usually 1); at the same number of images, more prompts narrow "
        "intervals more than more samples of each, so this is for when there are no more prompts",
    )
    own.add_argument(
        "--rounds", type=int, help="number of rounds of latency and memory for each model and setting, each in its own process"
    )
    own.add_argument(
        "--calls",
        type=int,
        help="number of timed calls of each stage in a round; with more calls, the result is closer to the speed of a warm GPU",
    )
    own.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="floating-point type that the pipeline computes in")
    own.add_argument("--prompts", type=Path, help="text file with one prompt per line, or a table or folder of captions")
    add_scoring(own)
    own.add_argument("--guidance-scale", type=float, help="scale of classifier-free guidance; 1 or less turns it off")
    own.add_argument("--scheduler", help="ddim, dpmpp, euler, euler-ancestral, lcm or tcd, or `model` for the model's own")
    own.add_argument("--timestep-spacing", help="leading, trailing or linspace; needs --scheduler other than `model`")
    own.add_argument(
        "--timesteps",
        type=int,
        nargs="+",
        metavar="T",
        help="timestep of each step, such as 999 749 499 249; needs --scheduler other than `model`",
    )
    own.add_argument("--eta", type=float, help="amount of noise that ddim and tcd add at each step, from 0 to 1")
    own.add_argument(
        "--prediction-type", help="what the UNet predicts: epsilon, v_prediction or sample; needs --scheduler other than `model`"
    )
    own.add_argument(
        "--rescale-betas-zero-snr",
        action="store_true",
        default=None,
        help="let the last timestep be pure noise, for models trained so; needs --scheduler other than `model`",
    )


def add_scoring(command: "argparse._ActionsContainer") -> None:
    """Add the options for the settings in `SCORING`."""
    command.add_argument(
        "--metrics",
        nargs="+",
        metavar="NAME",
        help="image metrics to measure instead of the suite's; `sdbench suites NAME` shows those of one",
    )
    command.add_argument("--reference", help="reference statistics for the distances; `sdbench reference list` shows them")


def read(arguments: argparse.Namespace, names: Sequence[str] | None = None) -> "Overrides":
    """The settings that were given.

    Args:
        names: the settings that the command has options for; by default all.

    Raises:
        UserError: there is no reference of the given name.
    """
    from sdbench.api import Overrides

    if arguments.reference:
        from sdbench.reference import cards  # imports scipy, which the gate does without

        cards.check_name(arguments.reference, places_from(arguments).work)
    return Overrides(**{name: getattr(arguments, name) for name in names or [own.name for own in fields(Overrides)]})
