"""A recipe in words and numbers: what it cuts, what it compares, how it trains, and an estimate of what training takes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from distillation.cut import MIDDLE_ATTENTION
from distillation.estimate import (
    ASSUMED_MFU,
    FORWARD_EQUIVALENTS,
    H100_TFLOPS,
    Memory,
    estimate_memory,
    fixed_bytes,
    gpu_hours,
    step_flops,
)
from distillation.prune import prune
from distillation.recipe import Recipe
from distillation.recipe_tables import ScenesTraining, TeacherShare, Training
from distillation.taps import Tap, resolve_taps
from sdbench.disk import size_text
from sdbench.models.architectures import PARTS, Family, pooled_width, unet_config
from sdbench.models.loading import build_on_meta, count_parameters
from sdbench.probes.work import input_sizes, unet_macs
from sdbench.training.checkpoints import MAX_CHECKPOINTS


def describe_recipe(
    recipe: Recipe,
    family: Family,
    *,
    steps: int | None = None,
    first_stage: int = 0,
    teachers: Sequence[str] = (),
    n_images: int | None = None,
    copied_bytes: int = 0,
    tflops: float | None = None,
    usd_per_hour: float | None = None,
    export_every: int | None = None,
) -> dict[str, Any]:
    """An estimate of what training takes, and stages, parameters, settings and taps of a recipe; with kept blocks and sources under `text`.

    `memory_bytes` is that of a process in the largest stage. `gpu_hours` and `usd` have one number, or the least and the most, or are None.

    Args:
        family: whose widths and settings to use.
        steps: in total over all stages; default: the recipe's.
        first_stage: number of the first stage that is trained.
        teachers: names of the teachers, to describe a particular run.
        n_images: number of training images of that run.
        copied_bytes: disk that its sources take in the cache of `datasets`; see `SquareImages`.
        tflops: 10^12 FLOPs per second that a GPU reaches in training; default: an assumption that the text states.
        usd_per_hour: price of a GPU; without it the text has no cost. For the embedded family, which trains on CPUs, GPU time is left out
            too, unless this or `tflops` is given.
        export_every: steps after which that run writes the student that it then has.

    Raises:
        UserError: a stage or a tap does not fit the architectures, or the steps are too few for the stages.
    """
    settings = recipe.settings(family)
    settings = settings.model_copy(update={"steps": steps or settings.steps})
    estimate = _estimate(recipe, family, settings, first_stage)
    has_time = family == "sdxl" or tflops or usd_per_hour
    hours = [gpu_hours(estimate.flops, speed) for speed in _speeds(tflops)] if has_time else []
    lines = [
        f"{recipe.name}: {recipe.student or 'a student'} from {recipe.teacher}, family {family}",
        f"estimate at {estimate.size_px} px; nothing was run:",
        *_memory_lines(settings, estimate),
        *(_time_lines(hours, tflops, usd_per_hour) if hours else []),
        *_work_lines(settings, estimate),
        f"teacher: {estimate.teacher_parameters:,} parameters",
        *_stage_lines(recipe, settings, estimate),
        *_training_lines(recipe, family, settings, of_run=bool(teachers)),
        *_run_lines(recipe, settings, estimate, teachers, n_images, copied_bytes, export_every),
        f"taps: {len(estimate.taps)} (student <- teacher, channels x height x width)",
        *(f"  {tap}" for tap in estimate.taps),
    ]
    return {
        "recipe": recipe.name,
        "student": recipe.student,
        "teacher": recipe.teacher,
        "family": family,
        "size_px": estimate.size_px,
        "teacher_parameters": estimate.teacher_parameters,
        "teacher_macs": estimate.teacher_macs,
        "stages": [vars(stage) for stage in estimate.stages],
        "memory_bytes": vars(estimate.memory) | {"total": estimate.memory.total(settings.batch, checkpointing=settings.checkpointing)},
        "flops": estimate.flops,
        "gpu_hours": hours or None,
        "usd": [each * usd_per_hour for each in hours] if usd_per_hour else None,
        "loss": recipe.loss.model_dump(),
        "settings": TypeAdapter(dict[str, Any]).dump_python(dict(settings), mode="json"),  # `model_dump` leaves out what digests do
        "taps": [{"student": tap.student, "teacher": tap.teacher, "shape": tap.shape[1:]} for tap in estimate.taps],
        "text": "\n".join(lines),
    }


@dataclass(frozen=True)
class _Stage:
    """The student of a stage, and the work of training it.

    Attributes:
        macs: of a forward pass of one image.
        flops_per_step: of an optimiser step.
        fixed_bytes: memory that a process takes before any image.
    """

    name: str
    steps: int
    parameters: int
    transformer_blocks: int
    macs: int
    flops_per_step: int
    fixed_bytes: int


@dataclass(frozen=True)
class _Estimate:
    """What training takes.

    Attributes:
        memory: of a process in the first stage, the largest.
        teacher_macs: of a forward pass of one image.
        cached_bytes: latents and embeddings of one image, on disk.
    """

    size_px: int
    memory: Memory
    teacher_parameters: int
    teacher_macs: int
    stages: list[_Stage]
    taps: list[Tap]
    cached_bytes: int

    @property
    def flops(self) -> int:
        """FLOPs of all steps."""
        return sum(stage.steps * stage.flops_per_step for stage in self.stages)

    @property
    def checkpoint_bytes(self) -> int:
        """Disk that the checkpoints of the first stage take, the one that is being written included."""
        return (MAX_CHECKPOINTS + 1) * (self.memory.weights + self.memory.moments + self.memory.ema)


def _estimate(recipe: Recipe, family: Family, settings: Training, first_stage: int) -> _Estimate:
    stage_steps, size_px = recipe.stage_steps(settings.steps, first_stage), recipe.size_px(family)
    trained, cuts = recipe.stages[first_stage:], recipe.cuts[first_stage:]
    latent_size, tokens = input_sizes(PARTS[family], size_px)
    teacher = build_on_meta("unet", unet_config(recipe.teacher, family))
    students = [prune(teacher, cut, copy=False) for cut in cuts]
    taps = resolve_taps(students[-1].config, teacher.config, cuts[-1], recipe.taps)
    n, dtype, ema = count_parameters(teacher), settings.dtype, settings.ema > 0
    memory = estimate_memory(students[0], n, taps, latent_size=latent_size, tokens=tokens, dtype=dtype, ema=ema)
    teacher_macs, *student_macs = (unet_macs(network.config, latent_size, tokens) for network in (teacher, *students))
    images = settings.batch * settings.accumulation
    stages = [
        _Stage(
            name=stage.name,
            steps=steps,
            parameters=count_parameters(student),
            transformer_blocks=sum(cut.depths.values()),
            macs=macs,
            flops_per_step=step_flops(teacher_macs, macs, images, checkpointing=settings.checkpointing),
            fixed_bytes=sum(fixed_bytes(count_parameters(student), n, dtype=dtype, ema=ema).values()),
        )
        for stage, cut, steps, student, macs in zip(trained, cuts, stage_steps, students, student_macs, strict=True)
    ]
    latents = teacher.config.in_channels * latent_size**2
    embeddings = tokens * teacher.config.cross_attention_dim + pooled_width(teacher.config)
    return _Estimate(
        size_px=size_px,
        memory=memory,
        teacher_parameters=n,
        teacher_macs=teacher_macs,
        stages=stages,
        taps=taps,
        cached_bytes=2 * (latents + embeddings),  # float16
    )


def _run_lines(
    recipe: Recipe,
    settings: Training,
    estimate: _Estimate,
    teachers: Sequence[str],
    n_images: int | None,
    copied_bytes: int,
    export_every: int | None,
) -> Iterator[str]:
    """What a particular run has of its own: teachers, images, and the disk that they take."""
    if teachers:
        shares = zip(teachers, recipe.teacher_shares(len(teachers)), strict=True)
        names = (f"{name} ({share:.0%} of the steps)" for name, share in shares)
        yield f"this run: teachers {', '.join(names)}"
    if n_images:
        yield f"this run: {settings.describe_epochs(n_images, settings.steps)}"
        first_stage = len(recipe.stages) - len(estimate.stages)
        segments = recipe.segments(settings.steps, len(teachers) or 1, first_stage)
        students = [4 * estimate.stages[segment.stage - first_stage].parameters for segment in segments]  # in float32, kept once trained
        disk = n_images * estimate.cached_bytes + estimate.checkpoint_bytes + sum(students)
        copied = f", and {size_text(copied_bytes)} in the cache of `datasets`" if copied_bytes else ""
        yield f"this run: {size_text(disk)} of disk for latents, embeddings, checkpoints and the students of finished stages{copied}"
        if export_every:
            counts = [min(each.end, settings.steps - 1) // export_every - each.start // export_every for each in segments]
            disk = sum(count * size for count, size in zip(counts, students, strict=True))
            yield f"this run: students on the way: {sum(counts)}, {size_text(disk)} of disk beside --out (half for a teacher in 16 bits)"


def _stage_lines(recipe: Recipe, settings: Training, estimate: _Estimate) -> list[str]:
    lines = []
    for stage, found in zip(recipe.stages[-len(estimate.stages) :], estimate.stages, strict=True):
        only_warmup = f" (all of them warm-up, to {found.steps / settings.warmup:.0%} of lr)" if found.steps < settings.warmup else ""
        lines.append(
            f"stage {stage.name}: {found.steps:,} steps{only_warmup}, {found.parameters:,} parameters, "
            f"{found.transformer_blocks} transformer blocks"
        )
        lines += [f"  {row.block} keeps resnets {_format_numbers(row.resnets)}  ({row.source})" for row in stage.shorten or ()]
        lines += [f"  {row.attentions} keeps {_format_numbers(row.blocks)}  ({row.source})" for row in stage.keep]
    return lines + _middle_lines(recipe)


def _middle_lines(recipe: Recipe) -> list[str]:
    """What happens to the middle's resnets if its attention is removed."""
    if MIDDLE_ATTENTION in recipe.cuts[-1].blocks:
        return []
    resnet = recipe.middle.resnet
    change = "the whole middle is removed" if resnet == "none" else f"the middle resnet is the teacher's mid_block.resnets.{resnet}"
    return [f"  {change}  ({recipe.middle.source})"]


