"""Options that several commands share."""

import argparse
import math
from collections.abc import Callable

TEACHER = "folder of a whole pipeline, a name such as sdxl, or owner/name on the Hub (default: the embedded teacher)"


def within(kind: type[int] | type[float], least: float, most: float = math.inf) -> Callable[[str], float]:
    """What reads a number of that kind from `least` to `most`, and says so where it finds something else."""

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not (least <= number <= most and math.isfinite(number)):
            limits = f"from {least:g} to {most:g}" if math.isfinite(most) else f"of at least {least:g}"
            raise argparse.ArgumentTypeError(f"{text!r} is no {'whole ' if kind is int else ''}number {limits}")
        return number

    return parse


count = within(int, 1)


def add_data(command: argparse.ArgumentParser, help_text: str) -> None:
    """Add `--data` and `--caption-column`."""
    command.add_argument("--data", action="append", help=f"{help_text}; may be given again: the sources follow each other")
    command.add_argument("--caption-column", help="column of --data with the captions (default: caption, text, prompt or clean_prompts)")


def add_device(command: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    command.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")


def settle_device(options: argparse.Namespace) -> None:
    """Where a command has a `--device` that was not given, take the GPU, if there is one.

    Raises:
        UserError: the one that was given is not here.
    """
    if "device" in options:
        from sdbench.machine import choose_device

        options.device = choose_device(options.device)
