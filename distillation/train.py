"""Training, stage by stage: prune, then train. A run that was killed resumes where it stopped.

What a run leaves on the disk is in `run_folder`.
"""

import gc
import json
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from distillation.accelerator import emulates_bfloat16, explain_training_memory, make_accelerator
from distillation.data.batches import numbered_batches, scene_pool
from distillation.export import check_new_or_empty
from distillation.losses import min_snr_weights, weighted_terms
from distillation.provenance import Environment
from distillation.prune import prune
from distillation.run_folder import (
    LOSSES,
    STUDENT,
    Run,
    add_environment,
    check_steps,
    load_student,
    run_folder,
    segment_folders,
    step_folder,
)
from distillation.run_plan import RunPlan, check_images, check_start
from distillation.samples import StudentSampler
from distillation.start import warn_of_other_blocks
from distillation.succession import warn_of_different_parts
from distillation.taps import Tap, collect_outputs
from distillation.teacher import Teacher
from sdbench.arrays import U8
from sdbench.disk import locked
from sdbench.models.architectures import Family
from sdbench.models.out_of_memory import TooLittleMemoryError, explain_out_of_memory
from sdbench.notes import print_note
from sdbench.scenes.embedded import verified_path
from sdbench.scenes.networks import SceneNet
from sdbench.scenes.training.evaluation import SceneEvaluation
from sdbench.training.checkpoints import atomic_folder
from sdbench.training.diffusion import Batch, add_noise, predict, target
from sdbench.training.journal import Evaluate
from sdbench.training.latents import CaptionedImages, LatentPool
from sdbench.training.loop import NotFiniteError, Schedule, check_even_split, fit
from sdbench.training.processes import broadcast_from_main

FINAL_BATCHES = 4  # batches after a stage's own, over which its final losses are averaged


@dataclass(frozen=True)
class StepContext:
    """What all steps under one teacher share.

    Attributes:
        batch: makes the batch of a number.
        evaluate: draws a student's samples for the log, with metrics if the family has any.
        validation: makes the batches of the images that are not trained on, the same each time.
    """

    plan: RunPlan
    teacher: UNet2DConditionModel
    scheduler: DDIMScheduler
    batch: Callable[[int], Batch]
    accelerator: Accelerator
    evaluate: Evaluate
    validation: Callable[[], Iterable[Batch]] = tuple


def distil(
    plan: RunPlan,
    work: Path,
    out: Path,
    *,
    images: CaptionedImages | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    unet_only: bool = False,
    export_every: int | None = None,
) -> Path:
    """Train the student, write it to `out` and return `out`. Stages that an earlier run finished under `work` are not trained again.

    The same run in another process, which would write the same folders, is waited for.

    Args:
        work: folder for training images, latents and stages.
        out: new or empty folder for the student.
        images: to train on; default: rendered scenes, for the embedded family only.
        device: where both networks run; of several processes, as `torchrun` starts them, each takes its own GPU.
        unet_only: write the UNet alone instead of a complete pipeline.
        export_every: steps, over all stages, after which the UNet that the run then has is written beside `out`; None: only the last.

    Raises:
        UserError: there are no images, the student to start from is not one of the teacher, `out` is not empty, the device is missing or
            has too little memory, the processes cannot share a step evenly, a loss is not finite, a student of a step is there from
            another run, or a file cannot be read or written.
    """
    check_new_or_empty(out)
    settings = plan.settings
    check_images(plan.family, images)
    check_start(plan)
    accelerator = make_accelerator(device, settings.dtype)
    check_even_split(settings.accumulation, accelerator.num_processes)  # before hours of encoding
    source = _open_images(plan, images, work, accelerator)
    data_digest = broadcast_from_main(lambda: source.digest)  # it may read all images
    folder = broadcast_from_main(lambda: run_folder(work, plan.recipe.name, plan.identity(data_digest, device)))
    if export_every:
        check_steps(out, folder)
    left = [
        segment.stage for segment, each in zip(plan.segments, segment_folders(folder, plan), strict=True) if not (each / STUDENT).exists()
    ]
    if left:
        plan.check_memory(left[0], accelerator.device)
    with explain_out_of_memory(str(accelerator.device), "to encode the images"):
        pool = LatentPool(plan.teachers[0].folder, source, work / "latents", str(accelerator.device), settings.validation)
    if accelerator.is_main_process and len(pool.validation_rows):
        print_note(f"not trained on: {len(pool.validation_rows):,} of these images, whose loss is logged")
    evaluate = _make_evaluation(plan.family, pool, plan.teachers[0].folder, accelerator)

    def make_context(teacher: Teacher) -> StepContext:
        place = str(accelerator.device)
        unet = teacher.unet(settings.dtype, place)
        batch = numbered_batches(pool, settings, place, accelerator.num_processes)
        validation = partial(_validation_batches, pool, settings.batch, place)
        return StepContext(plan, unet, pool.scheduler, batch, accelerator, evaluate, validation)

    run = Run(folder, plan, data_digest, len(pool))

    def export_step(number: int, taken: int, network: nn.Module) -> None:
        step = plan.segments[number].start + taken
        if export_every and taken and step % export_every == 0 and step < plan.segments[-1].end:
            run.export_step(number, taken, network, step_folder(out, step))

    with ExitStack() as alone, _advise_export(run), explain_training_memory(settings, str(accelerator.device)):
        broadcast_from_main(lambda: alone.enter_context(locked(folder / ".lock")))
        if accelerator.is_main_process:
            run.save()
            print_note(f"the run is in {folder}; `distillation export` writes the student that it has so far")
        _train_segments(make_context, run, accelerator, export_step)
    if accelerator.is_main_process:
        run.export(out, unet_only=unet_only)
    return out


