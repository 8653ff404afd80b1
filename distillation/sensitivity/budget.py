"""The best cut: of all within a budget, the one whose removed parts have the smallest summed output loss.

Solved exactly as a 0/1 integer programme. LAPTOP-Diff (arXiv 2404.11098) found that the losses of single parts can be
added. A mapping of parts, here as in `removal`, has one number per block of each attention, and under `mid_block` one for
the middle's attention (blocks included) and second resnet together.
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

from distillation.cut import MIDDLE_ATTENTION, Cut, all_blocks, block_paths
from distillation.prune import student_config
from distillation.sensitivity.removal import SECOND_RESNET, WHOLE_MIDDLE
from sdbench.arrays import F64
from sdbench.errors import UserError
from sdbench.models.architectures import Config
from sdbench.models.loading import build_on_meta, count_parameters
from sdbench.probes.meters import synchronised_clock
from sdbench.training.diffusion import Batch, add_noise, predict

I64 = npt.NDArray[np.int64]
Parts = Mapping[str, F64] | Mapping[str, I64]
TIED_TO_MIDDLE = "down_blocks.2.attentions.0"  # a diffusers config gives the middle the depth of this attention
WARMUP_CALLS, TIMED_CALLS = 3, 15
SLEEP_CYCLES = 10**8  # of the GPU's clock: at least 50 ms, in which the host fills the queue of launches


@dataclass(frozen=True)
class Cost:
    """What a teacher costs, in total and by part.

    Attributes:
        total: of the teacher, in `unit`.
        parts: the saving from removing each part.
        unit: `parameters`, or `ns` for the time of one call.
    """

    total: int
    parts: Mapping[str, I64]
    unit: str

    def remaining(self, cut: Cut) -> int:
        """The cost of the student that a cut leaves."""
        return self.total - int(sum_removed(self.parts, cut))

    @property
    def minimum(self) -> int:
        """The cost of the smallest student: the cheapest block of each attention, and none in the middle."""
        kept = sum(int(row.min()) for path, row in self.parts.items() if path not in (MIDDLE_ATTENTION, WHOLE_MIDDLE))
        return self.remaining(Cut({path: () for path in self.parts if path not in (MIDDLE_ATTENTION, WHOLE_MIDDLE)}, 0)) + kept

    @property
    def shares(self) -> dict[str, F64]:
        """Each part's share of the total."""
        return {path: row / self.total for path, row in self.parts.items()}

    def format(self, amount: int) -> str:
        """An amount with its unit and its share of the teacher's."""
        number = f"{amount / 1e6:.3f} ms a call" if self.unit == "ns" else f"{amount:,} parameters"
        return f"{number} ({amount / self.total:.2%} of the teacher's)"


def sum_removed(parts: Parts, cut: Cut) -> float:
    """Sum over the parts that a cut removes; if the middle goes, the whole middle counts instead of its blocks."""
    total = 0.0
    for path, row in parts.items():
        if path == WHOLE_MIDDLE:
            total += row[0] * (MIDDLE_ATTENTION not in cut.blocks)
        elif path in cut.blocks:
            total += sum(value for block, value in enumerate(row) if block not in cut.blocks[path])
    return total


def parameter_cost(config: Config) -> Cost:
    """Exact parameter counts of a UNet and its parts."""
    unet = build_on_meta("unet", config)
    parts = {
        path: np.array([count_parameters(unet.get_submodule(block)) for block in blocks]) for path, blocks in block_paths(config).items()
    }
    if MIDDLE_ATTENTION in parts:
        cut = Cut({path: blocks for path, blocks in all_blocks(config).items() if path != MIDDLE_ATTENTION}, 0)
        parts[WHOLE_MIDDLE] = np.array([count_parameters(unet) - count_parameters(build_on_meta("unet", student_config(config, cut)))])
    return Cost(count_parameters(unet), parts, "parameters")


@torch.no_grad()
def measure_time_cost(unet: UNet2DConditionModel, batch: Batch, scheduler: DDIMScheduler) -> Cost:
    """Measure the times of one call of a UNet and of its parts, in ns; medians over calls.

    On a GPU these are the times of its kernels. Each call first sleeps in the stream until the host, which may be slower than the
    GPU, has filled the queue, and nothing synchronises before the end.
    """
    blocks = block_paths(unet.config)
    middle = [MIDDLE_ATTENTION, SECOND_RESNET] if MIDDLE_ATTENTION in blocks else []
    timestamps: dict[str, list[Any]] = {name: [] for name in ["", *middle, *(name for names in blocks.values() for name in names)]}
    noised, batch = add_noise(scheduler, batch).to(unet.dtype), batch.to(unet.dtype)
    on_gpu = unet.device.type == "cuda"
    with ExitStack() as hooks:
        for name, of_module in timestamps.items():
            module, hook = unet.get_submodule(name), _timestamp_hook(of_module, _record_event if on_gpu else perf_counter)
            hooks.enter_context(module.register_forward_pre_hook(hook))
            hooks.enter_context(module.register_forward_hook(hook))
        for _ in range(WARMUP_CALLS + TIMED_CALLS):
            if on_gpu:
                torch.cuda._sleep(SLEEP_CYCLES)  # type: ignore[no-untyped-call]  # noqa: SLF001  # no public call sleeps in the stream
            predict(unet, noised, batch)
    synchronised_clock()
    ns = {name: round(1e9 * median(_durations_s(of_module)[WARMUP_CALLS:])) for name, of_module in timestamps.items()}
    parts = {path: np.array([ns[name] for name in names]) for path, names in blocks.items()}
    return Cost(ns[""], parts | ({WHOLE_MIDDLE: np.array([sum(ns[name] for name in middle)])} if middle else {}), "ns")


