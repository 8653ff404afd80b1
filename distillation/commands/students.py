"""`distillation prune`, `run` and `export`: make a student without training, with training, and in the middle of training."""

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from distillation.commands.options import (
    TEACHER,
    WORK,
    AddCommand,
    add_data,
    add_estimate,
    add_recipe,
    add_work,
    check_data,
    chosen_family,
    positive_int,
    training_device,
)
from distillation.recipe import Recipe, load_recipe
from sdbench.arguments import add_device, show
from sdbench.models.architectures import Family
from sdbench.models.catalogue import CATALOGUE, TEACHERS
from sdbench.notes import print_note

if TYPE_CHECKING:
    from distillation.data.batches import SquareImages
    from distillation.start import Start

STUDENTS = Path("results/runs/students")  # ignored by git


def add_commands(add: AddCommand) -> None:
    """Add the commands and their options."""
    pruning = add("prune", _prune, "prune a teacher, without training")
    add_recipe(pruning)
    _add_output(pruning)
    pruning.add_argument("--teacher", help=TEACHER)

    running = add("run", _run, "prune and train, stage by stage; a stopped run resumes")
    add_recipe(running)
    add_estimate(running)
    _add_output(running)
    add_work(running)
    add_device(running)
    running.add_argument(
        "--teacher", action="append", help=f"{TEACHER}; repeat it, in the recipe's order, for teachers that follow one another"
    )
    add_data(
        running,
        "captioned images to train on: image folder, parquet or webdataset files, or a Hub dataset (default: rendered scenes, for family "
        "scenes only)",
    )
    running.add_argument(
        "--from",
        dest="start",
        type=Path,
        metavar="STUDENT",
        help="start from this student instead of a cut of the teacher, in the stage whose shape it has: folder of a pipeline or a UNet, "
        "such as `export` writes; --steps then counts from here",
    )
    running.add_argument(
        "--deterministic",
        action="store_true",
        help="produce the same bytes in every run on one machine, even on a GPU, in one process, or in an uninterrupted run of several; "
        "costs some speed",
    )
    running.add_argument(
        "--export-every",
        type=positive_int,
        metavar="STEPS",
        help="also write the student as it is after each STEPS steps, counted over all stages: its UNet alone, in OUT-step-00100000 for "
        "example; changes nothing in training",
    )
    running.add_argument("--dry-run", action="store_true", help="check recipe, teachers, images and target, print the plan, and stop")

    exporting = add("export", _export, "write the student of a run that goes on or was stopped, from its newest checkpoint")
    exporting.add_argument("run", type=Path, help=f"folder of the run, such as {WORK}/vega-0123456789ab")
    exporting.add_argument("--out", type=Path, required=True, help="new folder for the student")
    _add_unet_only(exporting)


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--out", type=Path, help=f"new folder for the student (default: {STUDENTS}/my-RECIPE)")
    _add_unet_only(command)


def _add_unet_only(command: argparse.ArgumentParser) -> None:
    command.add_argument("--unet-only", action="store_true", help="write the UNet alone instead of a complete pipeline")


def _out(options: argparse.Namespace) -> Path:
    out: Path | None = options.out
    return out or STUDENTS / f"my-{Path(options.recipe).stem.removeprefix('my-')}"  # the recipe's own name is that of a known model


def _prune(options: argparse.Namespace) -> int:
    recipe, out = load_recipe(options.recipe), _out(options)

    from distillation.export import check_new_or_empty, export_student
    from distillation.provenance import Provenance
    from distillation.prune import prune
    from distillation.teacher import check_named_teacher, fetch_folder, open_teacher_for

    check_new_or_empty(out)
    check_named_teacher(options.teacher, recipe)
    teacher = open_teacher_for(fetch_folder(options.teacher), recipe)
    student = prune(teacher.unet(teacher.dtype, "cpu"), recipe.cuts[-1], copy=False)  # from file to file
    show(export_student(student, out, teacher, Provenance.from_run(recipe, [teacher], student), unet_only=options.unet_only))
    _suggest_measuring(out, options.teacher, unet_only=options.unet_only)
    return 0


