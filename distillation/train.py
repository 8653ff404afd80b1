"""Training, stage by stage: prune, then train. A run that was killed resumes where it stopped.

Each segment (one stage under one teacher) has its own folder inside a run folder, whose name is a digest of everything that
decides the weights. A finished segment holds a UNet in safetensors with its losses beside it; an unfinished one holds the
checkpoint to continue from. Both name the environments that they were trained in: a run may be resumed after an upgrade.
"""

import gc
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn

from distillation.accelerator import emulates_bfloat16, explain_training_memory, make_accelerator
from distillation.data.batches import numbered_batches, scene_pool
from distillation.export import check_new_or_empty, export_student
from distillation.losses import min_snr_weights, weighted_terms
from distillation.plan import Plan
from distillation.provenance import Environment, Provenance, SegmentResult
from distillation.prune import prune
from distillation.recipe import Recipe
from distillation.run_plan import RunPlan, check_images, plan_run
from distillation.samples import StudentSampler
from distillation.succession import warn_of_different_parts
from distillation.taps import Tap, collect_outputs
from distillation.teacher import Teacher
from sdbench.disk import digest, locked, read_json, write_json
from sdbench.errors import UserError
from sdbench.models.architectures import Family
from sdbench.models.checks import check_finite
from sdbench.models.loading import read_part
from sdbench.models.out_of_memory import explain_out_of_memory
from sdbench.notes import print_note
from sdbench.scenes.embedded import verified_path
from sdbench.scenes.networks import SceneNet
from sdbench.scenes.training.evaluation import SceneEvaluation
from sdbench.training.checkpoints import atomic_folder
from sdbench.training.diffusion import Batch, add_noise, predict, target
from sdbench.training.journal import Evaluate
from sdbench.training.latents import CaptionedImages, LatentPool
from sdbench.training.loop import Schedule, check_even_split, fit
from sdbench.training.processes import broadcast_from_main

FINAL_BATCHES = 4  # batches after a stage's own, over which its final losses are averaged
STUDENT, LOSSES, IDENTITY, ENVIRONMENTS = "student", "losses.json", "identity.json", "environments.json"


@dataclass(frozen=True)
class StepContext:
    """What all steps under one teacher share.

    Attributes:
        batch: makes the batch of a number.
        evaluate: draws a student's samples for the log, with metrics if the family has any.
    """

    plan: RunPlan
    teacher: UNet2DConditionModel
    scheduler: DDIMScheduler
    batch: Callable[[int], Batch]
    accelerator: Accelerator
    evaluate: Evaluate


def distil(
    recipe: Recipe,
    family: Family,
    teacher_folders: Sequence[Path],
    work: Path,
    out: Path,
    *,
    images: CaptionedImages | None = None,
    steps: int | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    unet_only: bool = False,
) -> Path:
    """Train the student, write it to `out` and return `out`. Stages that an earlier run finished under `work` are not trained again.

    The same run in another process, which would write the same folders, is waited for.

    Args:
        family: which of the recipe's settings to use.
        teacher_folders: the teacher, a complete diffusers pipeline, or several teachers in succession. The student is cut from
            the first and keeps its text encoders and VAE; only the UNets of the others are used.
        work: folder for training images, latents and stages.
        out: new or empty folder for the student.
        images: to train on; default: rendered scenes, for the embedded family only.
        steps: in total over all stages; default: the recipe's.
        device: where both networks run; of several processes, as `torchrun` starts them, each takes its own GPU.
        unet_only: write the UNet alone instead of a complete pipeline.

    Raises:
        UserError: a teacher does not fit the recipe or the family, there are no images, `out` is not empty, the device is missing or
            has too little memory, the processes cannot share a step evenly, a loss is not finite, or a file cannot be read or written.
    """
    check_new_or_empty(out)
    plan = plan_run(recipe, family, teacher_folders, steps)
    settings = plan.settings
    check_images(family, images)
    accelerator = make_accelerator(device, settings.dtype)
    check_even_split(settings.accumulation, accelerator.num_processes)  # before hours of encoding
    source = _open_images(plan, images, work, accelerator)
    folders = broadcast_from_main(lambda: _segment_folders(work, plan, plan.identity(source.digest, device)))
    left = [segment.stage for segment, folder in zip(plan.segments, folders, strict=True) if not (folder / STUDENT).exists()]
    if left:
        plan.check_memory(left[0], accelerator.device)
    with explain_out_of_memory(str(accelerator.device), "to encode the images"):
        pool = LatentPool(plan.teachers[0].folder, source, work / "latents", str(accelerator.device))
    evaluate = _make_evaluation(family, pool, teacher_folders[0], accelerator)

    def make_context(teacher: Teacher) -> StepContext:
        place = str(accelerator.device)
        unet = teacher.unet(settings.dtype, place)
        batch = numbered_batches(pool, settings, place, accelerator.num_processes)
        return StepContext(plan, unet, pool.scheduler, batch, accelerator, evaluate)

    with ExitStack() as alone, explain_training_memory(settings, str(accelerator.device)):
        broadcast_from_main(lambda: alone.enter_context(locked(folders[0].parent / ".lock")))
        _train_segments(make_context, plan, folders, accelerator)
    if accelerator.is_main_process:
        student = _load_student(folders[-1])
        provenance = Provenance.from_run(
            recipe, plan.teachers, student, settings, _segment_results(plan, folders), source.digest, len(pool)
        )
        logs = {folder.name: folder / "log.jsonl" for folder in folders}
        export_student(student, out, plan.teachers[0], provenance, logs=logs, unet_only=unet_only)
    return out


