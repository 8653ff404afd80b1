"""A recipe in words: what it cuts, what it compares, how it trains, and an estimate of what training takes."""

from collections.abc import Iterable, Sequence

from diffusers import UNet2DConditionModel

from distillation.estimate import (
    ASSUMED_MFU,
    FORWARD_EQUIVALENTS,
    H100_TFLOPS,
    Memory,
    estimate_memory,
    gpu_hours,
    step_flops,
)
from distillation.plan import MIDDLE_ATTENTION
from distillation.prune import prune
from distillation.recipe import Family, Recipe
from distillation.recipe_tables import TeacherShare, Training
from distillation.taps import Tap, resolve_taps
from sdbench.disk import size_text
from sdbench.models.architectures import PARTS, Config, pooled_width, unet_config
from sdbench.models.loading import build_on_meta, count_parameters
from sdbench.probes.work import input_sizes, unet_macs
from sdbench.training.checkpoints import MAX_CHECKPOINTS


def describe_recipe(
    recipe: Recipe,
    family: Family,
    *,
    steps: int | None = None,
    teachers: Sequence[str] = (),
    n_images: int | None = None,
    tflops: float | None = None,
    usd_per_hour: float | None = None,
) -> str:
    """An estimate of what training takes, and stages, kept blocks with their sources, parameters, settings and taps of a recipe.

    Args:
        family: whose widths and settings to use.
        steps: in total over all stages; default: the recipe's.
        teachers: names of the teachers, to describe a particular run.
        n_images: number of training images of that run.
        tflops: 10^12 FLOPs per second that a GPU reaches in training; default: an assumption that the text states.
        usd_per_hour: price of a GPU; without it the text has no cost. For the embedded family, which trains on CPUs, GPU time is left out
            too, unless this or `tflops` is given.

    Raises:
        UserError: a stage or a tap does not fit the architectures, or the steps are too few for the stages.
    """
    settings = recipe.settings(family)
    stage_steps = recipe.stage_steps(steps or settings.steps)
    teacher = build_on_meta("unet", unet_config(recipe.teacher, family))
    students = [prune(teacher, plan, copy=False) for plan in recipe.plans]
    taps = resolve_taps(students[-1].config, teacher.config, recipe.plans[-1], recipe.taps)
    lines = [
        f"{recipe.name}: {recipe.student or 'a student'} from {recipe.teacher}, family {family}",
        *_estimate_lines(recipe, family, teacher, students, taps, stage_steps, tflops, usd_per_hour),
        f"teacher: {count_parameters(teacher):,} parameters",
        *_stage_lines(recipe, settings, students, stage_steps),
        *_training_lines(recipe, family, of_run=bool(teachers)),
    ]
    if teachers:
        shares = [1.0] if len(teachers) == 1 else [teacher_share.share for teacher_share in recipe.sdxl.teachers]
        names = (f"{name} ({share:.0%} of the steps)" for name, share in zip(teachers, shares, strict=True))
        lines.append(f"this run: teachers {', '.join(names)}")
    if n_images:
        lines.append(f"this run: {settings.describe_epochs(n_images, sum(stage_steps))}")
    lines += [f"taps: {len(taps)} (student <- teacher, channels x height x width)", *(f"  {tap}" for tap in taps)]
    return "\n".join(lines)


def _stage_lines(recipe: Recipe, settings: Training, students: list[UNet2DConditionModel], stage_steps: list[int]) -> list[str]:
    lines = []
    for stage, plan, steps, student in zip(recipe.stages, recipe.plans, stage_steps, students, strict=True):
        blocks = sum(plan.depths.values())
        only_warmup = f" (all of them warm-up, to {steps / settings.warmup:.0%} of lr)" if steps < settings.warmup else ""
        lines.append(
            f"stage {stage.name}: {steps:,} steps{only_warmup}, {count_parameters(student):,} parameters, {blocks} transformer blocks"
        )
        lines += [f"  {row.block} keeps resnets {_format_numbers(row.resnets)}  ({row.source})" for row in stage.shorten or ()]
        lines += [f"  {row.attentions} keeps {_format_numbers(row.blocks)}  ({row.source})" for row in stage.keep]
    return lines + _middle_lines(recipe)


def _middle_lines(recipe: Recipe) -> list[str]:
    """What happens to the middle's resnets if its attention is removed."""
    if MIDDLE_ATTENTION in recipe.plans[-1].blocks:
        return []
    resnet = recipe.middle.resnet
    change = "the whole middle is removed" if resnet == "none" else f"the middle resnet is the teacher's mid_block.resnets.{resnet}"
    return [f"  {change}  ({recipe.middle.source})"]


