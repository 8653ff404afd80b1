"""The `distillation` command: data, plan, prune, run, ablate, sensitivity. A command imports what it needs only when it runs."""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from distillation.commands import data, sensitivity
from distillation.commands.options import TEACHER, add_data, add_device, number_between, positive_int, resolve_device
from distillation.recipe import Family, Recipe, load_recipe, shipped_recipes
from sdbench import __version__
from sdbench.arguments import Parser, add_command, add_json, print_answer, print_json, run_command, show
from sdbench.errors import UserError
from sdbench.models.catalogue import CATALOGUE, TEACHERS

if TYPE_CHECKING:
    from distillation.data.batches import SquareImages

WORK = Path("results/runs/distillation")  # ignored by git
STUDENTS = Path("results/runs/students")  # ignored by git
ARMS = ("layer-level", "task only", "task and output", "features scaled by the teacher", "one shot", "first blocks", "blocks most missed")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand and return the process's exit code."""
    options = _parser().parse_args(argv)
    if "out" in options and options.out is None:
        options.out = STUDENTS / f"my-{Path(options.recipe).stem}"  # the recipe's own name belongs to a model of the catalogue
    return run_command("distillation", partial(_run_command, options))


def _run_command(options: argparse.Namespace) -> int:
    for name in ("recipe", "like"):
        if name in options:  # before torch is imported, which takes seconds
            setattr(options, name, load_recipe(getattr(options, name)))
    if "data" in options and options.caption_column and not options.data:
        raise UserError("--caption-column names a column of --data, which is not given; add --data, or leave --caption-column out")
    resolve_device(options)
    _COMMANDS[options.command](options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("distillation", description="Make SSD-1B, Vega and similar students from a teacher: prune it, then train what is left.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    data.add(commands)
    sensitivity.add(commands, WORK)
    plan = add_command(commands, "plan", "describe a recipe and estimate what training takes, without any weights")
    prune = add_command(commands, "prune", "prune a teacher, without training")
    run = add_command(commands, "run", "prune and train, stage by stage; a stopped run resumes")
    ablate = add_command(
        commands, "ablate", "train variants of a student of family scenes, with several seeds each, and compare them; a stopped run resumes"
    )
    for command in (plan, prune, run, ablate):
        command.add_argument("recipe", help=f"name of a shipped recipe ({', '.join(shipped_recipes())}), or path of a .toml file")
    add_json(plan)
    _add_estimate_options(plan, run)
    _add_output_options(prune, run)
    _add_training_options(run, ablate)
    _add_teacher_options(prune, run, ablate)
    add_data(
        run,
        "captioned images to train on: image folder, parquet or webdataset files, or a Hub dataset (default: rendered scenes, for family scenes only)",
    )
    run.add_argument(
        "--deterministic", action="store_true", help="produce the same bytes in every run on one machine, even on a GPU; costs some speed"
    )
    run.add_argument("--dry-run", action="store_true", help="check recipe, teachers, images and target, print the plan, and stop")
    ablate.add_argument("--seeds", type=positive_int, default=3, help="number of seeds per arm (default: %(default)s)")
    ablate.add_argument(
        "--arm",
        action="append",
        choices=ARMS,
        metavar="ARM",
        default=[],
        help=f"run only this arm, one of: {', '.join(ARMS)}; may be repeated (default: all)",
    )
    ablate.add_argument("--results", type=Path, default=Path("results"), help="folder of results (default: %(default)s)")
    return parser


def _add_estimate_options(*commands: argparse.ArgumentParser) -> None:
    for command in commands:
        command.add_argument(
            "--family", choices=get_args(Family), default="scenes", help="family whose widths and settings to use (default: %(default)s)"
        )
        command.add_argument(
            "--tflops",
            type=number_between(float, 1e-6),
            metavar="X",
            help="estimate the time on a GPU that reaches X * 10^12 FLOPs per second (default: an assumption that the output states)",
        )
        command.add_argument(
            "--usd-per-hour", type=number_between(float, 1e-6), metavar="X", help="estimate the cost at this price per GPU hour"
        )


def _add_output_options(*commands: argparse.ArgumentParser) -> None:
    for command in commands:
        command.add_argument("--out", type=Path, help=f"new folder for the student (default: {STUDENTS}/my-RECIPE)")
        command.add_argument("--unet-only", action="store_true", help="write the UNet alone instead of a complete pipeline")


def _add_training_options(*commands: argparse.ArgumentParser) -> None:
    for command in commands:
        command.add_argument(
            "--work", type=Path, default=WORK, help="folder for intermediate results and checkpoints (default: %(default)s)"
        )
        command.add_argument("--steps", type=positive_int, help="number of training steps, over all stages (default: the recipe's)")
        add_device(command)


def _add_teacher_options(prune: argparse.ArgumentParser, run: argparse.ArgumentParser, ablate: argparse.ArgumentParser) -> None:
    for command in (prune, ablate):
        command.add_argument("--teacher", help=TEACHER)
    run.add_argument(
        "--teacher", action="append", help=f"{TEACHER}; repeat it, in the recipe's order, for teachers that follow one another"
    )


def _plan(options: argparse.Namespace) -> None:
    from distillation.describe import describe_recipe

    plan = describe_recipe(options.recipe, options.family, tflops=options.tflops, usd_per_hour=options.usd_per_hour)
    print_answer(plan["text"], options)
    if options.json:
        print_json(plan)


def _prune(options: argparse.Namespace) -> None:
    from distillation.export import check_new_or_empty, export_student
    from distillation.provenance import Provenance
    from distillation.prune import prune
    from distillation.teacher import check_named_teacher, fetch_folder, open_teacher_for

    recipe: Recipe = options.recipe
    check_new_or_empty(options.out)
    check_named_teacher(options.teacher, recipe)
    teacher = open_teacher_for(fetch_folder(options.teacher), recipe)
    student = prune(teacher.unet(teacher.dtype, "cpu"), recipe.plans[-1], copy=False)  # from file to file
    show(export_student(student, options.out, teacher, Provenance.from_run(recipe, [teacher], student), unet_only=options.unet_only))
    _suggest_measuring(options, options.teacher)


def _run(options: argparse.Namespace) -> None:
    from distillation.data.batches import open_square_images
    from distillation.export import check_new_or_empty
    from distillation.run_plan import check_images, open_teachers
    from distillation.teacher import check_named_teacher, fetch_folder, local_folder
    from distillation.train import distil
    from sdbench.training.processes import rank_and_local_size

    recipe, names = options.recipe, options.teacher or [None]
    check_new_or_empty(options.out)
    recipe.segments(options.steps or recipe.settings(options.family).steps, len(names))
    for name in names:
        check_named_teacher(name, recipe, options.family)
    local = {name: folder for name in names if (folder := local_folder(name))}
    open_teachers(recipe, options.family, [*local.values()])
    images = open_square_images(options.data, options.caption_column, recipe.size_px(options.family)) if options.data else None
    check_images(options.family, images)
    if options.dry_run:
        show(_dry_run(options, recipe, names, local, images))
        return
    if options.deterministic:
        _use_deterministic_algorithms()
    if options.device == "cuda":
        _suggest_more_gpus(recipe.settings(options.family).accumulation)
    folders = [fetch_folder(name) for name in names]
    out = distil(
        recipe,
        options.family,
        folders,
        options.work,
        options.out,
        images=images,
        steps=options.steps,
        device=options.device,
        unet_only=options.unet_only,
    )
    if rank_and_local_size()[0] == 0:  # the process that wrote it
        show(out)
        _suggest_measuring(options, names[0])


def _suggest_measuring(options: argparse.Namespace, teacher: str | None) -> None:
    """Say how to measure the student; a bare UNet is completed by its teacher."""
    out: Path = options.out
    words = ["sdbench", "run", "--model", str(out)]
    if out.name in CATALOGUE:  # which comes before a folder
        words[3:] = [str(out.absolute()), "--name", f"my-{out.name}"]
    if options.unet_only:
        words += ["--base", teacher or TEACHERS["scenes"]]
    sys.stderr.write(f"measure it: {shlex.join(words)}\n")


def _use_deterministic_algorithms() -> None:
    import torch

    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # required by cuBLAS
    torch.use_deterministic_algorithms(mode=True)
    torch.backends.cudnn.benchmark = False


def _suggest_more_gpus(accumulation: int) -> None:
    """On a machine with several GPUs, say how to train on more than one, if the batches of a step can be shared."""
    import torch

    from sdbench.training.loop import max_even_processes

    gpus = torch.cuda.device_count()
    n = max_even_processes(accumulation, gpus)
    if n > 1 and "WORLD_SIZE" not in os.environ:
        sys.stderr.write(f"training on 1 of {gpus} GPUs; to train on {n}: torchrun --nproc-per-node {n} -m distillation run ...\n")


def _dry_run(
    options: argparse.Namespace,
    recipe: Recipe,
    names: Sequence[str | None],
    local: Mapping[str | None, Path],
    images: "SquareImages | None",
) -> str:
    """Check what else can be checked without fetching a teacher, and describe the run; `local` has the teachers on this disk."""
    from distillation.describe import describe_recipe
    from distillation.run_plan import plan_run
    from distillation.succession import warn_of_different_parts

    if all(name in local for name in names):
        warn_of_different_parts(plan_run(recipe, options.family, [local[name] for name in names], options.steps).teachers)
    described = describe_recipe(
        recipe,
        options.family,
        steps=options.steps,
        teachers=[name or "the embedded teacher" for name in names],
        n_images=len(images.captions) if images else recipe.scenes.images,
        tflops=options.tflops,
        usd_per_hour=options.usd_per_hour,
    )
    unchecked = (f"teacher {name}: not on this disk, not checked" for name in names if name not in local)
    return "\n".join([described["text"], *unchecked])


def _ablate(options: argparse.Namespace) -> None:
    from distillation.ablation.comparison import compare_arms, markdown_table, plot_arms
    from distillation.ablation.experiment import run_sweep
    from distillation.teacher import check_named_teacher, fetch_folder

    check_named_teacher(options.teacher, options.recipe, "scenes")
    outcomes = run_sweep(
        options.recipe,
        fetch_folder(options.teacher),
        options.work,
        options.results,
        seeds=options.seeds,
        steps=options.steps,
        device=options.device,
        only=options.arm,
    )
    plot_arms(outcomes, options.results / "ablation" / f"{options.recipe.name}.png")
    show(markdown_table(compare_arms(outcomes)))


_COMMANDS = {"data": data.run, "plan": _plan, "prune": _prune, "run": _run, "ablate": _ablate, "sensitivity": sensitivity.run}

if __name__ == "__main__":
    sys.exit(main())