def _open_images(plan: RunPlan, images: CaptionedImages | None, work: Path, accelerator: Accelerator) -> CaptionedImages:
    """The images to train on, by default rendered scenes; the main process logs what the run trains on."""
    with accelerator.main_process_first():  # renders the scenes; the other processes then find them
        source = scene_pool(plan.recipe.settings("scenes").images, work) if images is None else images
    if accelerator.is_main_process:
        warn_of_different_parts(plan.teachers)
        if plan.settings.dtype == "bfloat16" and emulates_bfloat16(str(accelerator.device)):
            print_note('this GPU only emulates bfloat16, which is slow: set dtype = "float32" in a copy of the recipe')
        print_note(f"training on {plan.settings.describe_epochs(len(source.captions), plan.segments[-1].end)}")
        for teacher in plan.teachers:
            print_note(f"teacher: the {teacher.dtype} weights in {teacher.folder}")
        if plan.start:
            warn_of_other_blocks(plan.start, plan.recipe)
            if plan.start.dtypes != ["F32"]:
                print_note(f"starting from weights that were rounded to {' and '.join(plan.start.dtypes)}, those in {plan.start.folder}")
    return source


def _make_evaluation(family: Family, pool: LatentPool, teacher_folder: Path, accelerator: Accelerator) -> Evaluate:
    if family == "scenes":
        return SceneEvaluation(pool, SceneNet.load(verified_path("evaluators/reader.safetensors")))
    return StudentSampler(pool, teacher_folder, accelerator.autocast)


def _train_segments(
    make_context: Callable[[Teacher], StepContext],
    run: Run,
    accelerator: Accelerator,
    export_step: Callable[[int, int, nn.Module], None],
) -> None:
    """Train every unfinished segment, each from the student that the segment before it left in its folder.

    Args:
        make_context: makes the context of the steps under a teacher.
        export_step: called after each step, with the segment's number, the steps taken in it, and the network to keep so far.
    """
    plan = run.plan
    for number, (segment, folder) in enumerate(zip(plan.segments, run.segment_folders, strict=True)):
        if not (folder / STUDENT).exists():
            steps, taps = range(segment.start, segment.end), plan.taps[segment.stage]
            context = make_context(plan.teachers[segment.teacher])
            _train_segment(context, _initial_student(run, number), taps, steps, folder, partial(export_step, number))
            accelerator.free_memory()  # it holds every model that it ever prepared
            gc.collect()  # a model whose forward was wrapped for mixed precision refers to itself
        accelerator.wait_for_everyone()  # the student is written, and no process still reads a checkpoint
        if accelerator.is_main_process:
            for checkpoint in folder.glob("step-*"):
                shutil.rmtree(checkpoint)


def _initial_student(run: Run, number: int) -> UNet2DConditionModel:
    """The student that segment `number` starts from, in float32 on the CPU.

    It is cut from the student of the segment before, or that of `--from`, or from the teacher as stored.
    """
    plan = run.plan
    stages = [segment.stage for segment in plan.segments]
    cut = plan.recipe.cuts[stages[number]]
    if number:
        earlier, student = stages[number - 1], load_student(run.segment_folders[number - 1])
    elif plan.start:
        earlier, student = plan.start.stage, plan.start.unet()
    else:
        teacher = plan.teachers[0]
        return prune(teacher.unet(teacher.dtype, "cpu"), cut).float()
    return prune(student, cut.relative_to(plan.recipe.cuts[earlier]))