def _run(options: argparse.Namespace) -> int:
    recipe, out, names = load_recipe(options.recipe), _out(options), options.teacher or [None]
    family = chosen_family(options, recipe)
    check_data(options)
    device = training_device(options.device)

    from distillation.data.batches import open_square_images
    from distillation.export import check_new_or_empty
    from distillation.run_plan import check_images, open_teachers, plan_run
    from distillation.start import open_start
    from distillation.teacher import check_named_teacher, fetch_folder, local_folder
    from distillation.train import distil
    from sdbench.training.processes import rank_and_local_size

    check_new_or_empty(out)
    start = open_start(options.start, recipe) if options.start else None
    recipe.segments(options.steps or recipe.settings(family).steps, len(names), start.stage if start else 0)
    for name in names:
        check_named_teacher(name, recipe, family)
    local = {name: folder for name in names if (folder := local_folder(name))}
    open_teachers(recipe, family, [*local.values()])
    size_px, share = recipe.size_px(family), options.max_undecodable
    images = open_square_images(options.data, options.caption_column, size_px, max_undecodable=share) if options.data else None
    check_images(family, images)
    if options.dry_run:
        show(_dry_run(options, recipe, family, names, local, images, start))
        return 0
    if options.deterministic:
        _use_deterministic_algorithms()
    if device == "cuda":
        _suggest_more_gpus(recipe.settings(family).accumulation)
    plan = plan_run(recipe, family, [fetch_folder(name) for name in names], options.steps, start)
    student = distil(plan, options.work, out, images=images, device=device, unet_only=options.unet_only, export_every=options.export_every)
    if rank_and_local_size()[0] == 0:  # the process that wrote it
        show(student)
        _suggest_measuring(out, names[0], unet_only=options.unet_only)
    return 0


def _export(options: argparse.Namespace) -> int:
    from distillation.export import check_new_or_empty
    from distillation.run_folder import open_run

    check_new_or_empty(options.out)
    run = open_run(options.run)
    show(run.export(options.out, unet_only=options.unet_only))
    _suggest_measuring(options.out, str(run.plan.teachers[0].folder), unet_only=options.unet_only)
    return 0


def _use_deterministic_algorithms() -> None:
    import torch

    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # required by cuBLAS
    torch.use_deterministic_algorithms(mode=True)
    torch.backends.cudnn.benchmark = False


def _dry_run(
    options: argparse.Namespace,
    recipe: Recipe,
    family: Family,
    names: Sequence[str | None],
    local: Mapping[str | None, Path],
    images: "SquareImages | None",
    start: "Start | None",
) -> str:
    """Check what else can be checked without fetching a teacher, and describe the run; `local` has the teachers on this disk."""
    from distillation.describe import describe_recipe
    from distillation.run_plan import check_start, plan_run
    from distillation.start import warn_of_other_blocks
    from distillation.succession import warn_of_different_parts

    if all(name in local for name in names):
        plan = plan_run(recipe, family, [local[name] for name in names], options.steps, start)
        check_start(plan)
        warn_of_different_parts(plan.teachers)
    if start:
        warn_of_other_blocks(start, recipe)
    described = describe_recipe(
        recipe,
        family,
        steps=options.steps,
        first_stage=start.stage if start else 0,
        teachers=[name or "the embedded teacher" for name in names],
        n_images=len(images.captions) if images else recipe.settings("scenes").images,
        copied_bytes=images.copied_bytes if images else 0,
        tflops=options.tflops,
        usd_per_hour=options.usd_per_hour,
        export_every=options.export_every,
    )
    begins = [f"this run: starts from {options.start}, a student of stage {recipe.stages[start.stage].name}"] if start else []
    unchecked = (f"teacher {name}: not on this disk, not checked" for name in names if name not in local)
    return "\n".join([described["text"], *begins, *unchecked])


def _suggest_measuring(out: Path, teacher: str | None, *, unet_only: bool) -> None:
    """Say how to measure the student; a bare UNet is completed by its teacher."""
    words = ["sdbench", "run", "--model", str(out)]
    if out.name in CATALOGUE:  # which comes before a folder
        words[3:] = [str(out.absolute()), "--name", f"my-{out.name}"]
    if unet_only:
        words += ["--base", teacher or TEACHERS["scenes"]]
    print_note(f"measure it: {shlex.join(words)}")


def _suggest_more_gpus(accumulation: int) -> None:
    """On a machine with several GPUs, say how to train on more than one, if the batches of a step can be shared."""
    import torch

    from sdbench.training.loop import max_even_processes

    gpus = torch.cuda.device_count()
    n = max_even_processes(accumulation, gpus)
    if n > 1 and "WORLD_SIZE" not in os.environ:
        print_note(f"training on 1 of {gpus} GPUs; to train on {n}: torchrun --nproc-per-node {n} -m distillation run ...")