def _timestamp_hook(timestamps: list[Any], now: Callable[[], Any]) -> Any:
    return lambda *_: timestamps.append(now())


def _record_event() -> torch.cuda.Event:
    """An event that marks when the GPU reaches this point of the stream."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch's
    event.record()
    return event


def _durations_s(timestamps: Sequence[Any]) -> list[float]:
    """Seconds of each call, from the timestamps before and after it."""
    pairs = zip(timestamps[::2], timestamps[1::2], strict=True)
    return [end - start if isinstance(start, float) else start.elapsed_time(end) / 1000 for start, end in pairs]


def find_best_cut(losses: Mapping[str, F64], cost: Cost, limit: int) -> Cut:
    """The cut with the smallest summed loss whose student costs at most `limit`, among those that a diffusers config can express.

    Raises:
        UserError: no student is that small.
    """
    if limit < cost.minimum:
        raise UserError(
            f"no cut comes down to {cost.format(limit)}; the smallest student, with one block in each attention and none in the middle, "
            f"has {cost.format(cost.minimum)}. Allow at least that much"
        )
    depth = {path: len(row) for path, row in losses.items() if path != WHOLE_MIDDLE}
    savings = _flatten(cost.parts, depth)
    step = math.gcd(*map(int, savings)) or 1  # small whole numbers stay clear of the solver's tolerance
    within_budget = LinearConstraint(savings / step, lb=math.ceil((cost.total - limit) / step))
    weights = _flatten(losses, depth)
    with _discard_stdout():
        solution = milp(
            weights * (1e6 / np.abs(weights).max(initial=1e-300)),  # the solver counts gaps under 1e-6 as closed
            integrality=np.ones_like(weights),
            bounds=Bounds(0, [1] * (len(weights) - 1) + [int(MIDDLE_ATTENTION in depth)]),
            constraints=[within_budget, *_config_constraints(depth)],
            options={"mip_rel_gap": 0},
        )
    assert solution.x is not None  # the smallest student is within the limit
    is_removed = iter(solution.x.round().astype(bool))
    kept = {path: tuple(block for block in range(n) if not next(is_removed)) for path, n in depth.items()}
    return Cut({path: blocks for path, blocks in kept.items() if blocks}, 0)


@contextmanager
def _discard_stdout() -> Iterator[None]:
    """While open, discard the process's stdout: the solver's C++ code sometimes prints a line, into a table that a script may read."""
    sys.stdout.flush()
    stdout, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
        os.close(null)


def _flatten(parts: Parts, paths: Iterable[str]) -> npt.NDArray[Any]:
    """One number per block, then what the whole middle adds to its blocks."""
    beyond_blocks = parts[WHOLE_MIDDLE] - parts[MIDDLE_ATTENTION].sum() if WHOLE_MIDDLE in parts else np.array([0])
    return np.concatenate([*(parts[path] for path in paths), beyond_blocks])


def _config_constraints(depth: Mapping[str, int]) -> list[LinearConstraint]:
    """What a config can express: each attention keeps a block; the middle is as deep as the attention tied to it, or goes as a whole.

    Variables are 1 for a removed block, in the order of `_flatten`; the last is 1 if the whole middle goes.
    """
    ends = np.cumsum(list(depth.values()))
    indicators = np.zeros((len(depth), ends[-1] + 1))
    for row, end, n in zip(indicators, ends, depth.values(), strict=True):
        row[end - n : end] = 1
    rows, whole = dict(zip(depth, indicators, strict=True)), np.eye(ends[-1] + 1)[-1]
    limits = [LinearConstraint(row, ub=depth[path] - 1) for path, row in rows.items() if path != MIDDLE_ATTENTION]
    if MIDDLE_ATTENTION not in depth:
        return limits
    n, difference = depth[MIDDLE_ATTENTION], rows[MIDDLE_ATTENTION] - rows[TIED_TO_MIDDLE]
    return [
        *limits,
        LinearConstraint(rows[MIDDLE_ATTENTION] - whole, ub=n - 1),
        LinearConstraint(rows[MIDDLE_ATTENTION] - n * whole, lb=0),
        LinearConstraint(difference - n * whole, ub=0),
        LinearConstraint(difference + n * whole, lb=0),
    ]