def _training_lines(recipe: Recipe, family: Family, settings: Training, *, of_run: bool) -> list[str]:
    """Loss and settings; a particular run names its own teachers and images instead of the recipe's."""
    decay = {"cosine": "then falls to zero along a half cosine", "none": "then stays"}[settings.lr_decay]
    rows = {name: value for name, value in settings if not (of_run and name in ("teachers", "data", "images"))}
    return [
        "loss: " + ", ".join(f"{name} {value}" for name, value in recipe.loss),
        f"each stage, and each teacher in it, starts with a new AdamW; lr rises for {settings.warmup} steps to {settings.lr:g}, {decay}",
        f"settings of family {family}:",
        *(f"  {name} = {_format_setting(value)}" for name, value in rows.items()),
    ]


def _work_lines(settings: Training, estimate: _Estimate) -> list[str]:
    passes = FORWARD_EQUIVALENTS[settings.checkpointing]
    n_images = settings.images if isinstance(settings, ScenesTraining) else 1000
    return [
        (
            f"  disk: {size_text(n_images * estimate.cached_bytes)} for latents and embeddings of {n_images:,} images; "
            f"{size_text(estimate.checkpoint_bytes)} for checkpoints"
        ),
        f"  forward pass of an image: teacher {_format_macs(estimate.teacher_macs)}",
        *(f"  stage {stage.name}: student {_format_macs(stage.macs)}, {stage.flops_per_step:.4g} FLOP a step" for stage in estimate.stages),
        (
            f"  work: {estimate.flops:.4g} FLOP; per image, a forward pass of the teacher and "
            f"the work of {passes:g} forward passes of the student"
        ),
    ]


