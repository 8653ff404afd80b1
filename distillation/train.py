"""Training: stage by stage, prune and fit, so that a run that was killed continues where it was.

Each stage has a folder of its own under the work folder, named by everything that decides its weights. A finished stage
is a UNet in safetensors with its losses beside it; an unfinished one holds the checkpoint to go on from.
"""

import gc
import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm

from distillation import teacher as teachers
from distillation.data.batches import batches, exposure, scenes
from distillation.export import Provenance, StageResult, check_free, export
from distillation.losses import task_weights, terms
from distillation.plan import Plan
from distillation.prune import prune, student_config
from distillation.recipe import Family, Piece, Recipe
from distillation.recipe_tables import Training
from distillation.samples import Look
from distillation.succession import warn_of_others
from distillation.taps import Tap, collect, resolve
from sdbench.disk import digest, write_bytes
from sdbench.errors import UserError
from sdbench.probes.capacity import is_out_of_memory
from sdbench.scenes.embedded import verified_path
from sdbench.scenes.networks import SceneNet
from sdbench.scenes.training.evaluation import SceneEvaluation
from sdbench.training.checkpoints import atomic_folder
from sdbench.training.journal import Evaluate as Watching
from sdbench.training.latents import Batch, CaptionedPictures, LatentPool, add_noise, check_diffusion, predict, target
from sdbench.training.loop import Schedule, check_even_split, fit
from sdbench.training.processes import broadcast_from_main

FINAL_BATCHES = 4  # after a stage's own, over which its final losses are averaged
PATIENCE = timedelta(minutes=30)  # of processes that train together: while one saves a checkpoint or looks, the others wait
STUDENT, LOSSES, DECIDES = "student", "losses.json", "decides.json"


@dataclass(frozen=True)
class Lesson:
    """What the steps under a teacher share: its UNet, the noise schedule, each numbered batch, and how to look at a student."""

    recipe: Recipe
    settings: Training
    teacher: UNet2DConditionModel
    scheduler: DDIMScheduler
    batch: Callable[[int], Batch]
    accelerator: Accelerator
    watch: Watching


def distil(
    recipe: Recipe,
    family: Family,
    teacher_folders: Sequence[Path],
    work: Path,
    out: Path,
    *,
    pictures: CaptionedPictures | None = None,
    steps: int | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    unet_only: bool = False,
) -> Path:
    """Make the student and write it to `out`; what an earlier run finished under `work` is not done again.

    Args:
        recipe: what to cut and how to train.
        family: which of the recipe's settings to take.
        teacher_folders: the teacher as a whole diffusers pipeline, or several in succession; the student is cut from the
            first, whose text encoders and VAE it keeps, and of the others only the UNet is used.
        work: gets training pictures, latents and the stages.
        out: gets the student; must not hold anything yet.
        pictures: to train on; rendered scenes where not given, which only the embedded family can do without.
        steps: of all stages together; the recipe's where not given.
        device: where both networks run; under `accelerate launch`, each process takes its own.
        unet_only: write the UNet alone instead of a whole pipeline.

    Raises:
        UserError: a teacher does not fit the recipe or the family, there is nothing to train on, `out` is taken, the device is
            not there or has too little memory, the processes cannot share out a step evenly, or a loss is not finite.
    """
    settings = recipe.settings(family)
    check_free(out)
    found, pieces, taps = check(recipe, family, teacher_folders, steps)
    check_pictures(family, pictures)
    accelerator = accelerator_on(device, settings.dtype)
    check_even_split(settings.accumulation, accelerator.num_processes)  # before hours of encoding
    place = str(accelerator.device)
    with accelerator.main_process_first():  # the others find what it drew
        source = scenes(recipe.scenes.pictures, work) if pictures is None else pictures
    if accelerator.is_main_process:
        _announce(found, exposure(len(source.captions), pieces[-1].end, settings))
    pool = LatentPool(teacher_folders[0], source, work / "latents", place)
    watch: Watching
    if family == "scenes":
        watch = SceneEvaluation(pool, SceneNet.load(verified_path("evaluators/reader.safetensors")))
    else:
        watch = Look(pool, teacher_folders[0], accelerator.autocast)

    def lesson(teacher: teachers.Teacher) -> Lesson:
        return Lesson(
            recipe, settings, teacher.unet(settings.dtype, place), pool.scheduler, batches(pool, settings, place), accelerator, watch
        )

    digests, data_digest = broadcast_from_main(lambda: ([teacher.digest for teacher in found], source.digest))
    decides = {
        "recipe": recipe.deciding(family),
        "teachers": digests,
        "data": data_digest,
        "steps": [[piece.stage, piece.teacher, piece.end] for piece in pieces],
        "device": device,
    }
    run = broadcast_from_main(lambda: _place(work, recipe.name, decides))
    folders = [run / f"{number}-{recipe.stages[piece.stage].name}" for number, piece in enumerate(pieces, 1)]
    with _enough_memory(settings, place):
        teach(lesson, recipe, found, taps, zip(pieces, folders, strict=True), accelerator)
    if accelerator.is_main_process:
        student = _finished(folders[-1])
        results = [
            StageResult(recipe.stages[piece.stage].name, digests[piece.teacher], piece.end - piece.start, _losses(folder))
            for piece, folder in zip(pieces, folders, strict=True)
        ]
        provenance = Provenance.of(recipe, found, student, settings, results, data_digest, len(pool))
        logs = {folder.name: folder / "log.jsonl" for folder in folders}
        export(student, out, found[0], provenance, logs=logs, unet_only=unet_only)
    return out


