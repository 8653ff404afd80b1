"""The log of a training run: losses, evaluations, and sample images."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
from PIL import Image
from tensorboardX import SummaryWriter
from torch import nn

from sdbench.disk import json_line, read_json_lines, write_json_lines
from sdbench.training.checkpoints import STEP, explain_write_errors

# Makes an image, H x W x 3 uint8 RGB, and named values with a network in evaluation mode.
Evaluate = Callable[[nn.Module], tuple[npt.NDArray[np.uint8], dict[str, float]]]


def _parse_entry(line: bytes) -> dict[str, float]:
    """The values that a line of the log holds, `step` among them."""
    entry: dict[str, float] = json.loads(line)
    if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
        raise ValueError("expected an object with a step")  # noqa: TRY004  # `read_json_lines` expects it
    return entry


class Journal:
    """Writes `log.jsonl`, TensorBoard's events, and sample images.

    Entries from step `start` on, left by a run that was killed, are removed: those steps are logged again.

    Args:
        start: the step that the run starts or continues from.
        evaluate: see `fit`.
        evaluate_every: steps between two evaluations.
        quiet: write nothing, because another process does.

    Raises:
        UserError: the log cannot be written.
    """

    def __init__(self, folder: Path, start: int, steps: int, evaluate: Evaluate | None, evaluate_every: int, *, quiet: bool) -> None:
        self._folder, self._quiet, self._log = folder, quiet, folder / "log.jsonl"
        self._steps, self._evaluate, self._evaluate_every = steps, evaluate, evaluate_every
        if quiet:
            return
        with explain_write_errors("the log", folder):
            write_json_lines(self._log, (values for values in read_json_lines(self._log, _parse_entry) if values["step"] < start))
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._quiet:
            with suppress(OSError):  # the disk is full, which another error reports
                self._board.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the values of a step.

        Raises:
            UserError: the log cannot be written.
        """
        if self._quiet:
            return
        with explain_write_errors("the log", self._folder), self._log.open("a", encoding="utf-8") as log:
            log.write(json_line({"step": step, **values}))
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def evaluate_if_due(self, taken: int, network: nn.Module) -> dict[str, float]:
        """Evaluate a network after `taken` steps if an evaluation is due, save the image and values, and leave it in training mode.

        Returns:
            The values; empty if none was due.

        Raises:
            UserError: the image or the log cannot be written.
        """
        if self._quiet or self._evaluate is None or not taken or (taken < self._steps and taken % self._evaluate_every):
            return {}
        image, values = self._evaluate(network.eval())
        network.train()
        self.write(taken, values)
        with explain_write_errors("an image", self._folder):
            (self._folder / "samples").mkdir(exist_ok=True)
            Image.fromarray(image).save(self._folder / "samples" / f"{STEP.format(taken)}.png")
        self._board.add_image("samples", image, taken, dataformats="HWC")
        return values
