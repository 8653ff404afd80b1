"""The training loop that every network of this project goes through: the embedded family's and the students.

All randomness of a step follows from (seed, step), so no state of a generator or a sampler has to be kept: a run that was
killed and started again takes the same steps on the same data and, on one CPU, ends with the same bytes. `accelerate`
places the work: one device or several, float32 or mixed precision. Processes share out the batches of a step: whatever their
number, a run takes the same steps on the same data, up to rounding, and may go on with another number.

A run's folder holds `step-<n>/`, the two newest checkpoints, written beside and renamed; `log.jsonl`; TensorBoard's events;
and `samples/`, pictures made on the way.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # what torch's weights-only reader raises
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from tqdm import tqdm

from sdbench.disk import write_bytes
from sdbench.errors import UserError
from sdbench.training.processes import from_main, sharing

Loss = Callable[[int], dict[str, Tensor]]
Watch = Callable[[nn.Module], tuple[npt.NDArray[np.uint8], dict[str, float]]]
LOG_EVERY = 25  # steps
SLOW_SAVE_S = 1.2  # a checkpoint that takes longer to save is saved more rarely: full-size ones are tens of GB
CHECKPOINTS = 2  # kept of each run: the disk may have lost the newest where the machine went down
_STEP = "step-{:08d}"


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps.
        lr: peak learning rate; warmed up over the first `warmup` steps.
        batch: pictures in one forward pass.
        weight_decay: AdamW's.
        ema: decay of the running average of the weights, or None to keep the last weights.
        clip_norm: of the gradient, at most.
        accumulation: batches that an optimiser step sums up, shared out over the processes.
        betas: AdamW's.
        lr_decay: how the learning rate goes on after its warm-up: by a half cosine down to zero, or not at all.
    """

    steps: int
    lr: float
    batch: int
    warmup: int = 50
    weight_decay: float = 0.01
    ema: float | None = None
    clip_norm: float = 1.0
    seed: int = 0
    accumulation: int = 1
    betas: tuple[float, float] = (0.9, 0.99)
    lr_decay: Literal["cosine", "none"] = "cosine"

    def lr_at(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        if self.lr_decay == "none":
            return self.lr
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return float(self.lr * 0.5 * (1 + np.cos(np.pi * done)))


def rows_of(step: int, n: int, batch: int, seed: int) -> npt.NDArray[np.int64]:
    """Which of n examples step number `step` trains on => batch indices."""
    return np.random.default_rng((seed, step)).integers(n, size=batch)


def fit(
    model: nn.Module,
    loss: Loss,
    schedule: Schedule,
    folder: Path,
    *,
    accelerator: Accelerator | None = None,
    watch: Watch | None = None,
    watch_every: int = 500,
    save_every_s: float = 60.0,
) -> nn.Module:
    """Train `model` in place and return the weights to keep: the running average where there is one.

    Args:
        model: as `accelerator.prepare` made it, where an accelerator is given.
        loss: number of a batch -> named scalar terms, each a mean over the batch; their sum is minimised.
        folder: see above.
        watch: the weights to keep so far -> an H x W x 3 picture and named values; called every `watch_every` steps and at the end.
        save_every_s: between two checkpoints; longer where saving one is slow, so that it takes 2 % of the time at most.

    A lone step whose loss or gradient is not finite is skipped and logged.

    Raises:
        UserError: two steps on end are not finite, or the last, or a checkpoint cannot be read or written; the last good one stays.
        UserError: the batches of a step cannot be shared out evenly over the processes.
    """
    accelerator = accelerator or Accelerator(cpu=next(model.parameters()).device.type == "cpu")
    check_shares(schedule.accumulation, accelerator.num_processes)
    plain: nn.Module = accelerator.unwrap_model(model)
    optimiser = torch.optim.AdamW(plain.parameters(), lr=schedule.lr, betas=schedule.betas, weight_decay=schedule.weight_decay, fused=True)
    average = deepcopy(plain).requires_grad_(requires_grad=False) if schedule.ema else None
    kept = plain if average is None else average
    checkpoints = _Checkpoints(folder, plain, optimiser, average, save_every_s)
    start, main = checkpoints.resume(), accelerator.is_main_process
    a_step, skipped = schedule.batch * schedule.accumulation, False
    with _Journal(folder, start, quiet=not main) as journal, _bar(folder.name, start, schedule.steps, a_step, quiet=not main) as bar:

        def look(taken: int) -> None:
            if main and watch is not None and taken and (taken == schedule.steps or taken % watch_every == 0):
                journal.show(taken, *watch(kept.eval()))
                plain.train()

        plain.train()
        look(start)  # the run may have been killed before it looked
        for step in range(start, schedule.steps):
            optimiser.param_groups[0]["lr"] = schedule.lr_at(step)
            terms = _backward(model, loss, schedule, step, accelerator)
            norm = nn.utils.clip_grad_norm_(plain.parameters(), schedule.clip_norm)
            was_skipped, skipped = skipped, not torch.isfinite(norm)
            if skipped and (was_skipped or step == schedule.steps - 1):
                raise UserError(_not_finite(folder, step, terms))
            if not skipped:
                optimiser.step()
            optimiser.zero_grad(set_to_none=accelerator.num_processes == 1)  # of several they may lie in buckets, which stay anyway
            if average is not None and schedule.ema is not None and not skipped:
                _average(average, plain, min(schedule.ema, (step + 1) / (step + 10)))
            bar.update(a_step)
            if skipped:
                journal.write(step, {"skipped": 1.0})
            elif step % LOG_EVERY == 0:
                values = {name: round(term.item(), 5) for name, term in terms.items()}
                bar.set_postfix(values)
                journal.write(step, values | {"lr": optimiser.param_groups[0]["lr"], "gradient_norm": round(norm.item(), 5)})
            if main:
                checkpoints.save_if_due(step + 1, last=step == schedule.steps - 1)
            look(step + 1)
    return kept.eval()


def most_sharing(accumulation: int, processes: int) -> int:
    """The largest number of processes, at most so many, that a step's `accumulation` batches can be shared out over evenly."""
    return max(number for number in range(1, processes + 1) if accumulation % number == 0)


def check_shares(accumulation: int, processes: int) -> None:
    """Make sure that the processes can share out the batches of a step evenly.

    Raises:
        UserError: they cannot; the message says how many could.
    """
    if accumulation % processes:
        raise UserError(
            f"{accumulation} batches a step cannot be shared out evenly over {processes} processes; start {most_sharing(accumulation, processes)}, or change the recipe's accumulation"
        )


def _backward(model: nn.Module, loss: Loss, schedule: Schedule, step: int, accelerator: Accelerator) -> dict[str, Tensor]:
    """Leave the gradients of a step => its terms, averaged over the accumulated batches of this process."""
    sums: dict[str, Tensor] = {}
    parts = range(accelerator.process_index, schedule.accumulation, accelerator.num_processes)
    for part in parts:
        number = step * schedule.accumulation + part
        torch.manual_seed((1_000_003 * schedule.seed + number) % 2**32)  # torch looks at 32 bits of a seed
        with accelerator.no_sync(model) if part < parts[-1] else nullcontext():
            with accelerator.autocast():
                terms = loss(number)
            accelerator.backward(torch.stack(list(terms.values())).sum() / len(parts))
        sums = {name: sums.get(name, 0) + term.detach() / len(parts) for name, term in terms.items()}
    return sums


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, now in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(now)


def _bar(title: str, start: int, steps: int, a_step: int, *, quiet: bool) -> Any:
    return tqdm(disable=quiet, initial=start * a_step, total=steps * a_step, desc=title, unit="image", mininterval=2, leave=start < steps)


def _not_finite(folder: Path, step: int, terms: dict[str, Tensor]) -> str:
    values = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
    return f"training of {folder.name} met a loss or gradient that is not finite at step {step} ({values}); {_last_good(folder)}. The same steps come when it runs again: change what they follow from, such as the learning rate or the seed, which begins a new run"


def _last_good(folder: Path) -> str:
    checkpoint = _newest(folder)
    return f"the last good checkpoint is {checkpoint}" if checkpoint else "there was no checkpoint yet"


def _newest(folder: Path) -> Path | None:
    return max(folder.glob("step-*"), default=None)


@contextmanager
def _writing(what: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap what the disk says
        raise UserError(f"cannot write {what} to {folder}: {error}; {_last_good(folder)}. Make room and run again") from error


@contextmanager
def written(name: str, folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `<folder>/<name>`, whole or not at all.

    Raises:
        UserError: the disk takes no more; then nothing is left of it.
    """
    beside = folder / "unfinished.part"
    shutil.rmtree(beside, ignore_errors=True)  # of a run that was killed
    with _writing(name, folder):
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


class _Checkpoints:
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
        self._save(_STEP.format(step))
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
        with _writing("a run", self._folder):
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
        except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError, SafetensorError) as error:
            raise UserError(f"cannot go on from checkpoint {folder}: {error}") from error


class _Journal:
    """`log.jsonl`, TensorBoard's events and the pictures; what was noted of the step to go on from and later is noted again."""

    def __init__(self, folder: Path, start: int, *, quiet: bool) -> None:
        self._folder, self._quiet, self._log = folder, quiet, folder / "log.jsonl"
        if quiet:
            return
        with _writing("the log", folder):
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
        with _writing("the log", self._folder), self._log.open("a") as log:
            log.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def show(self, step: int, picture: npt.NDArray[np.uint8], values: dict[str, float]) -> None:
        """Keep what the weights make after so many steps."""
        self.write(step, values)
        with _writing("a picture", self._folder):
            (self._folder / "samples").mkdir(exist_ok=True)
            Image.fromarray(picture).save(self._folder / "samples" / f"{_STEP.format(step)}.png")
        self._board.add_image("samples", picture, step, dataformats="HWC")
