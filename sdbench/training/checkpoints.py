"""What a training run goes on from: its newest checkpoints, each of which is on the disk whole or not at all."""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError  # what torch's weights-only reader raises

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from tqdm import tqdm

from sdbench.errors import UserError
from sdbench.training.processes import from_main, sharing

SLOW_SAVE_S = 1.2  # a checkpoint that takes longer to save is saved more rarely: full-size ones are tens of GB
CHECKPOINTS = 2  # kept of each run: the disk may have lost the newest where the machine went down
STEP = "step-{:08d}"


class Checkpoints:
    """What a run goes on from, in `step-<n>/`: the newest ones.

    Args:
        folder: of the run.
        model: in training.
        optimiser: its optimiser.
        average: of the model's weights, where there is one.
        every_s: between two of them; longer where saving one is slow.
    """

    def __init__(self, folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: nn.Module | None, every_s: float) -> None:
        self._folder, self._optimiser, self._every_s = folder, optimiser, every_s
        self._networks = {"model": model} | ({"average": average} if average is not None else {})
        self._save_at = time.monotonic() + every_s

    def save_if_due(self, step: int, *, last: bool) -> None:
        """Save the state after so many steps, where the last one is old or there are no more steps."""
        if not last and time.monotonic() <= self._save_at:
            return
        began = time.monotonic()
        self._save(STEP.format(step))
        self._save_at = time.monotonic() + self._every_s * max(1.0, (time.monotonic() - began) / SLOW_SAVE_S)

    def _save(self, name: str) -> None:
        older = sorted(self._folder.glob("step-*"))[:-1]
        if older and shutil.disk_usage(self._folder).free < sum(path.stat().st_size for path in older[-1].iterdir()):
            shutil.rmtree(older[-1])  # rather than end for want of room
        shutil.rmtree(self._folder / name, ignore_errors=True)  # one that could not be read, before which the run went on
        with written(name, self._folder) as beside:
            for network_name, network in self._networks.items():
                save_model(network, str(beside / f"{network_name}.safetensors"))
            torch.save(self._optimiser.state_dict(), beside / "optimiser.pt")
        kept = sorted(path for path in self._folder.glob("step-*") if path.name <= name)[-CHECKPOINTS:]
        for old in set(self._folder.glob("step-*")) - set(kept):
            shutil.rmtree(old)

    def resume(self) -> int:
        """Load the newest that can be read, the same in every process => steps taken."""
        with writing("a run", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        newest = from_main(self._load_newest)
        if newest is None:
            return 0
        if sharing()[0] > 0:
            self._load(newest)
        return int(newest.name.removeprefix("step-"))

    def _load_newest(self) -> Path | None:
        damaged: UserError | None = None
        for folder in sorted(self._folder.glob("step-*"), reverse=True):
            try:
                self._load(folder)
            except UserError as error:
                damaged = damaged or error
                continue
            if damaged:
                tqdm.write(f"{damaged}. Going on from the one before: {folder}", file=sys.stderr)
            return folder
        if damaged:
            raise UserError(f"{damaged}. Remove it to begin again")
        return None

    def _load(self, folder: Path) -> None:
        device = next(self._networks["model"].parameters()).device
        try:
            for name, network in self._networks.items():
                load_model(network, folder / f"{name}.safetensors", device=str(device))
            self._optimiser.load_state_dict(torch.load(folder / "optimiser.pt", weights_only=True, map_location=device))
        except torch.OutOfMemoryError:  # of a device that something else may fill: the checkpoint is not damaged
            raise
        except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError, SafetensorError) as error:
            raise UserError(f"cannot go on from checkpoint {folder}: {error}") from error


def last_good(folder: Path) -> str:
    """Which checkpoint an error leaves, in words."""
    checkpoint = max(folder.glob("step-*"), default=None)
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "there was no checkpoint yet"


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Say what could not be written, and which checkpoint stays.

    Raises:
        UserError: the disk takes no more.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the disk says
        raise UserError(f"cannot write {what} to {folder}: {error}; {last_good(folder)}. Make room and run again") from error


@contextmanager
def written(name: str, folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `<folder>/<name>`, whole or not at all.

    Raises:
        UserError: the disk takes no more; then nothing is left of it.
    """
    beside = folder / "unfinished.part"
    shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
    with writing(name, folder):
        try:
            beside.mkdir()
            yield beside
            for path in (*beside.rglob("*"), beside):
                _flush(path)
            beside.rename(folder / name)
            _flush(folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def _flush(path: Path) -> None:
    """See a file or folder onto the disk, where it outlasts the machine's going down."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
