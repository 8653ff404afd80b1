"""The training loop for all networks of this project: those of the embedded family, and students.

All randomness depends only on (seed, number of the batch), so no state of a generator or sampler is saved: a run that was killed and
started again takes the same steps on the same data and, on one CPU, ends with the same bytes. `accelerate` handles devices,
processes and mixed precision. The processes share the batches of a step: with any number of them, a run takes the same steps on
the same data, up to rounding, and it can continue with another number.

A run's folder holds `step-<n>/`, the two newest checkpoints, written atomically; `log.jsonl`; TensorBoard's events; and
`samples/`, images drawn during training.
"""

from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sdbench.errors import UserError
from sdbench.notes import progress
from sdbench.training.checkpoints import Checkpoints, describe_last_checkpoint
from sdbench.training.interruption import Interruption
from sdbench.training.journal import Evaluate, Journal

M = TypeVar("M", bound=nn.Module)
Loss = Callable[[int], dict[str, Tensor]]
LOG_EVERY = 25  # steps


class NotFiniteError(UserError):
    """The loss or the gradient is not finite, and running again would meet the same."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: number of optimiser steps.
        lr: peak learning rate, after a linear warm-up over `warmup` steps.
        batch: images in one forward pass.
        weight_decay, betas: of AdamW.
        ema: decay of the running average of the weights, or 0 or None to keep the last weights.
        clip_norm: maximum norm of the gradient.
        accumulation: batches in an optimiser step, over all processes.
        lr_decay: the learning rate after the warm-up: "cosine" follows a half cosine down to zero, "none" stays constant.
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
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return float(self.lr * 0.5 * (1 + np.cos(np.pi * progress)))


def draw_rows(number: int, n: int, batch: int, seed: int) -> npt.NDArray[np.int64]:
    """Draw, with replacement, which of n examples are in batch number `number` of a run; returns `batch` row numbers."""
    return np.random.default_rng((seed, number)).integers(n, size=batch)


def fit(
    model: M,
    loss: Loss,
    schedule: Schedule,
    folder: Path,
    *,
    accelerator: Accelerator | None = None,
    evaluate: Evaluate | None = None,
    evaluate_every: int = 500,
    save_every_s: float = 60.0,
    after_step: Callable[[int, nn.Module], object] = lambda *_: None,
) -> M:
    """Train `model` in place, and return the network to keep: the running average of the weights if there is one, else the model.

    A single step whose loss or gradient is not finite is skipped and logged.

    Args:
        model: prepared by the accelerator, if one is given.
        loss: computes named scalar terms for the batch of a number, each a mean over the batch; their sum is minimised.
        folder: of the run, see the module.
        accelerator: by default a new one on the model's device.
        evaluate: makes an H x W x 3 uint8 image and named values with the network to keep so far.
        evaluate_every: steps between two evaluations; there is also one at the end.
        save_every_s: seconds between two checkpoints; more, up to an hour, if saving is slow: it takes about 2 % of the time.
        after_step: called in the main process after each step, once that is saved if it is to be, with the number of steps taken and the
            network to keep so far; also at the start, since a run may have been killed between saving and this.

    Raises:
        KeyboardInterrupt: at a SIGINT, SIGTERM or SIGHUP that has a handler, once the step is finished and saved.
        NotFiniteError: two consecutive steps, or the last one, are not finite. The last good checkpoint remains.
        UserError: the batches of a step cannot be shared evenly by the processes; or a checkpoint cannot be read, or a file cannot be
            written. The last good checkpoint remains.
    """
    accelerator = accelerator or Accelerator(cpu=next(model.parameters()).device.type == "cpu")
    check_even_split(schedule.accumulation, accelerator.num_processes)
    plain: M = accelerator.unwrap_model(model)
    optimiser = torch.optim.AdamW(plain.parameters(), lr=schedule.lr, betas=schedule.betas, weight_decay=schedule.weight_decay, fused=True)
    average = deepcopy(plain).requires_grad_(requires_grad=False) if schedule.ema else None
    kept = plain if average is None else average
    checkpoints = Checkpoints(folder, plain, optimiser, average, save_every_s)
    start, is_main, was_skipped = checkpoints.resume(), accelerator.is_main_process, False
    with (
        Interruption() as interruption,
        Journal(folder, start, schedule.steps, evaluate, evaluate_every, quiet=not is_main) as journal,
        _progress_bar(folder.name, start, schedule, quiet=not is_main) as bar,
    ):
        plain.train()
        evaluated = journal.evaluate_if_due(start, kept)  # the run may have been killed between saving and evaluating
        if is_main:
            after_step(start, kept)
        for step in range(start, schedule.steps):
            lr = optimiser.param_groups[0]["lr"] = schedule.lr_at(step)
            terms = _backward(model, loss, schedule, step, accelerator, is_first=step == start)
            norm = nn.utils.clip_grad_norm_(plain.parameters(), schedule.clip_norm)
            is_last, is_skipped = step == schedule.steps - 1, not torch.isfinite(norm)
            if is_skipped and (was_skipped or is_last):
                raise NotFiniteError(_not_finite_message(folder, step, accelerator.reduce(terms, "mean")))
            if not is_skipped:
                optimiser.step()
                _update_average(average, plain, schedule.ema, step)
            optimiser.zero_grad(set_to_none=accelerator.num_processes == 1)  # with several, gradients may be views of buckets, which stay
            was_skipped = is_skipped
            if is_skipped:
                journal.write(step, {"skipped": 1.0})
            elif step % LOG_EVERY == 0:
                values = {name: round(term.item(), 5) for name, term in accelerator.reduce(terms, "mean").items()}
                bar.set_postfix(values | evaluated, refresh=False)
                journal.write(step, values | {"lr": lr, "gradient_norm": round(norm.item(), 5)})
            is_interrupted = interruption.is_marked(accelerator)
            if is_main:
                checkpoints.save_if_due(step + 1, last=is_last or is_interrupted)
            if is_interrupted:
                accelerator.wait_for_everyone()  # torchrun ends all processes as soon as one has ended
                interruption.act()
            bar.update(schedule.batch * schedule.accumulation)
            evaluated = journal.evaluate_if_due(step + 1, kept) or evaluated
            if is_main:
                after_step(step + 1, kept)
    return kept.eval()


def max_even_processes(accumulation: int, processes: int) -> int:
    """The largest number of processes, up to `processes`, that can share the `accumulation` batches of a step evenly."""
    return max(number for number in range(1, processes + 1) if accumulation % number == 0)


def check_even_split(accumulation: int, processes: int) -> None:
    """Check that the processes can share the batches of a step evenly.

    Raises:
        UserError: the processes cannot; the message says how many could.
    """
    if accumulation % processes:
        raise UserError(
            f"{accumulation} batches per step cannot be shared evenly by {processes} processes; start "
            f"{max_even_processes(accumulation, processes)}, or change the recipe's accumulation, and its batch the other way, which keeps "
            "the images per step"
        )


def _backward(
    model: nn.Module, loss: Loss, schedule: Schedule, step: int, accelerator: Accelerator, *, is_first: bool
) -> dict[str, Tensor]:
    """Compute the gradients of a step, and return its loss terms, averaged over the batches of this process.

    Several processes average gradients once, after the last batch; in the first step of a process after each, which is the same up to
    rounding: only averaging puts gradients into the buckets that are there for it, and before they would take as much memory again.
    """
    sums: dict[str, Tensor] = {}
    parts = range(accelerator.process_index, schedule.accumulation, accelerator.num_processes)
    for part in parts:
        number = step * schedule.accumulation + part
        torch.manual_seed((1_000_003 * schedule.seed + number) % 2**32)  # torch uses 32 bits of a seed
        with nullcontext() if is_first or part == parts[-1] else accelerator.no_sync(model):
            with accelerator.autocast():
                terms = loss(number)
            accelerator.backward(torch.stack(list(terms.values())).sum() / len(parts))
        sums = {name: sums.get(name, 0) + term.detach() / len(parts) for name, term in terms.items()}
    return sums


@torch.no_grad()
def _update_average(average: nn.Module | None, model: nn.Module, ema: float | None, step: int) -> None:
    """Update the running average of the weights, if there is one; its decay is smaller in the first steps."""
    if average is None or ema is None:
        return
    decay = min(ema, (step + 1) / (step + 10))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for averaged, current in zip(average.buffers(), model.buffers(), strict=True):
        averaged.copy_(current)


def _progress_bar(title: str, start: int, schedule: Schedule, *, quiet: bool) -> Any:
    images, leave = schedule.batch * schedule.accumulation, start < schedule.steps
    initial, total = start * images, schedule.steps * images
    return progress(disable=quiet, initial=initial, total=total, desc=title, unit="image", leave=leave)


def _not_finite_message(folder: Path, step: int, terms: dict[str, Tensor]) -> str:
    values = ", ".join(f"{name} {term.item():g}" for name, term in terms.items())
    return (
        f"training of {folder.name} met a loss or gradient that is not finite at step {step} ({values}); "
        f"{describe_last_checkpoint(folder)}. Running it again repeats the same steps: change a setting such as the learning rate or the "
        "seed, which starts a new run"
    )
