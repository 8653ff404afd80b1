"""The speed of training a student, compared with plain loops over the same networks, batches and losses; `nox -s speed` prints the ratios.

`as_published` is written like distill_sdxl.py of segmind/SSD-1B, which encodes images (VAE in float32) and captions at every step.
`cached_by_hand` has latents and embeddings in memory, and neither evaluates, logs nor saves. Both use torch's AdamW with its
defaults. All run on the GPU where there is one.

By default the embedded family is trained. Full size with random weights, as its recipe says except for `FITTING`, is slow:
`nox -s speed -- -m slow -k training`, with `--benchmark-json FILE` to keep the result. On a GPU a profile is left in
results/runs/speed.
"""

import gc
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import UNet2DConditionModel
from torch import Tensor

from distillation.accelerator import make_accelerator
from distillation.data.batches import numbered_batches, scene_pool
from distillation.estimate import step_flops
from distillation.losses import mse
from distillation.prune import prune, student_config
from distillation.recipe import load_recipe
from distillation.run_plan import plan_run
from distillation.taps import collect_outputs
from distillation.train import StepContext, batch_loss_terms
from sdbench.models.architectures import Family
from sdbench.models.loading import load, load_unet
from sdbench.models.resolve import resolve as model
from sdbench.probes import ceilings, meters, profiling
from sdbench.probes.work import unet_macs
from sdbench.scenes.embedded import WEIGHTS
from sdbench.training.diffusion import Batch, add_noise, predict, target
from sdbench.training.latents import LatentPool
from sdbench.training.loop import Schedule, draw_rows, fit

DEVICE: Literal["cpu", "cuda"] = "cuda" if torch.cuda.is_available() else "cpu"
PROFILES = Path("results/runs/speed")


@dataclass(frozen=True)
class Case:
    """What is trained.

    Attributes:
        images: in the pool.
        steps: in a timed call.
        rounds: timed calls.
        settings: in place of the recipe's.
    """

    recipe: str
    family: Family
    images: int
    steps: int
    rounds: int
    settings: dict[str, Any] = field(default_factory=dict)


# What 24 GB of a CPU hold; on a card, where it has not run yet, room is left for the published loop's VAE in float32.
FITTING = {"accumulation": 1} | ({"batch": 8} if DEVICE == "cuda" else {"batch": 1, "size_px": 512})
CASES = {
    "scenes-vega": Case("vega", "scenes", images=256, steps=10, rounds=5, settings={"ema": 0.0}),  # the plain loops have none
    "vega": Case("vega", "sdxl", images=8, steps=2, rounds=3, settings=FITTING),
    "ssd-1b": Case("ssd-1b", "sdxl", images=8, steps=2, rounds=3, settings=FITTING),
}
ON_CARDS = pytest.mark.skipif(DEVICE == "cpu", reason="weights, gradients and moments of SSD-1B alone take 21 GB")
MARKS = {"vega": [pytest.mark.slow], "ssd-1b": [pytest.mark.slow, ON_CARDS]}


@dataclass(frozen=True)
class Noise:
    """Images of noise, with captions, in a size that scenes are not drawn in."""

    n: int
    size_px: int
    max_undecodable = 0.0

    @property
    def digest(self) -> str:
        return repr(self)

    @property
    def image_digests(self) -> list[bytes]:
        return [f"{self!r} {row}".encode() for row in range(self.n)]

    @property
    def captions(self) -> list[str]:
        return [f"image {number} of noise" for number in range(self.n)]

    def read(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        side = self.size_px
        time_ids = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32)
        return torch.rand(len(rows), 3, side, side) * 2 - 1, time_ids.expand(len(rows), -1)


class Bench:
    """A teacher, a small pool, and the cut of a student."""

    def __init__(self, case: Case, work: Path) -> None:
        AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001  # a process has one precision, each case its own
        recipe = load_recipe(case.recipe)
        self.case, self.cut = case, recipe.cuts[-1]
        self.settings = recipe.settings(case.family).model_copy(update=case.settings)
        recipe = recipe.model_copy(update={case.family: self.settings})
        if case.family == "sdxl":
            load(model(recipe.teacher, random=True), dtype="bfloat16", device=DEVICE).save_pretrained(work / "pipeline")
        folder = WEIGHTS / "pipeline" if case.family == "scenes" else work / "pipeline"
        images = scene_pool(case.images, work) if case.family == "scenes" else Noise(case.images, case.settings.get("size_px", 1024))
        self.pool = LatentPool(folder, images, work / "latents", DEVICE)
        plan = plan_run(recipe, case.family, [folder])
        teacher: Any = load_unet(folder, dtype=self.settings.dtype, device=DEVICE)
        evaluate = lambda _: pytest.fail("nothing is to be evaluated")  # noqa: E731
        batch, accelerator = numbered_batches(self.pool, self.settings, DEVICE), make_accelerator(DEVICE, self.settings.dtype)
        self.context = StepContext(plan, teacher, self.pool.scheduler, batch, accelerator, evaluate)
        self.taps = plan.taps[-1]

    def student(self) -> UNet2DConditionModel:
        made = prune(self.context.teacher, self.cut).float().requires_grad_(requires_grad=True).train()
        if self.settings.checkpointing:
            made.enable_gradient_checkpointing()
        return made

    def flops(self) -> int:
        """FLOPs of a timed call."""
        batch = self.context.batch(0)
        shape = {"latent_size": batch.latents.shape[-1], "tokens": batch.prompt_embeds.shape[1]}
        teacher = self.context.teacher.config
        teacher_macs, student_macs = (unet_macs(config, **shape) for config in (teacher, student_config(teacher, self.cut)))
        return step_flops(teacher_macs, student_macs, self.case.steps * self.settings.batch, checkpointing=self.settings.checkpointing)


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(CASES[request.param], tmp_path_factory.mktemp("speed"))


