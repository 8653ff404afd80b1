"""The cut that costs least: of all plans within a budget, the one whose removed parts have the least summed output loss.

Solved exactly as a 0/1 integer programme. That losses of single parts may be added is LAPTOP-Diff's finding (arXiv
2404.11098). A mapping of parts, here as in `sensitivity`, has one number for each block of each attention, and under
`mid_block` one for the middle's attention and second resnet together, blocks included.
"""

import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from scipy.optimize import Bounds, LinearConstraint, milp

from distillation.estimate import count
from distillation.plan import MIDDLE, Plan
from distillation.prune import on_meta, student_config
from distillation.sensitivity.removal import SECOND_RESNET, WHOLE
from sdbench.arrays import F64
from sdbench.errors import UserError
from sdbench.models.architectures import Config, depths
from sdbench.probes.meters import synchronised
from sdbench.training.latents import Batch, add_noise, predict

I64 = npt.NDArray[np.int64]
Parts = Mapping[str, F64] | Mapping[str, I64]
TWIN = "down_blocks.2.attentions.0"  # whose depth a config gives to the middle
WARMUP, CALLS = 3, 15
LEAD_CYCLES = 10**8  # of a card's clock: 50 ms and more, in which a host launches some thousands of kernels


@dataclass(frozen=True)
class Cost:
    """What a UNet costs.

    Attributes:
        total: of the teacher, in `unit`.
        parts: what going without each part saves.
        unit: `parameters`, or `ns` for the time of one call.
    """

    total: int
    parts: Mapping[str, I64]
    unit: str

    def of(self, plan: Plan) -> int:
        """What is left under a plan."""
        return self.total - int(removed(self.parts, plan))

    @property
    def least(self) -> int:
        """What is left with the cheapest block of each attention, and none in the middle."""
        kept = sum(int(row.min()) for path, row in self.parts.items() if path not in (MIDDLE, WHOLE))
        return self.of(Plan({path: () for path in self.parts if path not in (MIDDLE, WHOLE)}, 0)) + kept

    @property
    def shares(self) -> dict[str, F64]:
        """Of the total, that each part has."""
        return {path: row / self.total for path, row in self.parts.items()}

    def said(self, amount: int) -> str:
        """An amount with its share of the teacher's."""
        number = f"{amount / 1e6:.3f} ms a call" if self.unit == "ns" else f"{amount:,} parameters"
        return f"{number} ({amount / self.total:.2%} of the teacher's)"


def removed(parts: Parts, plan: Plan) -> float:
    """Sum over what a plan takes out; where the middle goes, its whole stands for its blocks."""
    total = 0.0
    for path, row in parts.items():
        if path == WHOLE:
            total += row[0] * (MIDDLE not in plan.blocks)
        elif path in plan.blocks:
            total += sum(value for block, value in enumerate(row) if block not in plan.blocks[path])
    return total


def parameters(config: Config) -> Cost:
    """Exact counts of a UNet and its parts."""
    unet = on_meta(config)
    parts = {
        path: np.array([count(unet.get_submodule(f"{path}.transformer_blocks.{block}")) for block in range(depth)])
        for path, depth in depths(config).items()
    }
    if MIDDLE in parts:
        plan = Plan({path: tuple(range(depth)) for path, depth in depths(config).items() if path != MIDDLE}, 0)
        parts[WHOLE] = np.array([count(unet) - count(on_meta(student_config(config, plan)))])
    return Cost(count(unet), parts, "parameters")


@torch.no_grad()
def times(unet: UNet2DConditionModel, batch: Batch, scheduler: DDIMScheduler) -> Cost:
    """Measured times of one call of a UNet and of its parts, medians over calls.

    On a card they are those of its kernels: each call waits in the stream until the host, which may be the slower of the two,
    has filled the queue, and nothing waits for the card before the end.
    """
    names = {path: [f"{path}.transformer_blocks.{block}" for block in range(depth)] for path, depth in depths(unet.config).items()}
    middle = [MIDDLE, SECOND_RESNET] if MIDDLE in names else []
    marks: dict[str, list[Any]] = {name: [] for name in ["", *middle, *(block for blocks in names.values() for block in blocks)]}
    noised, batch = add_noise(scheduler, batch).to(unet.dtype), batch.to(unet.dtype)
    on_card = unet.device.type == "cuda"
    with ExitStack() as hooks:
        for name, seen in marks.items():
            module, mark = unet.get_submodule(name), _marker(seen, _event if on_card else perf_counter)
            hooks.enter_context(module.register_forward_pre_hook(mark))
            hooks.enter_context(module.register_forward_hook(mark))
        for _ in range(WARMUP + CALLS):
            if on_card:
                torch.cuda._sleep(LEAD_CYCLES)  # type: ignore[no-untyped-call]  # noqa: SLF001  # no public call waits in the stream
            predict(unet, noised, batch)
    synchronised()
    ns = {name: round(1e9 * median(_seconds(seen)[WARMUP:])) for name, seen in marks.items()}
    parts = {path: np.array([ns[block] for block in blocks]) for path, blocks in names.items()}
    return Cost(ns[""], parts | ({WHOLE: np.array([sum(ns[name] for name in middle)])} if middle else {}), "ns")


