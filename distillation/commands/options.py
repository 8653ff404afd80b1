"""Options that several commands share."""

import argparse
import math
from collections.abc import Callable

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


def add_data(command: argparse.ArgumentParser, help_text: str) -> None:
    """Add `--data` and `--caption-column`."""
    command.add_argument("--data", action="append", help=f"{help_text}; may be repeated to join several sources")
    command.add_argument("--caption-column", help="column of --data with the captions (default: caption, text, prompt or clean_prompts)")


def add_device(command: argparse.ArgumentParser) -> None:
    """Add `--device`."""
    command.add_argument("--device", choices=("cpu", "cuda"), help="device to compute on (default: cuda if available, else cpu)")


def resolve_device(options: argparse.Namespace) -> None:
    """Set the device of a command that has `--device`; default: the GPU, if there is one.

    Raises:
        UserError: this machine lacks the device that was given.
    """
    if "device" in options:
        from sdbench.machine import choose_device

        options.device = choose_device(options.device)