def _open_images(plan: RunPlan, images: CaptionedImages | None, work: Path, accelerator: Accelerator) -> CaptionedImages:
    """The images to train on, by default rendered scenes; the main process logs what the run trains on."""
    with accelerator.main_process_first():  # renders the scenes; the other processes then find them
        source = scene_pool(plan.recipe.scenes.images, work) if images is None else images
    if accelerator.is_main_process:
        warn_of_different_parts(plan.teachers)
        if plan.settings.dtype == "bfloat16" and emulates_bfloat16(str(accelerator.device)):
            print_note('this GPU only emulates bfloat16, which is slow: set dtype = "float32" in a copy of the recipe')
        print_note(f"training on {plan.settings.describe_epochs(len(source.captions), plan.segments[-1].end)}")
        for teacher in plan.teachers:
            print_note(f"teacher: the {teacher.dtype} weights in {teacher.folder}")
    return source


def _make_evaluation(family: Family, pool: LatentPool, teacher_folder: Path, accelerator: Accelerator) -> Evaluate:
    if family == "scenes":
        return SceneEvaluation(pool, SceneNet.load(verified_path("evaluators/reader.safetensors")))
    return StudentSampler(pool, teacher_folder, accelerator.autocast)


def _segment_folders(work: Path, plan: RunPlan, identity: dict[str, Any]) -> list[Path]:
    run = _run_folder(work, plan.recipe.name, identity)
    return [run / f"{number}-{plan.recipe.stages[segment.stage].name}" for number, segment in enumerate(plan.segments, 1)]


def _run_folder(work: Path, name: str, identity: dict[str, Any]) -> Path:
    """The folder of the run with this identity. If it is new, say how earlier runs of the same recipe differ."""
    run = work / f"{name}-{digest(identity)[:12]}"
    if not (run / IDENTITY).exists():
        for other in sorted(work.glob(f"{name}-{'?' * 12}/{IDENTITY}")):
            differences = ", ".join(read_json(other, lambda earlier: [key for key, value in identity.items() if earlier.get(key) != value]))
            print_note(f"starting a new run in {run}; the run in {other.parent} differs in: {differences}")
        write_json(run / IDENTITY, identity)
    return run


