"""The `distillation` command: data, plan, prune, run, ablate."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import torch

from distillation import data_cli
from distillation import teacher as teachers
from distillation.ablation import sweep
from distillation.comparison import markdown, plot, table
from distillation.data import Squares
from distillation.data_cli import count
from distillation.export import Provenance, check_free, export
from distillation.pictures import open_pictures
from distillation.prune import on_meta, prune
from distillation.recipe import Family, Recipe, read
from distillation.taps import resolve
from distillation.train import check, distil
from sdbench.errors import UserError
from sdbench.models.architectures import unet_config

WORK = Path("results/runs/distillation")  # ignored by git
STUDENTS = Path("results/runs/students")  # likewise


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand => exit code: 0, or 2 for anything that the user can mend."""
    options = _parser().parse_args(argv)
    if "out" in options and options.out is None:
        options.out = STUDENTS / Path(options.recipe).stem
    try:
        _COMMANDS[options.command](options)
    except UserError as error:
        sys.stderr.write(f"distillation: {error}\n")
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "distillation", description="Make SSD-1B, Vega and their like from a teacher: cut it, then train what is left."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    data_cli.add(commands)
    plan = commands.add_parser("plan", help="print what a recipe comes to, without any weights")
    cut = commands.add_parser("prune", help="cut a teacher, without training")
    run = commands.add_parser("run", help="cut and train, stage by stage; a run that was stopped continues")
    study = commands.add_parser(
        "ablate", help="make a student in other ways, several seeds each, and compare; a sweep that was stopped continues"
    )
    for command in (plan, cut, run, study):
        command.add_argument("recipe", help="name of a shipped recipe, or path of a .toml file")
    for command in (plan, run):
        command.add_argument(
            "--family", choices=get_args(Family), default="scenes", help="whose widths and settings (default: %(default)s)"
        )
    for command in (cut, study):
        command.add_argument("--teacher", type=Path, help="folder of a whole pipeline (default: the embedded teacher)")
    run.add_argument(
        "--teacher",
        type=Path,
        action="append",
        help="folder of a whole pipeline (default: the embedded teacher); several, in the recipe's order, teach in succession",
    )
    for command in (cut, run):
        command.add_argument("--out", type=Path, help=f"new folder for the student (default: {STUDENTS}/RECIPE)")
        command.add_argument("--unet-only", action="store_true", help="write the UNet alone instead of a whole pipeline")
    for command in (run, study):
        command.add_argument("--work", type=Path, default=WORK, help="folder for what a stopped run continues from (default: %(default)s)")
        command.add_argument("--steps", type=count, help="steps of all stages together (default: the recipe's)")
        command.add_argument(
            "--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s"
        )
    run.add_argument(
        "--data",
        help="captioned pictures to train on: image folder, parquet or webdataset files, or a Hub dataset (default: rendered scenes, which only family scenes can do without)",
    )
    run.add_argument("--caption-column", help="column of --data with the captions (default: caption, text or prompt)")
    run.add_argument(
        "--deterministic", action="store_true", help="the same bytes from the same machine on a GPU too, at some cost in speed"
    )
    study.add_argument("--seeds", type=count, default=3, help="of each arm (default: %(default)s)")
    study.add_argument("--arm", action="append", default=[], help="only this arm; may be given again (default: all)")
    study.add_argument("--results", type=Path, default=Path("results"), help="folder of results (default: %(default)s)")
    run.add_argument("--dry-run", action="store_true", help="check everything, print the plan and stop")
    return parser


def _plan(options: argparse.Namespace) -> None:
    _say(describe(read(options.recipe), options.family))


def _prune(options: argparse.Namespace) -> None:
    recipe = read(options.recipe)
    check_free(options.out)
    teacher = teachers.find(options.teacher or teachers.EMBEDDED, recipe)
    student = prune(teacher.unet(teacher.dtype, "cpu"), recipe.plans[-1], copy=False)  # from file to file
    _say(export(student, options.out, teacher, Provenance.of(recipe, teacher, student), unet_only=options.unet_only))


def _run(options: argparse.Namespace) -> None:
    recipe, folders = read(options.recipe), options.teacher or [teachers.EMBEDDED]
    if options.dry_run:
        check(recipe, options.family, folders, options.out, options.steps)
        _say(describe(recipe, options.family, options.steps))
        return
    if options.deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS asks for
        torch.use_deterministic_algorithms(mode=True)
        torch.backends.cudnn.benchmark = False
    chosen = {"steps": options.steps, "device": options.device, "unet_only": options.unet_only}
    if options.data:
        chosen["pictures"] = Squares(open_pictures(options.data, caption_column=options.caption_column), recipe.size_px(options.family))
    _say(distil(recipe, options.family, folders, options.work, options.out, **chosen))


def _ablate(options: argparse.Namespace) -> None:
    chosen = {"seeds": options.seeds, "steps": options.steps, "device": options.device, "only": options.arm}
    recipe = read(options.recipe)
    outcomes = sweep(recipe, options.teacher or teachers.EMBEDDED, options.work, options.results, **chosen)
    plot(outcomes, options.results / "ablation" / f"{recipe.name}.png")
    _say(markdown(table(outcomes)))


def _say(what: object) -> None:
    sys.stdout.write(f"{what}\n")


def describe(recipe: Recipe, family: Family, steps: int | None = None) -> str:
    """A recipe in the widths of a family: stages, blocks kept and why, parameters, taps, settings.

    Args:
        recipe: what to describe.
        family: whose widths and settings.
        steps: of all stages, where they are not the recipe's own.
    """
    settings = recipe.settings(family)
    teacher = on_meta(unet_config(recipe.teacher, family))
    lines = [f"{recipe.name}: {recipe.student} from {recipe.teacher}, family {family}", f"teacher: {_parameters(teacher)}"]
    for stage, plan, its_steps in zip(recipe.stages, recipe.plans, recipe.stage_steps(steps or settings.steps), strict=True):
        student = prune(teacher, plan)
        lines.append(f"stage {stage.name}: {its_steps:,} steps, {_parameters(student)}, {sum(plan.depths.values())} transformer blocks")
        lines += [f"  {row.attentions} keeps {_listed(row.blocks)}  ({row.source})" for row in stage.keep]
    lines.append(f"  the middle resnet is the teacher's mid_block.resnets.{recipe.middle.resnet}  ({recipe.middle.source})")
    taps = resolve(student.config, teacher.config, recipe.taps)
    lines += [f"taps: {len(taps)} (student <- teacher, channels x height x width)", *(f"  {tap}" for tap in taps)]
    lines.append("loss: " + ", ".join(f"{name} {value}" for name, value in recipe.loss))
    lines += [f"settings of family {family}:", *(f"  {name} = {_said(value)}" for name, value in settings)]
    return "\n".join(lines)


def _parameters(network: torch.nn.Module) -> str:
    return f"{sum(parameter.numel() for parameter in network.parameters()):,} parameters"


def _listed(blocks: Sequence[int] | str) -> str:
    return blocks if isinstance(blocks, str) else ", ".join(map(str, blocks)) or "nothing"


def _said(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


_COMMANDS = {"data": data_cli.run, "plan": _plan, "prune": _prune, "run": _run, "ablate": _ablate}
