"""What a training run says of itself: its losses, and pictures on the way."""

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

from sdbench.disk import write_bytes
from sdbench.training.checkpoints import STEP, writing

Watch = Callable[[nn.Module], tuple[npt.NDArray[np.uint8], dict[str, float]]]


class Journal:
    """`log.jsonl`, TensorBoard's events and the pictures; what was noted of the step to go on from and later is noted again.

    Args:
        folder: of the run.
        start: step to go on from.
        steps: of the run.
        watch: as `fit` takes it.
        watch_every: steps.
        quiet: note nothing: another process does.
    """

    def __init__(self, folder: Path, start: int, steps: int, watch: Watch | None, watch_every: int, *, quiet: bool) -> None:
        self._folder, self._quiet, self._log = folder, quiet, folder / "log.jsonl"
        self._steps, self._watch, self._watch_every = steps, watch, watch_every
        if quiet:
            return
        with writing("the log", folder):
            lines = self._log.read_text().splitlines(keepends=True) if self._log.exists() else []
            kept = (line for line in lines if line.endswith("\n") and json.loads(line)["step"] < start)
            write_bytes(self._log, "".join(kept).encode())
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._quiet:
            with suppress(OSError):  # a full disk, which another error says
                self._board.close()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Note the values of a step."""
        if self._quiet:
            return
        with writing("the log", self._folder), self._log.open("a") as log:
            log.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def look(self, taken: int, network: nn.Module) -> None:
        """Keep what a network makes after so many steps, where it is time to look."""
        if self._quiet or self._watch is None or not taken or (taken < self._steps and taken % self._watch_every):
            return
        training = network.training
        picture, values = self._watch(network.eval())
        network.train(training)
        self.write(taken, values)
        with writing("a picture", self._folder):
            (self._folder / "samples").mkdir(exist_ok=True)
            Image.fromarray(picture).save(self._folder / "samples" / f"{STEP.format(taken)}.png")
        self._board.add_image("samples", picture, taken, dataformats="HWC")
