"""Which transformer blocks matter: how the UNet's output changes when one is removed (LAPTOP-Diff, arXiv 2404.11098).

That paper found that the losses of single blocks can be added to choose sets of blocks. Losses are mean squared changes of
the UNet's output, without normalisation. The middle is also measured as a whole, since it can be removed as a whole: its
attention with all blocks, and its second resnet.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from pydantic import Field
from torch import Tensor, nn

from distillation.cut import MIDDLE_ATTENTION, block_paths
from distillation.losses import mse
from distillation.provenance import package_versions
from distillation.taps import collect_outputs
from distillation.teacher import Teacher
from sdbench.arrays import F64
from sdbench.disk import keep_earlier, write_bytes
from sdbench.errors import UserError
from sdbench.notes import progress
from sdbench.training.diffusion import Batch, add_noise, predict
from sdbench.training.latents import CaptionedImages, LatentPool
from sdbench.validation import Table, error_message

WHOLE_MIDDLE = "mid_block"  # key for the middle's attention and second resnet together
SECOND_RESNET = "mid_block.resnets.1"


class Settings(Table):
    """How much to measure.

    Attributes:
        bins: number of equal bins of the training timesteps; each has its own images.
        batches: per bin; the standard error is over them.
        images: per batch.
    """

    bins: Annotated[int, Field(ge=1, le=1000)] = 10
    batches: Annotated[int, Field(ge=2)] = 4
    images: Annotated[int, Field(ge=1)] = 8

    @property
    def n(self) -> int:
        """Number of images in total."""
        return self.bins * self.batches * self.images


class Sensitivity(Table):
    """How a teacher's output changes without each of its parts.

    Attributes:
        digest: of all the teacher's weights, as in its records.
        data_digest: of images and captions.
        timesteps: first and last timestep of each bin.
        n_images: in all bins together; each image is used once.
        losses: mean squared change of the output by attention, blocks x bins x batches; `mid_block` has one row.
        device: that it was measured on, "cpu" or "cuda"; older results lack it.
        versions: of Python and packages; older results lack them.
    """

    teacher: str
    digest: str
    data_digest: str
    settings: Settings
    timesteps: list[tuple[int, int]]
    n_images: int
    losses: dict[str, list[list[list[float]]]]
    device: str | None = None
    versions: dict[str, str] | None = None

    @property
    def by_bin(self) -> dict[str, F64]:
        """Mean over batches, blocks x bins."""
        return {path: np.array(rows).mean(2) for path, rows in self.losses.items()}

    @property
    def mean(self) -> dict[str, F64]:
        """Mean over bins and batches, one number per block."""
        return {path: rows.mean(1) for path, rows in self.by_bin.items()}

    @property
    def error(self) -> dict[str, F64]:
        """Standard error of `mean`. Bins are strata, so only the variance within each counts."""
        bin_variances = {path: np.array(rows).var(2, ddof=1) / self.settings.batches for path, rows in self.losses.items()}
        return {path: np.sqrt(variances.sum(1)) / self.settings.bins for path, variances in bin_variances.items()}


def measure_sensitivity(
    teacher: Teacher, name: str, settings: Settings, images: CaptionedImages, work: Path, results: Path, device: str
) -> Sensitivity:
    """Measure a teacher, or read the result of an earlier run with the same weights, images, settings, device and versions.

    An older result, which does not say on what it was measured, is taken as it is. One that differs is kept under another name.

    Args:
        teacher: of either family.
        name: of the result's file, `<results>/sensitivity/<name>.json`.
        images: the first of them are used.

    Raises:
        UserError: there are too few images, the device or weights are missing, an earlier result is unreadable, or a loss is not finite.
    """
    path = results / "sensitivity" / f"{name}.json"
    weights_and_data = {"digest": teacher.digest, "data_digest": images.digest, "settings": settings}
    identity: dict[str, Any] = weights_and_data | {"device": device, "versions": package_versions()}
    earlier = _read(path)
    differences = [key for key, value in identity.items() if earlier and getattr(earlier, key) not in (value, None)]
    if earlier and not differences:
        return earlier
    batches, scheduler = sensitivity_batches(teacher, settings, images, work, device)
    losses = removal_losses(teacher.unet(measurement_dtype(teacher), device), batches, scheduler)
    if not_finite := [part for part, rows in losses.items() if not np.isfinite(rows).all()]:
        raise UserError(f"without a block of {not_finite[0]}, the output of {name!r} is not finite. Check the teacher's weights")
    sensitivity = Sensitivity(
        teacher=name,
        **identity,
        timesteps=[(start, end - 1) for start, end in _bins(settings.bins, scheduler.config.num_train_timesteps)],
        n_images=settings.n,
        losses={part: rows.reshape(len(rows), settings.bins, settings.batches).tolist() for part, rows in losses.items()},
    )
    if earlier:
        keep_earlier(path, differences)
    write_bytes(path, sensitivity.model_dump_json().encode() + b"\n")
    return sensitivity


def rank_parts(sensitivity: Sensitivity, shares: Mapping[str, F64]) -> list[dict[str, Any]]:
    """Parts by falling loss, with its standard error and their shares of the UNet's parameters."""
    mean, error = sensitivity.mean, sensitivity.error
    ranked = sorted(((path, block) for path, rows in mean.items() for block in range(len(rows))), key=lambda part: -mean[part[0]][part[1]])
    return [
        {
            "part": _part_name(path, block),
            "loss": float(mean[path][block]),
            "standard_error": float(error[path][block]),
            "parameter_share": float(shares[path][block]),
        }
        for path, block in ranked
    ]