def _announce(found: Sequence[teachers.Teacher], pictures: str) -> None:
    """Say, before hours of encoding, what teaches and on what."""
    warn_of_others(found)
    tqdm.write(f"training on {pictures}", file=sys.stderr)
    for teacher in found:
        tqdm.write(f"taught by the {teacher.dtype} weights in {teacher.folder}", file=sys.stderr)


@contextmanager
def _enough_memory(settings: Training, device: str) -> Iterator[None]:
    """Say how a step takes less of a GPU where it takes more than there is."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        twice = "" if settings.checkpointing else ", or set checkpointing = true, which computes activations twice instead of keeping them"
        raise UserError(
            f"{device} has too little memory to train with batch = {settings.batch}, accumulation = {settings.accumulation} and checkpointing = {str(settings.checkpointing).lower()} ({str(error).splitlines()[0]}). In a copy of the recipe, halve batch and double accumulation, which keeps the pictures of a step{twice}; `distillation plan` estimates what is needed"
        ) from error


def _place(work: Path, name: str, decides: dict[str, Any]) -> Path:
    """The folder of the run that these decide; where it is new, how others of this recipe differ is said."""
    run = work / f"{name}-{digest(decides)[:12]}"
    if not (run / DECIDES).exists():
        for other in sorted(work.glob(f"{name}-{'?' * 12}/{DECIDES}")):
            before = json.loads(other.read_text())
            differs = ", ".join(key for key, value in decides.items() if before.get(key) != value)
            tqdm.write(f"a new run begins in {run}; that in {other.parent} is of other {differs}", file=sys.stderr)
        write_bytes(run / DECIDES, json.dumps(decides, indent=1).encode() + b"\n")
    return run


def accelerator_on(device: Literal["cpu", "cuda"], dtype: Literal["bfloat16", "float32"]) -> Accelerator:
    """Where and in which precision the networks run, in one process or in several.

    Raises:
        UserError: the device is not there, or this process has trained on another, or in another precision.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "no device 'cuda' here: torch finds no GPU; `sdbench doctor` says what this machine can run, --device cpu always works"
        )
    together = [InitProcessGroupKwargs(timeout=PATIENCE), DistributedDataParallelKwargs(gradient_as_bucket_view=True)]  # gradients once
    try:
        made = Accelerator(cpu=device == "cpu", mixed_precision="bf16" if dtype == "bfloat16" else "no", kwargs_handlers=together)
    except ValueError as error:  # accelerate keeps one state a process
        raise UserError(f"this process has trained otherwise before; start a new one to train in {dtype} on {device} ({error})") from error
    if made.device.type != device:
        raise UserError(f"this process has trained on {made.device.type} before; start a new one to train on {device}")
    return made


def check(
    recipe: Recipe, family: Family, teacher_folders: Sequence[Path], steps: int | None = None
) -> tuple[list[teachers.Teacher], list[Piece], list[list[Tap]]]:
    """All that can be said before any weights are read => the teachers, the pieces of the run, and the taps of each stage.

    Raises:
        UserError: the run cannot work.
    """
    found = [teachers.find(folder, recipe) for folder in teacher_folders]
    for teacher in found:
        if teacher.spec.family != family:
            raise UserError(
                f"the teacher in {teacher.folder} is of family {teacher.spec.family!r}; expected {family!r}, as --family says: name another with --teacher, such as sdxl"
            )
        check_diffusion(teacher.folder)
        if differs := [key for key, value in found[0].noise.items() if teacher.noise[key] != value]:
            raise UserError(
                f"the teacher in {teacher.folder} was trained with another noise than that in {found[0].folder}: its scheduler's {differs[0]} is {teacher.noise[differs[0]]}, not {found[0].noise[differs[0]]}"
            )
    pieces = recipe.pieces(steps or recipe.settings(family).steps, len(found))
    students = [(student_config(found[0].config, plan), plan) for plan in recipe.plans]
    taps = [[resolve(student, teacher.config, plan, recipe.taps) for student, plan in students] for teacher in found]
    return found, pieces, taps[0]


def check_pictures(family: Family, pictures: CaptionedPictures | None) -> None:
    """See that there is something to train on.

    Raises:
        UserError: there is nothing.
    """
    if family == "sdxl" and pictures is None:
        raise UserError(
            "family 'sdxl' needs pictures to train on; name them with --data: `distillation data make` draws some with the teacher"
        )


