"""The training loop that every network of the embedded family goes through.

All randomness of a step follows from (seed, step), so a run that was killed and started again takes the same steps on
the same data and, on one machine, ends with the same bytes.
"""

import json
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sdbench.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps.
        lr: peak learning rate; warmed up over the first `warmup` steps, then a half cosine down to zero.
        ema: decay of the running average of the weights, or None to keep the last weights.
    """

    steps: int
    lr: float
    batch: int
    warmup: int = 50
    weight_decay: float = 0.01
    ema: float | None = None
    clip_norm: float = 1.0
    seed: int = 0


def fit(
    model: nn.Module,
    loss: Callable[[int], dict[str, Tensor]],
    schedule: Schedule,
    folder: Path,
    save_every_s: float = 60.0,
) -> nn.Module:
    """Train `model` in place and return the weights to keep: the running average where there is one.

    Args:
        loss: step -> named scalar terms; their sum is minimised.
        folder: gets `state.pt` (to resume from) and `log.jsonl`.

    Raises:
        UserError: a loss is not finite; the last good checkpoint stays in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimiser = torch.optim.AdamW(model.parameters(), lr=schedule.lr, betas=(0.9, 0.99), weight_decay=schedule.weight_decay, fused=True)
    lr = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _lr_share(step, schedule))
    average = deepcopy(model).requires_grad_(requires_grad=False) if schedule.ema else None
    parts = {"model": model, "optimiser": optimiser, "lr": lr} | ({"average": average} if average is not None else {})
    start = _resume(folder / "state.pt", parts)
    saved = time.monotonic()
    model.train()
    with tqdm(range(start, schedule.steps), initial=start, total=schedule.steps, desc=folder.name, mininterval=2) as bar:
        for step in bar:
            torch.manual_seed((1_000_003 * schedule.seed + step) % 2**32)  # torch looks at 32 bits of a seed
            terms = loss(step)
            total = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(total):
                raise UserError(
                    f"training of {folder.name} met a loss of {total.item()} at step {step}; the last good state is kept in {folder / 'state.pt'}: lower the learning rate and run again"
                )
            optimiser.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            nn.utils.clip_grad_norm_(model.parameters(), schedule.clip_norm)
            optimiser.step()
            lr.step()
            if average is not None and schedule.ema is not None:
                _average(average, model, min(schedule.ema, (step + 1) / (step + 10)))
            if step % 25 == 0:
                values = {name: round(term.item(), 5) for name, term in terms.items()}
                bar.set_postfix(values)
                with (folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps({"step": step, **values}) + "\n")
            if time.monotonic() - saved > save_every_s or step == schedule.steps - 1:
                _save(folder / "state.pt", step + 1, parts)
                saved = time.monotonic()
    return (average if average is not None else model).eval()


def _lr_share(step: int, schedule: Schedule) -> float:
    if step < schedule.warmup:
        return (step + 1) / schedule.warmup
    done = (step - schedule.warmup) / max(1, schedule.steps - schedule.warmup)
    return float(0.5 * (1 + torch.cos(torch.tensor(done * torch.pi))))


@torch.no_grad()
def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for kept, now in zip(average.buffers(), model.buffers(), strict=True):
        kept.copy_(now)


def _save(path: Path, step: int, parts: Mapping[str, Any]) -> None:
    beside = path.with_suffix(".part")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, beside)
    beside.replace(path)


def _resume(path: Path, parts: Mapping[str, Any]) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location=next(parts["model"].parameters()).device)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])