def _marker(seen: list[Any], now: Callable[[], Any]) -> Any:
    return lambda *_: seen.append(now())


def _event() -> torch.cuda.Event:
    """The moment at which the card gets here."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's
    event.record()
    return event


def _seconds(marks: Sequence[Any]) -> list[float]:
    """Of each call, from marks before and after it."""
    pairs = zip(marks[::2], marks[1::2], strict=True)
    return [end - start if isinstance(start, float) else start.elapsed_time(end) / 1000 for start, end in pairs]


def least_loss(losses: Mapping[str, F64], cost: Cost, limit: int) -> Plan:
    """The plan of least summed loss that leaves at most `limit` of the cost; every plan has a diffusers config.

    Raises:
        UserError: no plan is that small.
    """
    if limit < cost.least:
        raise UserError(
            f"no plan comes down to {cost.said(limit)}; the smallest, with one block in each attention and none in the middle, has "
            f"{cost.said(cost.least)}. Allow at least that"
        )
    depth = {path: len(row) for path, row in losses.items() if path != WHOLE}
    saved = _row(cost.parts, depth)
    step = math.gcd(*map(int, saved)) or 1  # small whole numbers keep clear of the solver's tolerance
    needed = LinearConstraint(saved / step, lb=math.ceil((cost.total - limit) / step))
    weights = _row(losses, depth)
    with _silent():
        found = milp(
            weights * (1e6 / np.abs(weights).max(initial=1e-300)),  # gaps under 1e-6 count as closed
            integrality=np.ones_like(weights),
            bounds=Bounds(0, [1] * (len(weights) - 1) + [int(MIDDLE in depth)]),
            constraints=[needed, *_sayable(depth)],
            options={"mip_rel_gap": 0},
        )
    assert found.x is not None  # the smallest plan is within the limit
    gone = iter(found.x.round().astype(bool))
    kept = {path: tuple(block for block in range(n) if not next(gone)) for path, n in depth.items()}
    return Plan({path: blocks for path, blocks in kept.items() if blocks}, 0)


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing reaches the process's stdout: at times the solver prints a line past Python, into a table that a script reads."""
    sys.stdout.flush()
    kept, sink = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(sink)


def _row(parts: Parts, paths: Iterable[str]) -> npt.NDArray[Any]:
    """One number a block, then what the whole middle has beyond its blocks."""
    beyond = parts[WHOLE] - parts[MIDDLE].sum() if WHOLE in parts else np.array([0])
    return np.concatenate([*(parts[path] for path in paths), beyond])


def _sayable(depth: Mapping[str, int]) -> list[LinearConstraint]:
    """Every attention keeps a block, but for the middle, which may go as a whole, and otherwise is as deep as its twin."""
    ends = np.cumsum(list(depth.values()))
    inside = np.zeros((len(depth), ends[-1] + 1))
    for row, end, n in zip(inside, ends, depth.values(), strict=True):
        row[end - n : end] = 1
    rows, whole = dict(zip(depth, inside, strict=True)), np.eye(ends[-1] + 1)[-1]
    limits = [LinearConstraint(row, ub=depth[path] - 1) for path, row in rows.items() if path != MIDDLE]
    if MIDDLE not in depth:
        return limits
    n, difference = depth[MIDDLE], rows[MIDDLE] - rows[TWIN]
    return [
        *limits,
        LinearConstraint(rows[MIDDLE] - whole, ub=n - 1),
        LinearConstraint(rows[MIDDLE] - n * whole, lb=0),
        LinearConstraint(difference - n * whole, ub=0),
        LinearConstraint(difference + n * whole, lb=0),
    ]