def teach(
    lesson: Callable[[teachers.Teacher], Lesson],
    recipe: Recipe,
    found: Sequence[teachers.Teacher],
    taps: Sequence[list[Tap]],
    pieces: Iterable[tuple[Piece, Path]],
    accelerator: Accelerator,
) -> None:
    """Every piece in turn, each from the student that the piece before left in its folder.

    Args:
        lesson: what the steps under a teacher share.
        recipe: what to cut.
        found: the teachers.
        taps: of each stage.
        pieces: of the run, with a folder for each.
        accelerator: of the lessons.
    """
    before = None
    for piece, folder in pieces:
        plan, teacher = recipe.plans[piece.stage], found[piece.teacher]
        if not (folder / STUDENT).exists():
            _run_piece(lesson(teacher), _cut(teacher, plan, before), taps[piece.stage], range(piece.start, piece.end), folder)
            accelerator.free_memory()  # it holds every model that it ever prepared
            gc.collect()  # one whose forward was wrapped for mixed precision holds itself
        accelerator.wait_for_everyone()  # the student is written, and no process still reads a checkpoint
        if accelerator.is_main_process:
            for checkpoint in folder.glob("step-*"):
                shutil.rmtree(checkpoint)
        before = plan, folder


def _cut(teacher: teachers.Teacher, plan: Plan, before: tuple[Plan, Path] | None) -> UNet2DConditionModel:
    """What a piece starts from, in float32 on the CPU: cut from the student before it or, of the first, from the teacher as it is stored."""
    if before is None:
        return prune(teacher.unet(teacher.dtype, "cpu"), plan).float()
    of_student, folder = before
    return prune(_finished(folder), plan.within(of_student))


def _finished(folder: Path) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_pretrained(folder / STUDENT, local_files_only=True)


def _losses(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / STUDENT / LOSSES).read_text())
    return found


def _run_piece(lesson: Lesson, student: UNet2DConditionModel, taps: list[Tap], steps: range, folder: Path) -> None:
    settings, accelerator = lesson.settings, lesson.accelerator
    if settings.checkpointing:
        student.enable_gradient_checkpointing()
    model = accelerator.prepare_model(student.requires_grad_(requires_grad=True))
    first, after = (step * settings.accumulation for step in (steps.start, steps.stop))
    schedule = Schedule(
        len(steps),
        settings.lr,
        settings.batch,
        warmup=settings.warmup,
        weight_decay=settings.weight_decay,
        ema=settings.ema or None,
        clip_norm=settings.clip_norm,
        seed=settings.seed,
        accumulation=settings.accumulation,
        betas=settings.betas,
        lr_decay=settings.lr_decay,
    )
    kept = fit(
        model,
        lambda number: step_terms(lesson, model, taps, first + number),
        schedule,
        folder,
        accelerator=accelerator,
        evaluate=lesson.watch,
    )
    if accelerator.is_main_process:
        losses = _final_losses(lesson, kept, taps, after)
        with atomic_folder(STUDENT, folder) as beside:
            kept.save_pretrained(beside)  # type: ignore[operator]  # a UNet
            (beside / LOSSES).write_text(json.dumps(losses))


def step_terms(lesson: Lesson, student: nn.Module, taps: list[Tap], number: int) -> dict[str, Tensor]:
    """The weighted loss terms of one batch; the student may be wrapped for several processes."""
    batch, weights = lesson.batch(number), lesson.recipe.loss
    noised = add_noise(lesson.scheduler, batch)
    plain = lesson.accelerator.unwrap_model(student)
    with collect(lesson.teacher, [tap.teacher for tap in taps]) as taught, collect(plain, [tap.student for tap in taps]) as learned:
        return terms(
            weights,
            taps,
            of_task=task_weights(lesson.scheduler, batch.timesteps, weights.snr_gamma),
            target=target(lesson.scheduler, batch),
            teacher=_answer(lesson.teacher, noised, batch),
            student=predict(student, noised, batch),
            student_features=learned,
            teacher_features=taught,
        )


@torch.no_grad()
def _answer(teacher: UNet2DConditionModel, noised: Tensor, batch: Batch) -> Tensor:
    """What the teacher predicts, computed in its own precision, for its weights are not float32 that autocast could lower."""
    with torch.autocast(noised.device.type, enabled=False):
        return predict(teacher, noised.to(teacher.dtype), batch.to(teacher.dtype))


@torch.no_grad()
def _final_losses(lesson: Lesson, student: nn.Module, taps: list[Tap], start: int) -> dict[str, float]:
    """Mean of each weighted term over the batches that come after the stage's own."""
    rows = [step_terms(lesson, student, taps, start + number) for number in range(FINAL_BATCHES)]
    return {name: float(torch.stack([row[name] for row in rows]).mean()) for name in rows[0]}