@contextmanager
def _advise_export(run: Run) -> Iterator[None]:
    """While open, let an error that may ask for another recipe, and so for a new run, say how to go on from what was trained.

    Raises:
        UserError: the error.
    """
    try:
        yield
    except (NotFiniteError, TooLittleMemoryError) as error:
        if not any(run.folder.glob("*/step-*")) and not any(run.folder.glob(f"*/{STUDENT}")):
            raise
        export = shlex.join(["distillation", "export", str(run.folder), "--out", "STUDENT"])
        same_run = "On another GPU, or with only `checkpointing` changed in a recipe of this name, this run goes on. For any other change: "
        raise error.followed_by(
            f"{same_run if isinstance(error, TooLittleMemoryError) else 'To keep what was trained: '}{export}, then the changed run with "
            "--from STUDENT, and --steps for the steps that are left"
        ) from error


def _train_segment(
    context: StepContext,
    student: UNet2DConditionModel,
    taps: list[Tap],
    steps: range,
    folder: Path,
    after_step: Callable[[int, nn.Module], object],
) -> None:
    settings, accelerator = context.plan.settings, context.accelerator
    if accelerator.is_main_process:
        add_environment(folder, Environment.of_this_process(str(accelerator.device), accelerator.num_processes))
    if settings.checkpointing:
        student.enable_gradient_checkpointing()
    model = accelerator.prepare_model(student.requires_grad_(requires_grad=True))
    first_batch, next_batch = (step * settings.accumulation for step in (steps.start, steps.stop))
    schedule = Schedule(**{field.name: getattr(settings, field.name) for field in fields(Schedule)} | {"steps": len(steps)})

    def evaluate(network: nn.Module) -> tuple[U8, dict[str, float]]:
        image, values = context.evaluate(network)
        return image, values | _validation_losses(context, network, taps)

    trained = fit(
        model,
        lambda number: batch_loss_terms(context, model, taps, first_batch + number),
        schedule,
        folder,
        accelerator=accelerator,
        evaluate=evaluate,
        after_step=after_step,
    )
    if accelerator.is_main_process:
        losses = _final_losses(context, trained, taps, next_batch) | _validation_losses(context, trained, taps)
        with atomic_folder(STUDENT, folder) as partial:
            trained.save_pretrained(partial)
            (partial / LOSSES).write_text(json.dumps(losses), encoding="utf-8")


def batch_loss_terms(context: StepContext, student: nn.Module, taps: list[Tap], number: int) -> dict[str, Tensor]:
    """The weighted loss terms of the batch of a number; the student may be wrapped for several processes."""
    return _loss_terms(context, student, taps, context.batch(number))


def _loss_terms(context: StepContext, student: nn.Module, taps: list[Tap], batch: Batch) -> dict[str, Tensor]:
    weights = context.plan.recipe.loss
    noised = add_noise(context.scheduler, batch)
    unwrapped = context.accelerator.unwrap_model(student)
    with (
        collect_outputs(context.teacher, [tap.teacher for tap in taps]) as teacher_features,
        collect_outputs(unwrapped, [tap.student for tap in taps]) as student_features,
    ):
        return weighted_terms(
            weights,
            taps,
            sample_weights=min_snr_weights(context.scheduler, batch.timesteps, weights.snr_gamma),
            target=target(context.scheduler, batch),
            teacher=_predict_with_teacher(context.teacher, noised, batch),
            student=predict(student, noised, batch),
            student_features=student_features,
            teacher_features=teacher_features,
        )


@torch.no_grad()
def _predict_with_teacher(teacher: UNet2DConditionModel, noised: Tensor, batch: Batch) -> Tensor:
    """The teacher's prediction, without autocast: its weights are already in the dtype to compute in."""
    with torch.autocast(noised.device.type, enabled=False):
        return predict(teacher, noised.to(teacher.dtype), batch.to(teacher.dtype))


@torch.no_grad()
def _final_losses(context: StepContext, student: nn.Module, taps: list[Tap], first_batch: int) -> dict[str, float]:
    """Mean of each weighted term over the batches that follow the segment's own."""
    rows = [batch_loss_terms(context, student, taps, first_batch + number) for number in range(FINAL_BATCHES)]
    return {name: float(torch.stack([row[name] for row in rows]).mean()) for name in rows[0]}


def _validation_batches(pool: LatentPool, batch: int, device: str) -> Iterator[Batch]:
    """The images that are not trained on, `batch` at a time, with their captions and each time the same noise and timesteps."""
    for start in range(0, len(pool.validation_rows), batch):
        yield pool.batch_of_rows(pool.validation_rows[start : start + batch], start, device=device)


@torch.no_grad()
def _validation_losses(context: StepContext, student: nn.Module, taps: list[Tap]) -> dict[str, float]:
    """Mean of each weighted term over the images that are not trained on; empty if there are none."""
    n, sums = 0, dict[str, float]()
    for batch in context.validation():
        with context.accelerator.autocast():
            terms = _loss_terms(context, student, taps, batch)
        images = len(batch.latents)
        n, sums = n + images, {name: sums.get(name, 0) + images * term.item() for name, term in terms.items()}
    return {f"validation/{name}": total / n for name, total in sums.items()}
