"""Checkpoints of a training run: the newest ones are kept; each is written atomically, with digests of its files."""

import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_model
from torch import Tensor, nn

from sdbench.disk import file_digest, write_json
from sdbench.errors import UserError
from sdbench.notes import print_note
from sdbench.training.processes import broadcast_from_main, rank_and_local_size

SLOW_SAVE_S = 1.2  # if saving takes longer, it is done less often: full-size checkpoints are tens of GB
MAX_EVERY_S = 3600.0  # however slow the disk is: a process that fails saves nothing more
MAX_CHECKPOINTS = 2  # of each run: the newest may be lost when the machine goes down
STEP = "step-{:08d}"
DIGESTS = "digests.json"


class Checkpoints:
    """Saves and loads the newest checkpoints of a run, in `step-<n>/`.

    Args:
        average: running average of the model's weights, if there is one.
        every_s: seconds between two checkpoints; more if saving is slow, up to `MAX_EVERY_S`.
    """

    def __init__(self, folder: Path, model: nn.Module, optimiser: torch.optim.Optimizer, average: nn.Module | None, every_s: float) -> None:
        self._folder, self._optimiser, self._every_s = folder, optimiser, every_s
        self._networks = {"model": model} | ({"average": average} if average is not None else {})
        self._save_at = time.monotonic() + every_s

    def save_if_due(self, step: int, *, last: bool) -> None:
        """Save the state after `step` steps if the latest checkpoint is old enough, or this is the last step of the run or the process.

        Raises:
            UserError: the checkpoint cannot be written.
        """
        if not last and time.monotonic() <= self._save_at:
            return
        began = time.monotonic()
        self._save(STEP.format(step))
        ended = time.monotonic()
        self._save_at = ended + min(MAX_EVERY_S, self._every_s * max(1.0, (ended - began) / SLOW_SAVE_S))

    def _save(self, name: str) -> None:
        older = sorted(self._folder.glob("step-*"))[:-1]
        if older and shutil.disk_usage(self._folder).free < sum(path.stat().st_size for path in older[-1].iterdir()):
            shutil.rmtree(older[-1])  # makes room for the new one
        shutil.rmtree(self._folder / name, ignore_errors=True)  # a damaged one, if the run continued from an earlier checkpoint
        with atomic_folder(name, self._folder) as temporary:
            for network_name, network in self._networks.items():
                save_model(network, str(temporary / f"{network_name}.safetensors"))
            torch.save(self._optimiser.state_dict(), temporary / "optimiser.pt")
            write_json(temporary / DIGESTS, {path.name: file_digest(path) for path in sorted(temporary.iterdir())})
        kept = sorted(path for path in self._folder.glob("step-*") if path.name <= name)[-MAX_CHECKPOINTS:]
        for old in set(self._folder.glob("step-*")) - set(kept):
            shutil.rmtree(old)

    def resume(self) -> int:
        """Load the newest readable checkpoint, the same in every process, and return the number of steps taken.

        Raises:
            UserError: the run's folder cannot be made, or there are checkpoints but none can be read.
        """
        with explain_write_errors("a run", self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
        newest = broadcast_from_main(self._load_newest)
        if newest is None:
            return 0
        if rank_and_local_size()[0] > 0:
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
                print_note(f"{damaged}. Continuing from the one before: {folder}")
            return folder
        if damaged:
            raise UserError(f"{damaged}. To start again, remove it and any other step-* beside it")
        return None

    def _load(self, folder: Path) -> None:
        device = next(self._networks["model"].parameters()).device
        try:
            _check_digests(folder, _read_digests(folder))
            for name, network in self._networks.items():
                load_model(network, folder / f"{name}.safetensors", device=str(device))
            self._optimiser.load_state_dict(torch.load(folder / "optimiser.pt", weights_only=True, map_location=device))
        except (torch.OutOfMemoryError, MemoryError):  # something else may fill the device; the checkpoint is not damaged
            raise
        except Exception as error:  # damaged bytes make torch's reader raise anything, even a KeyError
            reason = str(error).partition(". ")[0]  # the next sentence of torch advises to load it unsafely
            raise UserError(f"cannot continue from checkpoint {folder}: {type(error).__name__}: {reason}") from error


def _check_digests(folder: Path, names: Iterable[str]) -> None:
    """Check files of a checkpoint against their digests: a number that a bit was flipped in could be read, and trained on.

    Raises:
        OSError, ValueError: a file is missing or was changed, or the digests cannot be read.
    """
    digests = _read_digests(folder)
    if changed := [name for name in names if file_digest(folder / name) != digests[name]]:
        raise ValueError(f"{changed[0]} is not as it was written")


def _read_digests(folder: Path) -> dict[str, str]:
    """The digest of each file of a checkpoint, by name."""
    digests: dict[str, str] = json.loads((folder / DIGESTS).read_bytes())
    return digests


def read_newest_network(folder: Path) -> tuple[int, bool, dict[str, Tensor]] | None:
    """Read the network to keep from the newest checkpoint of a run, stopped or going on; older ones are tried where it is damaged.

    Returns:
        The number of steps taken, whether it is the running average of the weights, and its tensors, on the CPU; None without checkpoints.

    Raises:
        UserError: there are checkpoints but none can be read.
    """
    unreadable = dict[Path, str]()
    while newest := max(set(folder.glob("step-*")) - unreadable.keys(), default=None):  # a run that goes on writes others meanwhile
        try:
            is_average = "average.safetensors" in _read_digests(newest)
            name = "average.safetensors" if is_average else "model.safetensors"
            _check_digests(newest, [name])
            return int(newest.name.removeprefix("step-")), is_average, load_file(newest / name)
        except (OSError, ValueError, LookupError, SafetensorError) as error:
            unreadable[newest] = f"cannot read checkpoint {newest}: {type(error).__name__}: {error}"
            print_note(unreadable[newest])
    if unreadable:
        raise UserError(f"{next(iter(unreadable.values()))}; there is none that can be read")
    return None


def describe_last_checkpoint(folder: Path) -> str:
    """The checkpoint that remains after an error, in words for the message."""
    checkpoint = max(folder.glob("step-*"), default=None)
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "there was no checkpoint yet"


@contextmanager
def explain_write_errors(what: str, folder: Path) -> Iterator[None]:
    """Turn a failed write inside the block into an error that names `what` and the checkpoint that remains.

    Raises:
        UserError: writing failed, for example because the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap the OSError
        raise UserError(f"cannot write {what} to {folder}: {error}; {describe_last_checkpoint(folder)}. Make room and run again") from error


@contextmanager
def atomic_folder(name: str, folder: Path) -> Iterator[Path]:
    """Yield a temporary folder to fill, and rename it to `<folder>/<name>` at the end.

    Raises:
        UserError: writing failed; the temporary folder is then removed.
    """
    temporary = folder / "unfinished.part"
    shutil.rmtree(temporary, ignore_errors=True)  # left by a run that was killed
    with explain_write_errors(name, folder):
        try:
            temporary.mkdir()
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                _fsync(path)
            temporary.rename(folder / name)
            _fsync(folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _fsync(path: Path) -> None:
    """Flush a file or folder to the disk, so that it survives a crash of the machine."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # Windows flushes only what is open for writing
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
