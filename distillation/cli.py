"""The `distillation` command: data, plan, prune, run, ablate, sensitivity. Imports wait until a command needs them."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import get_args

from distillation.commands import data, sensitivity
from distillation.commands.options import TEACHER, add_data, add_device, count, settle_device, within
from distillation.recipe import Family, Recipe, read, shipped
from sdbench import __version__
from sdbench.arguments import Parser, add_command, run_command, show

WORK = Path("results/runs/distillation")  # ignored by git
STUDENTS = Path("results/runs/students")  # likewise
ARMS = ("layer-level", "task only", "task and output", "features scaled by the teacher", "one shot", "first blocks", "blocks most missed")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand => the process's exit code."""
    options = _parser().parse_args(argv)
    if "out" in options and options.out is None:
        options.out = STUDENTS / f"my-{Path(options.recipe).stem}"  # the catalogue has models by the recipes' names
    return run_command("distillation", partial(_do, options))


def _do(options: argparse.Namespace) -> int:
    settle_device(options)
    _COMMANDS[options.command](options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser("distillation", description="Make SSD-1B, Vega and their like from a teacher: cut it, then train what is left.")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    data.add(commands)
    sensitivity.add(commands, WORK)
    plan = add_command(commands, "plan", "print what a recipe comes to, without any weights")
    cut = add_command(commands, "prune", "cut a teacher, without training")
    run = add_command(commands, "run", "cut and train, stage by stage; a run that was stopped continues")
    study = add_command(
        commands, "ablate", "make a student in other ways, several seeds each, and compare; a sweep that was stopped continues"
    )
    for command in (plan, cut, run, study):
        command.add_argument("recipe", help=f"name of a shipped recipe ({', '.join(shipped())}), or path of a .toml file")
    _add_estimating(plan, run)
    _add_writing(cut, run)
    _add_training(run, study)
    _add_teachers(cut, run, study)
    add_data(
        run,
        "captioned pictures to train on: image folder, parquet or webdataset files, or a Hub dataset (default: rendered scenes, which only family scenes can do without)",
    )
    run.add_argument(
        "--deterministic", action="store_true", help="the same bytes from the same machine on a GPU too, at some cost in speed"
    )
    run.add_argument("--dry-run", action="store_true", help="check recipe, teachers, pictures and target, print the plan and stop")
    study.add_argument("--seeds", type=count, default=3, help="of each arm (default: %(default)s)")
    study.add_argument(
        "--arm",
        action="append",
        choices=ARMS,
        metavar="ARM",
        default=[],
        help=f"only this of: {', '.join(ARMS)}; may be given again (default: all)",
    )
    study.add_argument("--results", type=Path, default=Path("results"), help="folder of results (default: %(default)s)")
    return parser


def _add_estimating(*commands: argparse.ArgumentParser) -> None:
    for command in commands:
        command.add_argument(
            "--family", choices=get_args(Family), default="scenes", help="whose widths and settings (default: %(default)s)"
        )
        command.add_argument(
            "--tflops",
            type=within(float, 1e-6),
            metavar="X",
            help="estimate the time at X * 10^12 FLOPs a second of a GPU (default: assumed, and said)",
        )
        command.add_argument("--usd-per-hour", type=within(float, 1e-6), metavar="X", help="estimate the cost, at this price of a GPU")


def _add_writing(*commands: argparse.ArgumentParser) -> None:
    for command in commands:
        command.add_argument("--out", type=Path, help=f"new folder for the student (default: {STUDENTS}/my-RECIPE)")
        command.add_argument("--unet-only", action="store_true", help="write the UNet alone instead of a whole pipeline")


def _add_training(*commands: argparse.ArgumentParser) -> None:
    for command in commands:
        command.add_argument("--work", type=Path, default=WORK, help="folder for what a stopped run continues from (default: %(default)s)")
        command.add_argument("--steps", type=count, help="steps of all stages together (default: the recipe's)")
        add_device(command)


def _add_teachers(cut: argparse.ArgumentParser, run: argparse.ArgumentParser, study: argparse.ArgumentParser) -> None:
    for command in (cut, study):
        command.add_argument("--teacher", help=TEACHER)
    run.add_argument("--teacher", action="append", help=f"{TEACHER}; several, in the recipe's order, teach in succession")


def _plan(options: argparse.Namespace) -> None:
    from distillation.describe import describe

    show(describe(read(options.recipe), options.family, tflops=options.tflops, usd_per_hour=options.usd_per_hour))


def _prune(options: argparse.Namespace) -> None:
    from distillation import teacher as teachers
    from distillation.export import Provenance, check_free, export
    from distillation.prune import prune

    recipe = read(options.recipe)
    check_free(options.out)
    teacher = teachers.find(teachers.place(options.teacher), recipe)
    student = prune(teacher.unet(teacher.dtype, "cpu"), recipe.plans[-1], copy=False)  # from file to file
    show(export(student, options.out, teacher, Provenance.of(recipe, [teacher], student), unet_only=options.unet_only))


def _run(options: argparse.Namespace) -> None:
    import torch

    from distillation import teacher as teachers
    from distillation.data.batches import open_squares
    from distillation.train import distil
    from sdbench.training.loop import max_even_processes
    from sdbench.training.processes import rank_and_local_size

    recipe = read(options.recipe)
    if options.dry_run:
        show(_dry_run(options, recipe))
        return
    if options.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS asks for
        torch.use_deterministic_algorithms(mode=True)
        torch.backends.cudnn.benchmark = False
    chosen = {"steps": options.steps, "device": options.device, "unet_only": options.unet_only}
    if options.data:
        chosen["pictures"] = open_squares(options.data, options.caption_column, recipe.size_px(options.family))
    if options.device == "cuda" and torch.cuda.device_count() > 1 and "WORLD_SIZE" not in os.environ:
        n = max_even_processes(recipe.settings(options.family).accumulation, gpus := torch.cuda.device_count())
        sys.stderr.write(f"one of {gpus} GPUs will train; for {n}: torchrun --nproc-per-node {n} $(which distillation) run ...\n")
    folders = [teachers.place(name) for name in options.teacher or [None]]
    out = distil(recipe, options.family, folders, options.work, options.out, **chosen)
    if rank_and_local_size()[0] == 0:  # of several processes, the one that wrote it
        show(out)


def _dry_run(options: argparse.Namespace, recipe: Recipe) -> str:
    """What `_run` would do, in words, once all has been checked that can be without fetching a teacher."""
    from distillation import teacher as teachers
    from distillation.data.batches import open_squares
    from distillation.describe import describe
    from distillation.export import check_free
    from distillation.succession import warn_of_others
    from distillation.train import check, check_pictures

    names = options.teacher or [None]
    steps = options.steps or recipe.settings(options.family).steps
    check_free(options.out)
    recipe.pieces(steps, len(names))
    folders = [folder for name in names if (folder := teachers.here(name))]
    if len(folders) == len(names):
        warn_of_others(check(recipe, options.family, folders, steps)[0])
    pictures = open_squares(options.data, options.caption_column, recipe.size_px(options.family)) if options.data else None
    check_pictures(options.family, pictures)
    return describe(
        recipe,
        options.family,
        recipe.stage_steps(steps),
        teachers=[name or "the embedded teacher" for name in names],
        n_pictures=len(pictures.captions) if pictures else recipe.scenes.pictures,
        tflops=options.tflops,
        usd_per_hour=options.usd_per_hour,
    )


def _ablate(options: argparse.Namespace) -> None:
    from distillation import teacher as teachers
    from distillation.ablation.comparison import markdown, plot, table
    from distillation.ablation.experiment import sweep

    chosen = {"seeds": options.seeds, "steps": options.steps, "device": options.device, "only": options.arm}
    recipe = read(options.recipe)
    outcomes = sweep(recipe, teachers.place(options.teacher), options.work, options.results, **chosen)
    plot(outcomes, options.results / "ablation" / f"{recipe.name}.png")
    show(markdown(table(outcomes)))


_COMMANDS = {"data": data.run, "plan": _plan, "prune": _prune, "run": _run, "ablate": _ablate, "sensitivity": sensitivity.run}
