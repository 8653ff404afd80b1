"""A recipe in words: what it cuts, what it compares, how it trains, and what that would take."""

from collections.abc import Iterable, Sequence

from diffusers import UNet2DConditionModel

from distillation.data.batches import exposure
from distillation.estimate import H100_TFLOPS, PASSES, SHARES, Memory, count, gpu_hours, memory, step_flops
from distillation.plan import MIDDLE
from distillation.prune import on_meta, prune
from distillation.recipe import Family, Recipe
from distillation.recipe_tables import Teaching
from distillation.taps import Tap, resolve
from sdbench.models.architectures import PARTS, Config, unet_config
from sdbench.probes.work import shape, unet_macs
from sdbench.training.checkpoints import MAX_CHECKPOINTS


def describe(
    recipe: Recipe,
    family: Family,
    counts: list[int] | None = None,
    *,
    teachers: Sequence[str] = (),
    n_pictures: int | None = None,
    tflops: float | None = None,
    usd_per_hour: float | None = None,
) -> str:
    """A recipe in the widths of a family: stages, blocks kept and why, parameters, taps, settings, and what training would take.

    Args:
        recipe: what to describe.
        family: whose widths and settings.
        counts: steps of each stage, where they are not the recipe's own.
        teachers: names of those of a run, where one is described.
        n_pictures: that it trains on.
        tflops: 10^12 FLOPs a second that a GPU reaches in training; where not given, an assumption that the text states.
        usd_per_hour: price of a GPU; without it the text has no cost.
    """
    settings = recipe.settings(family)
    counts = counts or recipe.stage_steps(settings.steps)
    teacher = on_meta(unet_config(recipe.teacher, family))
    students = [prune(teacher, plan) for plan in recipe.plans]
    lines = [
        f"{recipe.name}: {recipe.student or 'a student'} from {recipe.teacher}, family {family}",
        f"teacher: {count(teacher):,} parameters",
    ]
    for stage, plan, steps, student in zip(recipe.stages, recipe.plans, counts, students, strict=True):
        blocks = sum(plan.depths.values())
        few = f" (all of them warm-up, to {steps / settings.warmup:.0%} of lr)" if steps < settings.warmup else ""
        lines.append(f"stage {stage.name}: {steps:,} steps{few}, {count(student):,} parameters, {blocks} transformer blocks")
        lines += [f"  {row.block} keeps resnets {_listed(row.resnets)}  ({row.source})" for row in stage.shorten or ()]
        lines += [f"  {row.attentions} keeps {_listed(row.blocks)}  ({row.source})" for row in stage.keep]
    lines += _middle(recipe)
    taps = resolve(students[-1].config, teacher.config, recipe.plans[-1], recipe.taps)
    lines += [f"taps: {len(taps)} (student <- teacher, channels x height x width)", *(f"  {tap}" for tap in taps)]
    lines.append("loss: " + ", ".join(f"{name} {value}" for name, value in recipe.loss))
    then = {"cosine": "then goes down a half cosine to zero", "none": "then stays"}[settings.lr_decay]
    lines.append(
        f"each stage, and each teacher in it, begins with a new AdamW; lr rises for {settings.warmup} steps to {settings.lr:g}, {then}"
    )
    named = {name: value for name, value in settings if not (teachers and name in ("teachers", "data", "pictures"))}
    lines += [f"settings of family {family}:", *(f"  {name} = {_said(value)}" for name, value in named.items())]
    if teachers:
        shares = [1.0] if len(teachers) == 1 else [teaching.share for teaching in recipe.sdxl.teachers]
        taught = (f"{name} ({share:.0%} of the steps)" for name, share in zip(teachers, shares, strict=True))
        lines.append(f"this run: teachers {', '.join(taught)}")
    if n_pictures:
        lines.append(f"this run: {exposure(n_pictures, sum(counts), settings)}")
    return "\n".join(lines + _estimate(recipe, family, teacher, students, taps, counts, tflops, usd_per_hour))


def _middle(recipe: Recipe) -> list[str]:
    """What becomes of the middle's resnets, where its attention goes."""
    if MIDDLE in recipe.plans[-1].blocks:
        return []
    kept = (
        "the whole middle goes"
        if recipe.middle.resnet == "none"
        else f"the middle resnet is the teacher's mid_block.resnets.{recipe.middle.resnet}"
    )
    return [f"  {kept}  ({recipe.middle.source})"]