def _training_lines(recipe: Recipe, family: Family, *, of_run: bool) -> list[str]:
    """Loss and settings; a particular run names its own teachers and images instead of the recipe's."""
    settings = recipe.settings(family)
    decay = {"cosine": "then falls to zero along a half cosine", "none": "then stays"}[settings.lr_decay]
    rows = {name: value for name, value in settings if not (of_run and name in ("teachers", "data", "images"))}
    return [
        "loss: " + ", ".join(f"{name} {value}" for name, value in recipe.loss),
        f"each stage, and each teacher in it, starts with a new AdamW; lr rises for {settings.warmup} steps to {settings.lr:g}, {decay}",
        f"settings of family {family}:",
        *(f"  {name} = {_format_setting(value)}" for name, value in rows.items()),
    ]


def _estimate_lines(
    recipe: Recipe,
    family: Family,
    teacher: UNet2DConditionModel,
    students: list[UNet2DConditionModel],
    taps: list[Tap],
    stage_steps: list[int],
    tflops: float | None,
    usd_per_hour: float | None,
) -> list[str]:
    settings, size_px = recipe.settings(family), recipe.size_px(family)
    latent_size, tokens = input_sizes(PARTS[family], size_px)
    memory = estimate_memory(
        students[0], count_parameters(teacher), taps, latent_size=latent_size, tokens=tokens, dtype=settings.dtype, ema=settings.ema > 0
    )
    teacher_macs, *student_macs = (unet_macs(network.config, latent_size, tokens) for network in (teacher, *students))
    flops = [
        step_flops(teacher_macs, macs, settings.batch * settings.accumulation, checkpointing=settings.checkpointing)
        for macs in student_macs
    ]
    passes = FORWARD_EQUIVALENTS[settings.checkpointing]
    total_flops = sum(steps * per_step for steps, per_step in zip(stage_steps, flops, strict=True))
    return [
        f"estimate at {size_px} px; nothing was run:",
        *_memory_lines(memory, recipe.stages[0].name, settings.batch, settings.dtype),
        *(_time_lines(total_flops, tflops, usd_per_hour) if family == "sdxl" or tflops or usd_per_hour else []),
        _disk_line(teacher.config, memory, latent_size, tokens),
        f"  forward pass of an image: teacher {_format_macs(teacher_macs)}",
        *(
            f"  stage {stage.name}: student {_format_macs(macs)}, {per_step:.4g} FLOP a step"
            for stage, macs, per_step in zip(recipe.stages, student_macs, flops, strict=True)
        ),
        f"  work: {total_flops:.4g} FLOP; per image, a forward pass of the teacher and the work of {passes:g} forward passes of the student",
    ]


def _time_lines(total_flops: int, tflops: float | None, usd_per_hour: float | None) -> list[str]:
    speeds = [tflops] if tflops else [mfu * H100_TFLOPS for mfu in ASSUMED_MFU]
    hours = [gpu_hours(total_flops, speed) for speed in speeds]
    percent = _format_range(100 * mfu for mfu in ASSUMED_MFU)
    assumption = "" if tflops else f", assumed: {percent} % of an H100's {H100_TFLOPS:g} for dense bfloat16"
    cost = [f"  cost: {_format_range(each * usd_per_hour for each in hours)} USD at {usd_per_hour:g} an hour"] if usd_per_hour else []
    return [
        f"  time: {_format_range(hours)} GPU hours at {_format_range(speeds)} TFLOP/s{assumption}",
        *cost,
        "    not included: drawing and encoding the images, samples during training, checkpoints",
        "    to measure it: nox -s speed -- -m slow -k training, whose `tflops` goes to --tflops",
    ]


def _memory_lines(memory: Memory, stage: str, batch: int, dtype: str) -> list[str]:
    sizes = {name: size_text(size) for name, size in vars(memory).items()}
    total, checkpointed = (size_text(memory.total(batch, checkpointing=checkpointing)) for checkpointing in (False, True))
    return [
        f"  memory of each process, one per GPU, in stage {stage}, the largest:",
        f"    student in float32: weights {sizes['weights']}, gradients {sizes['gradients']}, AdamW's moments {sizes['moments']}, EMA {sizes['ema']}",
        f"    in {dtype}: copies of these weights {sizes['autocast_copies']}, the teacher's weights {sizes['teacher']}",
        f"    activations saved per image: {sizes['activations']}; with gradient checkpointing {sizes['checkpointed']}; the teacher's taps {sizes['taps']}",
        f"    recomputed with checkpointing, the largest block per image: {sizes['recomputed']}",
        f"    total, with {batch} images per forward pass: {total}; with gradient checkpointing {checkpointed}",
        "    not included: workspaces, temporary gradients inside a block, allocator overhead",
    ]


def _disk_line(config: Config, memory: Memory, latent_size: int, tokens: int) -> str:
    latents, embeddings = config["in_channels"] * latent_size**2, tokens * config["cross_attention_dim"] + pooled_width(config)
    checkpoints = (MAX_CHECKPOINTS + 1) * (memory.weights + memory.moments + memory.ema)
    per_1000 = size_text(2 * (latents + embeddings) * 1000)
    return f"  disk: {per_1000} for latents and embeddings of 1,000 images; {size_text(checkpoints)} for checkpoints"


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
