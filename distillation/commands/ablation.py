"""`distillation ablate`: variants of a student, compared."""

import argparse

from distillation.commands.options import (
    TEACHER,
    AddCommand,
    add_recipe,
    add_results,
    add_steps,
    positive_int,
    training_device,
    work_folder,
)
from distillation.recipe import load_recipe
from sdbench.arguments import add_device, show

ARMS = ("layer-level", "task only", "task and output", "features scaled by the teacher", "one shot", "first blocks", "blocks most missed")


def add_commands(add: AddCommand) -> None:
    """Add the command and its options."""
    command = add(
        "ablate", _ablate, "train variants of a student of family scenes, with several seeds each, and compare them; a stopped run resumes"
    )
    add_recipe(command)
    add_steps(command)
    add_device(command)
    command.add_argument("--teacher", help=TEACHER)
    command.add_argument("--seeds", type=positive_int, default=3, help="number of seeds per arm (default: %(default)s)")
    command.add_argument(
        "--arm",
        action="append",
        choices=ARMS,
        metavar="ARM",
        default=[],
        help=f"run only this arm, one of: {', '.join(ARMS)}; may be repeated (default: all)",
    )
    add_results(command)


def _ablate(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe)
    recipe.settings("scenes")  # refused here, before a teacher is fetched
    device = training_device(options.device)

    from distillation.ablation.comparison import compare_arms, markdown_table, plot_arms
    from distillation.ablation.experiment import run_sweep
    from distillation.teacher import check_named_teacher, fetch_folder

    check_named_teacher(options.teacher, recipe, "scenes")
    outcomes = run_sweep(
        recipe,
        fetch_folder(options.teacher),
        work_folder(options),
        options.results,
        seeds=options.seeds,
        steps=options.steps,
        device=device,
        only=options.arm,
    )
    plot_arms(outcomes, options.results / "ablation" / f"{recipe.name}.png")
    show(markdown_table(compare_arms(outcomes)))
    return 0