def _estimate(
    recipe: Recipe,
    family: Family,
    teacher: UNet2DConditionModel,
    students: list[UNet2DConditionModel],
    taps: list[Tap],
    counts: list[int],
    tflops: float | None,
    usd_per_hour: float | None,
) -> list[str]:
    settings, size_px = recipe.settings(family), recipe.size_px(family)
    latent_size, tokens = shape(PARTS[family], size_px)
    first = memory(students[0], count(teacher), taps, latent_size=latent_size, tokens=tokens, dtype=settings.dtype, ema=settings.ema > 0)
    macs = [unet_macs(network.config, latent_size, tokens) for network in (teacher, *students)]
    pictures, twice = settings.batch * settings.accumulation, settings.checkpointing
    flops = [step_flops(macs[0], student, pictures, checkpointing=twice) for student in macs[1:]]
    whole = sum(steps * each for steps, each in zip(counts, flops, strict=True))
    speeds = [tflops] if tflops else [share * H100_TFLOPS for share in SHARES]
    hours = [gpu_hours(whole, speed) for speed in speeds]
    of_h100 = f", assumed: {_range(100 * share for share in SHARES)} % of an H100's {H100_TFLOPS:g} for dense bfloat16"
    cost = [f"  cost: {_range(each * usd_per_hour for each in hours)} USD at {usd_per_hour:g} an hour"] if usd_per_hour else []
    return [
        f"estimate at {size_px} px; nothing was run:",
        *_memory(first, recipe.stages[0].name, settings.batch, settings.dtype),
        _disk(teacher.config, first, latent_size, tokens),
        f"  forward pass of a picture: teacher {_gmacs(macs[0])}",
        *(
            f"  stage {stage.name}: student {_gmacs(own)}, {each:.4g} FLOP a step"
            for stage, own, each in zip(recipe.stages, macs[1:], flops, strict=True)
        ),
        f"  work: {whole:.4g} FLOP; each picture takes a forward of the teacher, and of the student what {PASSES[twice]:g} forwards take",
        f"  time: {_range(hours)} GPU hours at {_range(speeds)} TFLOP/s{'' if tflops else of_h100}",
        *cost,
        "    not in it: drawing and encoding the pictures, pictures on the way, checkpoints",
        "    to measure it: nox -s speed -- -m slow -k training, whose `tflops` goes to --tflops",
    ]


def _memory(found: Memory, stage: str, batch: int, dtype: str) -> list[str]:
    of = {name: _size(size) for name, size in vars(found).items()}
    together, frugal = (_size(found.together(batch, checkpointing=checkpointing)) for checkpointing in (False, True))
    return [
        f"  memory of each process, one a GPU, in stage {stage}, the largest:",
        f"    student in float32: weights {of['weights']}, gradients {of['gradients']}, AdamW's moments {of['moments']}, EMA {of['average']}",
        f"    in {dtype}: copies of these weights {of['copies']}, the teacher's weights {of['teacher']}",
        f"    activations kept of a picture: {of['activations']}; with gradient checkpointing {of['checkpointed']}; the teacher's taps {of['taps']}",
        f"    computed again with checkpointing, the largest block of a picture: {of['again']}",
        f"    together, with {batch} pictures in a forward pass: {together}; with gradient checkpointing {frugal}",
        "    not in it: workspaces, gradients on their way through a block, and what the allocator wastes",
    ]


def _disk(config: Config, found: Memory, latent_size: int, tokens: int) -> str:
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    latents, embeddings = config["in_channels"] * latent_size**2, tokens * config["cross_attention_dim"] + pooled
    checkpoints = (MAX_CHECKPOINTS + 1) * (found.weights + found.moments + found.average)
    return f"  disk: {_size(2 * (latents + embeddings) * 1000)} for latents and embeddings of 1,000 pictures; {_size(checkpoints)} for checkpoints"


def _size(size: int) -> str:
    return f"{_figure(size / 1e9)} GB" if size >= 1e8 else f"{_figure(size / 1e6)} MB"


def _gmacs(macs: int) -> str:
    return f"{macs / 1e9:,.5g} GMAC"


def _figure(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _range(values: Iterable[float]) -> str:
    """One figure, or the first and the last."""
    return " to ".join(map(_figure, values))


def _listed(blocks: Sequence[int] | str) -> str:
    return blocks if isinstance(blocks, str) else ", ".join(map(str, blocks)) or "nothing"


def _said(value: object) -> str:
    if isinstance(value, Teaching):
        return f"{value.name} ({value.share:.0%} of the steps; {value.source})"
    return ", ".join(map(_said, value)) if isinstance(value, tuple) else str(value)
