"""Options that several commands share."""

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from distillation.recipe import Recipe, shipped_recipes
from sdbench.errors import UserError
from sdbench.models.architectures import Family

Command = Callable[[argparse.Namespace], int]  # returns the process's exit code
AddCommand = Callable[[str, Command, str], argparse.ArgumentParser]  # from name, command and help text
MAX_UNDECODABLE = 0.01  # share of the images that may be left out, unless the user says otherwise
RESULTS = Path("results")
WORK = RESULTS / "runs" / "distillation"  # ignored by git
TEACHER = "folder of a complete pipeline, a name such as sdxl, or owner/name on the Hub (default: the embedded teacher)"


def number_between(kind: type[int] | type[float], least: float, most: float = math.inf) -> Callable[[str], float]:
    """A parser, for argparse, of finite numbers from `least` to `most`."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not (least <= number <= most and math.isfinite(number)):
            limits = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is not a {'whole ' if kind is int else ''}number {limits}")
        return number

    return parse


positive_int = number_between(int, 1)


def add_recipe(command: argparse.ArgumentParser) -> None:
    """Add the recipe."""
    command.add_argument("recipe", help=f"name of a shipped recipe ({', '.join(shipped_recipes())}), or path of a .toml file")


def add_estimate(command: argparse.ArgumentParser) -> None:
    """Add the options of an estimate of what training takes, `--steps` among them."""
    add_steps(command)
    command.add_argument(
        "--family",
        choices=get_args(Family),
        help="family whose widths and settings to use (default: scenes, or sdxl if the recipe trains that alone)",
    )
    command.add_argument(
        "--tflops",
        type=number_between(float, 1e-6),
        metavar="X",
        help="estimate the time on a GPU that reaches X * 10^12 FLOPs per second (default: an assumption that the output states)",
    )
    command.add_argument(
        "--usd-per-hour", type=number_between(float, 1e-6), metavar="X", help="estimate the cost at this price per GPU hour"
    )


def chosen_family(options: argparse.Namespace, recipe: Recipe) -> Family:
    """The family that `--family` names; without it, the first that the recipe trains.

    Raises:
        UserError: the recipe has no settings for it.
    """
    family: Family = options.family or recipe.families[0]
    recipe.settings(family)
    return family


def add_work(command: argparse.ArgumentParser) -> None:
    """Add `--work`."""
    command.add_argument("--work", type=Path, default=WORK, help="folder for intermediate results and checkpoints (default: %(default)s)")


def add_results(command: argparse.ArgumentParser) -> None:
    """Add `--results`, and a `--work` that by default lies in it, see `work_folder`."""
    command.add_argument("--results", type=Path, default=RESULTS, help="folder of results (default: %(default)s)")
    command.add_argument("--work", type=Path, help="folder for intermediate results (default: RESULTS/runs/distillation)")


def work_folder(options: argparse.Namespace) -> Path:
    """The folder for intermediate results of a command with `add_results`."""
    work: Path | None = options.work
    return work or Path(options.results / WORK.relative_to(RESULTS))


def add_steps(command: argparse.ArgumentParser) -> None:
    """Add `--steps`."""
    command.add_argument("--steps", type=positive_int, help="number of training steps, over all stages (default: the recipe's)")


def add_data(command: argparse.ArgumentParser, help_text: str) -> None:
    """Add `--data`, `--caption-column` and `--max-undecodable`."""
    command.add_argument("--data", action="append", help=f"{help_text}; may be repeated to join several sources")
    command.add_argument(
        "--caption-column",
        help="column with the captions, in those --data that have it (default, also in the others: caption, text, prompt or clean_prompts)",
    )
    command.add_argument(
        "--max-undecodable",
        type=number_between(float, 0, 0.5),
        default=MAX_UNDECODABLE,
        metavar="SHARE",
        help="leave out images that are missing or damaged or have no caption, up to this share of all (default: %(default)s)",
    )


def check_data(options: argparse.Namespace) -> None:
    """Check the options of `add_data`.

    Raises:
        UserError: there is a column or a share, but no data.
    """
    if options.data:
        return
    if options.caption_column:
        raise UserError("--caption-column names a column of --data, which is not given; add --data, or leave --caption-column out")
    if options.max_undecodable != MAX_UNDECODABLE:
        raise UserError("--max-undecodable is a share of --data, which is not given; add --data, or leave --max-undecodable out")


def training_device(asked: str | None) -> Literal["cpu", "cuda"]:
    """The device to train on; a GPU that is asked for by its index becomes the current one of this process.

    Raises:
        UserError: this machine has no such device, or the GPU is named for several processes.
    """
    from sdbench.machine import choose_device

    device = choose_device(asked)
    if device.startswith("cuda:"):
        import torch

        if "WORLD_SIZE" in os.environ:
            raise UserError(f"each process that torchrun starts trains on a GPU of its own; name no index: --device cuda, not {device}")
        torch.cuda.set_device(device)
    return "cpu" if device == "cpu" else "cuda"
