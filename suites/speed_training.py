"""How fast a student trains, beside plain loops over the same networks, batches and losses; `nox -s speed` prints the ratios.

`as_published`: written as distill_sdxl.py of segmind/SSD-1B is, which encodes pictures (VAE in float32) and captions at
every step. `cached_by_hand`: latents and embeddings lie ready in memory and nothing is watched, logged or saved: what a
training loop cannot be faster than. Embedded family, on the GPU where there is one.
"""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from distillation.data import batches, scenes
from distillation.losses import mse
from distillation.prune import prune
from distillation.recipe import read
from distillation.taps import collect, resolve
from distillation.train import Lesson, step_terms
from sdbench.latents import Batch, LatentPool, noisy, predict, target
from sdbench.models.loading import read_part
from sdbench.probes.meters import synchronised
from sdbench.scenes.embedded import WEIGHTS
from sdbench.training import Schedule, fit, rows_of

STEPS, ROUNDS, PICTURES = 10, 5, 256
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Bench:
    """A student of Vega's plan, its teacher, and a small pool."""

    def __init__(self, work: Path) -> None:
        recipe = read("vega")
        self.settings = recipe.scenes.model_copy(update={"ema": 0.0})  # the plain loops have none
        pool = LatentPool(WEIGHTS / "pipeline", scenes(PICTURES, work), work / "latents", DEVICE)
        teacher: Any = read_part("unet", WEIGHTS / "pipeline" / "unet", torch.float32).to(DEVICE).requires_grad_(requires_grad=False)
        watch = lambda _: pytest.fail("nothing is to be watched")  # noqa: E731
        batch = batches(pool, self.settings, DEVICE)
        self.lesson = Lesson(recipe, self.settings, teacher, pool.scheduler, batch, Accelerator(cpu=DEVICE == "cpu"), watch)
        self.student = prune(teacher, recipe.plans[-1]).requires_grad_(requires_grad=True)
        self.taps = resolve(self.student.config, teacher.config, recipe.plans[-1], recipe.taps)
        self.pool = pool


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("speed"))


def ours(bench: Bench, folder: Path) -> Callable[[], None]:
    schedule = Schedule(STEPS, bench.settings.lr, bench.settings.batch, warmup=1)
    student, numbers = deepcopy(bench.student), iter(range(10**6))

    def run() -> None:
        fit(student, lambda number: step_terms(bench.lesson, student, bench.taps, number), schedule, folder / str(next(numbers)))

    return run


def plain(bench: Bench, batch_at: Callable[[int], Batch]) -> Callable[[], None]:
    student, teacher, scheduler, weights = deepcopy(bench.student), bench.lesson.teacher, bench.lesson.scheduler, bench.lesson.recipe.loss
    optimiser = torch.optim.AdamW(student.parameters(), lr=bench.settings.lr)
    paths = [tap.student for tap in bench.taps]

    def step(number: int) -> None:
        batch = batch_at(number)
        noised = noisy(scheduler, batch)
        with collect(student, paths) as learned, collect(teacher, paths) as taught:
            with torch.no_grad():
                answer = predict(teacher, noised, batch)
            said = predict(student, noised, batch)
            features = torch.stack([mse(learned[path], taught[path]) for path in paths]).sum()
            loss = mse(said, target(scheduler, batch)) + weights.output * mse(said, answer) + weights.feature * features
        loss.backward()  # type: ignore[no-untyped-call]  # torch's
        optimiser.step()
        optimiser.zero_grad()

    def run() -> None:
        for number in range(STEPS):
            step(number)

    return run


@torch.no_grad()
def encoded_anew(bench: Bench, number: int) -> Batch:
    rows = rows_of(number, PICTURES, bench.settings.batch, bench.settings.seed)
    made = bench.pool.encoded(rows) | bench.pool.embedded(rows)
    noise, timesteps = torch.randn_like(made["latents"], dtype=torch.float32), torch.randint(1000, (len(rows),))
    return Batch(**made, noise=noise, timesteps=timesteps).to(DEVICE).to(torch.float32)


@pytest.mark.benchmark(group=f"{STEPS} steps of 16 pictures on {DEVICE}", timer=synchronised)
@pytest.mark.parametrize("loop", ["cached_by_hand", "sdbench", "as_published"])
def test_training(loop: str, bench: Bench, benchmark: Any, tmp_path: Path) -> None:
    ready = [bench.lesson.batch(number) for number in range(STEPS)]
    loops = {
        "sdbench": lambda: ours(bench, tmp_path),
        "as_published": lambda: plain(bench, partial(encoded_anew, bench)),
        "cached_by_hand": lambda: plain(bench, ready.__getitem__),
    }
    benchmark.pedantic(loops[loop](), rounds=ROUNDS, warmup_rounds=1)
    benchmark.extra_info["images_per_second"] = STEPS * bench.settings.batch / benchmark.stats.stats.median