def _speeds(tflops: float | None) -> list[float]:
    """TFLOP/s of a GPU in training: the given number, or the best and the worst that is assumed."""
    return [tflops] if tflops else [mfu * H100_TFLOPS for mfu in ASSUMED_MFU]


def _time_lines(hours: Sequence[float], tflops: float | None, usd_per_hour: float | None) -> list[str]:
    percent = _format_range(100 * mfu for mfu in ASSUMED_MFU)
    assumption = "" if tflops else f", assumed: {percent} % of an H100's {H100_TFLOPS:g} for dense bfloat16"
    cost = [f"  cost: {_format_range(each * usd_per_hour for each in hours)} USD at {usd_per_hour:g} an hour"] if usd_per_hour else []
    return [
        f"  time: {_format_range(hours)} GPU hours at {_format_range(_speeds(tflops))} TFLOP/s{assumption}",
        *cost,
        "    not included: drawing and encoding the images, samples during training, checkpoints",
        "    to measure it: nox -s speed -- -m slow -k training, whose `tflops` goes to --tflops",
    ]


def _memory_lines(settings: Training, estimate: _Estimate) -> list[str]:
    memory, batch = estimate.memory, settings.batch
    sizes = {name: size_text(size) for name, size in vars(memory).items()}
    total, checkpointed = (size_text(memory.total(batch, checkpointing=checkpointing)) for checkpointing in (False, True))
    fixed = ", ".join(f"{size_text(stage.fixed_bytes)} in stage {stage.name}" for stage in estimate.stages)
    return [
        f"  memory of each process, one per GPU, in stage {estimate.stages[0].name}, the largest:",
        (
            f"    student in float32: weights {sizes['weights']}, gradients {sizes['gradients']}, "
            f"AdamW's moments {sizes['moments']}, EMA {sizes['ema']}"
        ),
        f"    in {settings.dtype}: copies of these weights {sizes['autocast_copies']}, the teacher's weights {sizes['teacher']}",
        f"    before any image: {fixed}",
        (
            f"    activations saved per image: {sizes['activations']}; with gradient checkpointing {sizes['checkpointed']}; "
            f"the teacher's taps {sizes['taps']}"
        ),
        f"    recomputed with checkpointing, the largest block per image: {sizes['recomputed']}",
        f"    total, with {batch} images per forward pass: {total}; with gradient checkpointing {checkpointed}",
        "    not included: workspaces, temporary gradients inside a block, allocator overhead",
    ]


def _format_macs(macs: int) -> str:
    return f"{macs / 1e9:,.5g} GMAC"


def _format_number(value: float) -> str:
    """Three significant digits, or all digits before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _format_range(values: Iterable[float]) -> str:
    """One number, or the first and the last."""
    return " to ".join(map(_format_number, values))


def _format_numbers(numbers: Sequence[int] | str) -> str:
    return numbers if isinstance(numbers, str) else ", ".join(map(str, numbers)) or "nothing"


def _format_setting(value: object) -> str:
    if isinstance(value, TeacherShare):
        return f"{value.name} ({value.share:.0%} of the steps; {value.source})"
    return ", ".join(map(_format_setting, value)) if isinstance(value, tuple) else str(value)
