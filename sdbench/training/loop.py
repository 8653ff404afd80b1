"""The training loop that every network of this project goes through: the embedded family's and the students.

All randomness of a step follows from (seed, step), so no state of a generator or a sampler has to be kept: a run that was
killed and started again takes the same steps on the same data and, on one CPU, ends with the same bytes. `accelerate`
places the work: one device or several, float32 or mixed precision. Processes share out the batches of a step: whatever their
number, a run takes the same steps on the same data, up to rounding, and may go on with another number.

A run's folder holds `step-<n>/`, the two newest checkpoints, written beside and renamed; `log.jsonl`; TensorBoard's events;
and `samples/`, pictures made on the way.
"""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from sdbench.errors import UserError
from sdbench.training.checkpoints import Checkpoints, last_good
from sdbench.training.journal import Journal, Watch

Loss = Callable[[int], dict[str, Tensor]]
LOG_EVERY = 25  # steps


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
    checkpoints = Checkpoints(folder, plain, optimiser, average, save_every_s)
    start, main = checkpoints.resume(), accelerator.is_main_process
    a_step, skipped = schedule.batch * schedule.accumulation, False
    with (
        Journal(folder, start, schedule.steps, watch, watch_every, quiet=not main) as journal,
        _bar(folder.name, start, schedule.steps, a_step, quiet=not main) as bar,
    ):
        plain.train()
        journal.look(start, kept)  # the run may have been killed before it looked
        for step in range(start, schedule.steps):
            optimiser.param_groups[0]["lr"] = schedule.lr_at(step)
            terms = _backward(model, loss, schedule, step, accelerator)
            norm = nn.utils.clip_grad_norm_(plain.parameters(), schedule.clip_norm)
            was_skipped, skipped = skipped, not torch.isfinite(norm)
            if skipped and (was_skipped or step == schedule.steps - 1):
                raise UserError(_not_finite(folder, step, accelerator.reduce(terms, "mean")))
            if not skipped:
                optimiser.step()
            optimiser.zero_grad(set_to_none=accelerator.num_processes == 1)  # of several they may lie in buckets, which stay anyway
            if average is not None and schedule.ema is not None and not skipped:
                _average(average, plain, min(schedule.ema, (step + 1) / (step + 10)))
            bar.update(a_step)
            if skipped:
                journal.write(step, {"skipped": 1.0})
            elif step % LOG_EVERY == 0:
                values = {name: round(term.item(), 5) for name, term in accelerator.reduce(terms, "mean").items()}
                bar.set_postfix(values)
                journal.write(step, values | {"lr": optimiser.param_groups[0]["lr"], "gradient_norm": round(norm.item(), 5)})
            if main:
                checkpoints.save_if_due(step + 1, last=step == schedule.steps - 1)
            journal.look(step + 1, kept)
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
    return f"training of {folder.name} met a loss or gradient that is not finite at step {step} ({values}); {last_good(folder)}. The same steps come when it runs again: change what they follow from, such as the learning rate or the seed, which begins a new run"
