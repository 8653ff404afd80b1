"""Which transformer blocks matter: what the UNet's output loses when one is taken out (LAPTOP-Diff, arXiv 2404.11098).

The losses of single blocks add up well enough over sets of blocks to choose by, which is that paper's finding. Losses are
plain mean squares of the UNet's output, divided by nothing. The middle is measured as a whole too, since it can go as one:
its attention with all its blocks, and its second resnet.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from tqdm import tqdm

from distillation.losses import mse
from distillation.plan import MIDDLE
from distillation.teacher import Teacher
from sdbench.arrays import F64
from sdbench.disk import write_bytes
from sdbench.errors import UserError
from sdbench.models.architectures import depths
from sdbench.training.latents import Batch, CaptionedPictures, LatentPool, add_noise, predict

WHOLE = "mid_block"  # stands for the middle's attention and second resnet together
SECOND_RESNET = "mid_block.resnets.1"


class Settings(BaseModel):
    """How much is measured.

    Attributes:
        bins: equal parts of the training timesteps, each with pictures of its own.
        batches: of each bin; the standard error is over them.
        pictures: of each batch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bins: Annotated[int, Field(ge=1, le=1000)] = 10
    batches: Annotated[int, Field(ge=2)] = 4
    pictures: Annotated[int, Field(ge=1)] = 8

    @property
    def n(self) -> int:
        """Pictures in all."""
        return self.bins * self.batches * self.pictures