def ranking_table(sensitivity: Sensitivity, shares: Mapping[str, F64]) -> str:
    """Parts by falling loss, with their shares of the UNet's parameters, as a Markdown table."""
    rows = [
        f"| {part['part']} | {part['loss']:.3g} | {part['standard_error']:.2g} | {part['parameter_share']:.2%} |"
        for part in rank_parts(sensitivity, shares)
    ]
    return "\n".join(["| without | mean output loss | ± s.e. | share of parameters |", "|---|---:|---:|---:|", *rows])


def _part_name(path: str, block: int) -> str:
    return f"{MIDDLE_ATTENTION} and {SECOND_RESNET}" if path == WHOLE_MIDDLE else f"{path}, block {block}"


def _read(path: Path) -> Sensitivity | None:
    if not path.exists():
        return None
    try:
        return Sensitivity.model_validate_json(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not UTF-8, or not such a result
        raise UserError(
            f"{path} is not a measurement that this version can read ({error_message(error)}); remove it to measure again"
        ) from None


def sensitivity_batches(
    teacher: Teacher, settings: Settings, images: CaptionedImages, work: Path, device: str
) -> tuple[list[Batch], DDIMScheduler]:
    """Make batches of the first images, bin by bin, and return them with the scheduler that adds their noise.

    Raises:
        UserError: there are too few images that can be decoded.
    """
    rows = np.arange(settings.n).reshape(settings.bins, settings.batches, settings.images)
    _check_enough(len(images.captions), settings)
    pool = LatentPool(teacher.folder, images, work / "latents", device)
    _check_enough(len(pool), settings)  # some may have been left out
    ranges = _bins(settings.bins, pool.scheduler.config.num_train_timesteps)
    batches = [
        pool.batch_of_rows(batch_rows, int(batch_rows[0]), least=start, most=end, device=device)
        for bin_rows, (start, end) in zip(rows, ranges, strict=True)
        for batch_rows in bin_rows
    ]
    return batches, pool.scheduler


def _check_enough(n_images: int, settings: Settings) -> None:
    if n_images < settings.n:
        raise UserError(
            f"{n_images} images to measure on; expected {settings.n} for {settings.bins} bins of {settings.batches} batches of "
            f"{settings.images}. Give more with --data, or fewer --bins or --batches"
        )


def measurement_dtype(teacher: Teacher) -> Literal["float32", "bfloat16"]:
    """The dtype to measure a teacher in; the full-size one is measured in the dtype that it teaches in."""
    return "float32" if teacher.spec.family == "scenes" else "bfloat16"


def _bins(n: int, timesteps: int) -> list[tuple[int, int]]:
    """First timestep of each of n bins, and the first after the bin."""
    return [(number * timesteps // n, (number + 1) * timesteps // n) for number in range(n)]


@torch.no_grad()
def removal_losses(unet: UNet2DConditionModel, batches: Sequence[Batch], scheduler: DDIMScheduler) -> dict[str, F64]:
    """The mean squared change of the output without each part, parts x batches: the blocks by attention, the whole middle as `mid_block`.

    What runs before the first removed module computes what it computed with all of them, so its outputs are kept and used again: about half
    of the work, for 0.3 GB of an image at full size in bfloat16.

    Args:
        batches: to measure on; with different timesteps per batch, the result shows how losses depend on them.
    """
    parts: dict[str, list[tuple[str, ...]]]
    parts = {path: [(block,) for block in blocks] for path, blocks in block_paths(unet.config).items()}
    if MIDDLE_ATTENTION in parts:
        parts[WHOLE_MIDDLE] = [(MIDDLE_ATTENTION, SECOND_RESNET)]
    reusable = [path for path, module in unet.named_modules() if isinstance(module, ResnetBlock2D | BasicTransformerBlock)]
    losses = {part: np.empty((len(rows), len(batches))) for part, rows in parts.items()}
    removals = [(part, row, paths) for part, rows in parts.items() for row, paths in enumerate(rows)]
    with progress(total=len(batches) * len(removals), desc="removing blocks one by one") as bar:
        for number, batch in enumerate(batches):
            noised, batch_of_dtype = add_noise(scheduler, batch).to(unet.dtype), batch.to(unet.dtype)
            with collect_outputs(unet, reusable) as outputs:
                output = predict(unet, noised, batch_of_dtype)
                kept = dict(outputs)
            for part, row, paths in removals:
                with _skip_modules(unet, paths), _reuse(unet, _before(kept, paths)):
                    losses[part][row, number] = mse(predict(unet, noised, batch_of_dtype), output).item()
                bar.update()
    return losses


def _before(outputs: Mapping[str, Tensor], paths: Sequence[str]) -> dict[str, Tensor]:
    """The outputs, in the order in which they were computed, of what runs before any of the modules at the paths."""
    inside = tuple(f"{path}." for path in paths)
    return dict(itertools.takewhile(lambda item: not f"{item[0]}.".startswith(inside), outputs.items()))


@contextmanager
def _reuse(network: nn.Module, outputs: Mapping[str, Tensor]) -> Iterator[None]:
    """While open, the modules at these paths return these outputs and compute nothing."""
    modules = [network.get_submodule(path) for path in outputs]
    for module, output in zip(modules, outputs.values(), strict=True):
        module.forward = lambda *_, output=output, **__: output
    try:
        yield
    finally:
        for module in modules:
            del module.forward  # the class's shows again


@contextmanager
def _skip_modules(network: nn.Module, paths: Sequence[str]) -> Iterator[None]:
    """While open, each of the modules at these paths returns its input."""

    def return_input(_: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Any], output: Any) -> Any:
        hidden_states = inputs[0] if inputs else kwargs["hidden_states"]
        return hidden_states if isinstance(output, Tensor) else (hidden_states,)  # attentions return a tuple

    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(network.get_submodule(path).register_forward_hook(return_input, with_kwargs=True))
        yield


def pick_most_missed(losses: Mapping[str, F64], attention: str, present: Sequence[int], k: int) -> tuple[int, ...]:
    """Among the present blocks of an attention, the k whose removal costs most, in rising order."""
    cost = losses[attention].mean(1)
    return tuple(sorted(sorted(present, key=lambda block: -cost[block])[:k]))