class Enough(Exception):  # noqa: N818  # no error
    """Ends a training before it saves its last checkpoint, which at full size takes longer than the steps."""


def ours(bench: Bench, folder: Path) -> Callable[[], None]:
    settings, steps, context = bench.settings, bench.case.steps, bench.context
    schedule = Schedule(steps + 1, settings.lr, settings.batch, warmup=1)
    student, folders = context.accelerator.prepare_model(bench.student()), map(str, count())

    def terms(number: int) -> dict[str, Tensor]:
        if number == steps:
            raise Enough
        return batch_loss_terms(context, student, bench.taps, number)

    def run() -> None:
        with suppress(Enough):
            fit(student, terms, schedule, folder / next(folders), accelerator=context.accelerator)

    return run


def plain(bench: Bench, batch_at: Callable[[int], Batch]) -> Callable[[], None]:
    context, student = bench.context, bench.student()
    teacher, scheduler, weights = context.teacher, context.scheduler, context.plan.recipe.loss
    paths = [tap.student for tap in bench.taps]

    def loss_of(batch: Batch) -> Tensor:
        noised = add_noise(scheduler, batch)
        with collect_outputs(student, paths) as learned, collect_outputs(teacher, paths) as taught:
            with torch.no_grad():
                answer = predict(teacher, noised.to(teacher.dtype), batch.to(teacher.dtype))
            with context.accelerator.autocast():
                said = predict(student, noised, batch)
            features = torch.stack([mse(learned[path], taught[path]) for path in paths]).sum()
            return mse(said, target(scheduler, batch)) + weights.output * mse(said, answer) + weights.feature * features

    def run() -> None:
        optimiser = torch.optim.AdamW(student.parameters(), lr=bench.settings.lr)
        for number in range(bench.case.steps):
            loss_of(batch_at(number)).backward()  # type: ignore[no-untyped-call]  # torch's
            optimiser.step()
            optimiser.zero_grad()

    return run


def as_published(bench: Bench) -> Callable[[], None]:
    pool, settings = bench.pool, bench.settings
    for name in ("text_encoder", "text_encoder_2"):
        pool.parts[name].to(bench.context.teacher.dtype)

    @torch.no_grad()
    def encoded_anew(number: int) -> Batch:
        rows = draw_rows(number, bench.case.images, settings.batch, settings.seed)
        made = pool.encode_images(pool.images.read(rows)) | pool.embed_captions(rows)
        noise, timesteps = torch.randn_like(made["latents"], dtype=torch.float32), torch.randint(1000, (len(rows),))
        return Batch(**made, noise=noise, timesteps=timesteps).to(DEVICE).to(torch.float32)

    return plain(bench, encoded_anew)


def cached_by_hand(bench: Bench) -> Callable[[], None]:
    return plain(bench, [bench.context.batch(number) for number in range(bench.case.steps)].__getitem__)


@pytest.mark.benchmark(timer=meters.synchronised_clock)
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("bench", [pytest.param(name, marks=MARKS.get(name, [])) for name in CASES], indirect=True)
@pytest.mark.parametrize("loop", ["cached_by_hand", "sdbench", "as_published"])
def test_training(loop: str, bench: Bench, benchmark: Any, tmp_path: Path) -> None:
    case, settings = bench.case, bench.settings
    benchmark.group = f"{case.recipe} of family {case.family}, {case.steps} steps, batch {settings.batch}, on {DEVICE}"
    loops: dict[str, Callable[[Bench], Callable[[], None]]] = {
        "sdbench": partial(ours, folder=tmp_path),
        "as_published": as_published,
        "cached_by_hand": cached_by_hand,
    }
    bench.context.accelerator.free_memory()  # of the student of the loop before
    gc.collect()
    run = loops[loop](bench)
    meters.reset_peak_memory(DEVICE)
    benchmark.pedantic(run, rounds=case.rounds, warmup_rounds=1)
    took = benchmark.stats.stats.median
    benchmark.extra_info |= {
        "images_per_second": case.steps * settings.batch / took,
        "tflops": bench.flops() / took / 1e12,  # what `distillation plan --tflops` asks for
        "share_of_matmul": bench.flops() / took / ceilings.measure("matmul", DEVICE, settings.dtype),
        "memory_mib": meters.peak_memory_mib(DEVICE),
    }
    if loop == "sdbench" and DEVICE == "cuda":
        profiling.write(run, DEVICE, PROFILES / f"{case.family}-{case.recipe}.txt")