class Sensitivity(BaseModel):
    """What a teacher's output loses without each part of it.

    Attributes:
        digest: of all the teacher's weights, as its records give it.
        data_digest: of pictures and captions.
        timesteps: first and last of each bin.
        n_pictures: in all bins together; each is used once.
        losses: mean squared change of the output by attention, blocks x bins x batches; `mid_block` has one row.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: str
    digest: str
    data_digest: str
    settings: Settings
    timesteps: list[tuple[int, int]]
    n_pictures: int
    losses: dict[str, list[list[list[float]]]]

    @property
    def by_bin(self) -> dict[str, F64]:
        """Mean over batches, blocks x bins."""
        return {path: np.array(rows).mean(2) for path, rows in self.losses.items()}

    @property
    def mean(self) -> dict[str, F64]:
        """Mean over bins and batches, one number a block."""
        return {path: rows.mean(1) for path, rows in self.by_bin.items()}

    @property
    def error(self) -> dict[str, F64]:
        """Standard error of `mean`: bins are strata, so only the spread within each counts."""
        of_bins = {path: np.array(rows).var(2, ddof=1) / self.settings.batches for path, rows in self.losses.items()}
        return {path: np.sqrt(variances.sum(1)) / self.settings.bins for path, variances in of_bins.items()}


def measured(
    teacher: Teacher, name: str, settings: Settings, pictures: CaptionedPictures, work: Path, results: Path, device: str
) -> Sensitivity:
    """Measure a teacher, or read what an earlier run found with the same weights and settings.

    Args:
        teacher: of either family.
        name: of the file, `<results>/sensitivity/<name>.json`.
        settings: how much to measure.
        pictures: to measure on; the first are used.
        work: gets latents.
        results: the folder of results.
        device: where to measure.

    Raises:
        UserError: there are too few pictures, the device or weights are not there, or a loss is not finite.
    """
    path, digest = results / "sensitivity" / f"{name}.json", teacher.digest
    if (found := _read(path)) and (found.digest, found.data_digest, found.settings) == (digest, pictures.digest, settings):
        return found
    batches, scheduler = batches_of(teacher, settings, pictures, work, device)
    losses = part_losses(teacher.unet(precision(teacher), device), batches, scheduler)
    if wrong := [part for part, rows in losses.items() if not np.isfinite(rows).all()]:
        raise UserError(
            f"without a block of {wrong[0]} the output of {name!r} is not finite; expected numbers. Look at the teacher's weights"
        )
    made = Sensitivity(
        teacher=name,
        digest=digest,
        data_digest=pictures.digest,
        settings=settings,
        timesteps=[(least, after - 1) for least, after in _bins(settings.bins, scheduler.config.num_train_timesteps)],
        n_pictures=settings.n,
        losses={part: rows.reshape(len(rows), settings.bins, settings.batches).tolist() for part, rows in losses.items()},
    )
    write_bytes(path, made.model_dump_json().encode() + b"\n")
    return made


def ranked(found: Sensitivity, shares: Mapping[str, F64]) -> str:
    """Parts as a table, the most missed first.

    Args:
        found: the losses.
        shares: of the UNet's parameters that each part has.
    """
    parts = sorted(
        ((path, block) for path, rows in found.mean.items() for block in range(len(rows))), key=lambda at: -found.mean[at[0]][at[1]]
    )
    rows = [
        f"| {_called(path, block)} | {found.mean[path][block]:.3g} | {found.error[path][block]:.2g} | {shares[path][block]:.2%} |"
        for path, block in parts
    ]
    return "\n".join(["| without | mean output loss | ± s.e. | share of parameters |", "|---|---:|---:|---:|", *rows])


def _called(path: str, block: int) -> str:
    return f"{MIDDLE} and {SECOND_RESNET}" if path == WHOLE else f"{path}, block {block}"


def _read(path: Path) -> Sensitivity | None:
    if not path.exists():
        return None
    try:
        return Sensitivity.model_validate_json(path.read_text())
    except ValidationError as error:
        raise UserError(
            f"{path} is no measurement that this version reads ({error.errors()[0]['msg']}); remove it to measure again"
        ) from None


def batches_of(
    teacher: Teacher, settings: Settings, pictures: CaptionedPictures, work: Path, device: str
) -> tuple[list[Batch], DDIMScheduler]:
    """The first pictures with their captions, bin by bin => batches, what adds their noise.

    Raises:
        UserError: there are too few.
    """
    rows = np.arange(settings.n).reshape(settings.bins, settings.batches, settings.pictures)
    if len(pictures.captions) < rows.size:
        raise UserError(
            f"{len(pictures.captions)} pictures to measure on; expected {rows.size} for {settings.bins} bins of {settings.batches} batches of {settings.pictures}. Give more with --data, or fewer --bins or --batches"
        )
    pool = LatentPool(teacher.folder, pictures, work / "latents", device)
    ranges = _bins(settings.bins, pool.scheduler.config.num_train_timesteps)
    batches = [
        pool.batch_of_rows(of_batch, int(of_batch[0]), least=least, most=after, device=device)
        for of_bin, (least, after) in zip(rows, ranges, strict=True)
        for of_batch in of_bin
    ]
    return batches, pool.scheduler


def precision(teacher: Teacher) -> Literal["float32", "bfloat16"]:
    """What a teacher is measured in: the full-size one in the precision that it is trained with."""
    return "float32" if teacher.spec.family == "scenes" else "bfloat16"


def _bins(n: int, timesteps: int) -> list[tuple[int, int]]:
    """First timestep of each of n bins, and the first after it."""
    return [(number * timesteps // n, (number + 1) * timesteps // n) for number in range(n)]


def removal_losses(unet: UNet2DConditionModel, batches: Sequence[Batch], scheduler: DDIMScheduler) -> dict[str, F64]:
    """Mean squared change of the output without each block => by attention, blocks x batches.

    Args:
        unet: as it is trained.
        batches: to measure on; give each its own timesteps to see how a block's worth changes over them.
        scheduler: adds the batches' noise.
    """
    return _losses(unet, _blocks(unet), batches, scheduler)


def part_losses(unet: UNet2DConditionModel, batches: Sequence[Batch], scheduler: DDIMScheduler) -> dict[str, F64]:
    """The same with a row for the whole middle, `mid_block`, where it has an attention."""
    parts = _blocks(unet)
    if MIDDLE in parts:
        parts[WHOLE] = [(unet.get_submodule(MIDDLE), unet.get_submodule(SECOND_RESNET))]
    return _losses(unet, parts, batches, scheduler)


def _blocks(unet: UNet2DConditionModel) -> dict[str, list[tuple[nn.Module, ...]]]:
    return {
        path: [(unet.get_submodule(f"{path}.transformer_blocks.{block}"),) for block in range(depth)]
        for path, depth in depths(unet.config).items()
    }


@torch.no_grad()
def _losses(
    unet: UNet2DConditionModel, parts: Mapping[str, list[tuple[nn.Module, ...]]], batches: Sequence[Batch], scheduler: DDIMScheduler
) -> dict[str, F64]:
    inputs = [add_noise(scheduler, batch).to(unet.dtype) for batch in batches]
    batches = [batch.to(unet.dtype) for batch in batches]
    whole = [predict(unet, noised, batch) for noised, batch in zip(inputs, batches, strict=True)]
    losses: dict[str, list[list[float]]] = {}
    for path, modules in tqdm(
        [(path, cut) for path, cuts in parts.items() for cut in cuts], desc="removing blocks one by one", mininterval=2
    ):
        with without(*modules):
            changed = [
                mse(predict(unet, noised, batch), output).item() for noised, batch, output in zip(inputs, batches, whole, strict=True)
            ]
        losses.setdefault(path, []).append(changed)
    return {path: np.array(rows) for path, rows in losses.items()}


@contextmanager
def without(*modules: nn.Module) -> Iterator[None]:
    """While open, each module hands on its input."""

    def skip(_: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Any], output: Any) -> Any:
        handed = inputs[0] if inputs else kwargs["hidden_states"]
        return handed if isinstance(output, Tensor) else (handed,)  # attentions answer with a tuple

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_hook(skip, with_kwargs=True))
        yield


def most_missed(losses: Mapping[str, F64], attention: str, there: Sequence[int], k: int) -> tuple[int, ...]:
    """Of an attention's blocks that are still there, the k whose removal costs most, in rising order."""
    cost = losses[attention].mean(1)
    return tuple(sorted(sorted(there, key=lambda block: -cost[block])[:k]))