def _train_segments(
    make_context: Callable[[Teacher], StepContext], plan: RunPlan, folders: Sequence[Path], accelerator: Accelerator
) -> None:
    """Train every unfinished segment, each from the student that the segment before it left in its folder.

    Args:
        make_context: makes the context of the steps under a teacher.
        folders: one per segment.
    """
    previous = None
    for segment, folder in zip(plan.segments, folders, strict=True):
        stage_plan, teacher = plan.recipe.plans[segment.stage], plan.teachers[segment.teacher]
        if not (folder / STUDENT).exists():
            steps, taps = range(segment.start, segment.end), plan.taps[segment.stage]
            _train_segment(make_context(teacher), _initial_student(teacher, stage_plan, previous), taps, steps, folder)
            accelerator.free_memory()  # it holds every model that it ever prepared
            gc.collect()  # a model whose forward was wrapped for mixed precision refers to itself
        accelerator.wait_for_everyone()  # the student is written, and no process still reads a checkpoint
        if accelerator.is_main_process:
            for checkpoint in folder.glob("step-*"):
                shutil.rmtree(checkpoint)
        previous = stage_plan, folder


def _initial_student(teacher: Teacher, plan: Plan, previous: tuple[Plan, Path] | None) -> UNet2DConditionModel:
    """The student that a segment starts from, in float32 on the CPU: cut from the segment before it, or from the teacher as stored."""
    if previous is None:
        return prune(teacher.unet(teacher.dtype, "cpu"), plan).float()
    previous_plan, folder = previous
    return prune(_load_student(folder), plan.relative_to(previous_plan))


def _load_student(folder: Path) -> nn.Module:
    path = folder / STUDENT
    try:
        student = read_part("unet", path, torch.float32)
        check_finite(student, "unet", path)
    except UserError as error:
        raise UserError(f"the student of a finished stage is damaged: {error} Move {path} away to train that stage again") from error
    return student


def _segment_results(plan: RunPlan, folders: Sequence[Path]) -> list[SegmentResult]:
    return [
        SegmentResult(
            plan.recipe.stages[segment.stage].name,
            plan.teachers[segment.teacher].digest,
            segment.end - segment.start,
            read_json(folder / STUDENT / LOSSES, lambda losses: {name: float(loss) for name, loss in losses.items()}),
            _environments(folder),
        )
        for segment, folder in zip(plan.segments, folders, strict=True)
    ]


def _add_environment(folder: Path, environment: Environment) -> None:
    """Add an environment to those of a segment that is about to be trained; without a checkpoint, nothing made in earlier ones is left."""
    earlier = _environments(folder) if any(folder.glob("step-*")) else []
    if environment not in earlier:
        write_json(folder / ENVIRONMENTS, [asdict(each) for each in (*earlier, environment)])


def _environments(folder: Path) -> list[Environment]:
    found: list[Environment] = read_json(folder / ENVIRONMENTS, lambda rows: [Environment(**row) for row in rows])
    return found


def _train_segment(context: StepContext, student: UNet2DConditionModel, taps: list[Tap], steps: range, folder: Path) -> None:
    settings, accelerator = context.plan.settings, context.accelerator
    if accelerator.is_main_process:
        _add_environment(folder, Environment.of_this_process(str(accelerator.device), accelerator.num_processes))
    if settings.checkpointing:
        student.enable_gradient_checkpointing()
    model = accelerator.prepare_model(student.requires_grad_(requires_grad=True))
    first_batch, next_batch = (step * settings.accumulation for step in (steps.start, steps.stop))
    schedule = Schedule(**{field.name: getattr(settings, field.name) for field in fields(Schedule)} | {"steps": len(steps)})
    trained = fit(
        model,
        lambda number: batch_loss_terms(context, model, taps, first_batch + number),
        schedule,
        folder,
        accelerator=accelerator,
        evaluate=context.evaluate,
    )
    if accelerator.is_main_process:
        losses = _final_losses(context, trained, taps, next_batch)
        with atomic_folder(STUDENT, folder) as partial:
            trained.save_pretrained(partial)  # type: ignore[operator]  # a UNet
            (partial / LOSSES).write_text(json.dumps(losses), encoding="utf-8")


def batch_loss_terms(context: StepContext, student: nn.Module, taps: list[Tap], number: int) -> dict[str, Tensor]:
    """The weighted loss terms of one batch; the student may be wrapped for several processes."""
    batch, weights = context.batch(number), context.plan.recipe.loss
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
