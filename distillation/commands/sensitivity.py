"""`distillation sensitivity`: which blocks a teacher misses most, and the cut within a budget that follows."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from distillation.commands.options import TEACHER, add_data, add_device, count, within
from distillation.recipe import Recipe, read
from sdbench.arguments import add_command, show
from sdbench.errors import UserError

if TYPE_CHECKING:
    from distillation.teacher import Teacher
    from sdbench.arguments import Parser
    from sdbench.training.latents import CaptionedPictures


def add(commands: "argparse._SubParsersAction[Parser]", work: Path) -> None:
    """Add the command and its options."""
    command = add_command(commands, "sensitivity", "measure which transformer blocks a teacher misses most, and derive what to cut")
    command.add_argument("--teacher", help=TEACHER)
    add_data(command, "captioned pictures to measure on (default: rendered scenes, for a teacher of that family)")
    command.add_argument("--bins", type=within(int, 1, 1000), default=10, help="equal parts of the timesteps (default: %(default)s)")
    command.add_argument("--batches", type=within(int, 2, 10_000), default=4, help="of each bin (default: %(default)s)")
    command.add_argument("--pictures", type=count, default=8, help="of each batch (default: %(default)s)")
    limit = command.add_mutually_exclusive_group()
    limit.add_argument("--parameters", type=within(float, 1e-6, 1e12), help="most that the student may have: a number, or up to 1, a share")
    limit.add_argument(
        "--latency", type=within(float, 1e-6, 1), help="most of the teacher's time a call that the student may take: a share"
    )
    command.add_argument("--stages", type=count, default=2, help="in which the student is cut (default: %(default)s)")
    command.add_argument("--like", default="vega", help="recipe with the settings, taps and loss to take (default: %(default)s)")
    command.add_argument("--write-recipe", type=Path, metavar="FILE.toml", help="new file for a recipe of the derived plan")
    command.add_argument("--work", type=Path, default=work, help="folder for pictures and latents (default: %(default)s)")
    command.add_argument("--results", type=Path, default=Path("results"), help="folder of results (default: %(default)s)")
    add_device(command)


def run(options: argparse.Namespace) -> None:
    """Measure, show, and derive a plan where there is a budget; the answer goes to stdout."""
    from distillation import teacher as teachers
    from distillation.sensitivity import budget, derive
    from distillation.sensitivity.plot import draw
    from distillation.sensitivity.removal import Settings, batches_of, measured, precision, ranked

    pair_of_halves = Settings(bins=1, batches=2, pictures=2)  # guidance calls the UNet with two halves
    like, target = read(options.like), options.write_recipe
    if target:
        derive.check_target(target, budget=bool(options.parameters or options.latency))
    teacher = teachers.at(teachers.place(options.teacher))
    name = Path(options.teacher).resolve().name if options.teacher else "scenes-teacher"
    settings = Settings(bins=options.bins, batches=options.batches, pictures=options.pictures)
    pictures = _pictures(options, teacher, like, max(settings.n, pair_of_halves.n))
    found = measured(teacher, name, settings, pictures, options.work, options.results, options.device)
    draw(found, options.results / "sensitivity" / f"{name}.png")
    counts = budget.parameters(teacher.config)
    show(ranked(found, counts.shares))
    if options.latency:
        (pair, _), scheduler = batches_of(teacher, pair_of_halves, pictures, options.work, options.device)
        cost, share = budget.times(teacher.unet(precision(teacher), options.device), pair, scheduler), options.latency
    elif options.parameters:
        cost, share = counts, options.parameters
    else:
        return
    plan = budget.least_loss(found.mean, cost, int(share * cost.total if share <= 1 else share))
    plans = derive.in_stages(found.mean, counts, plan, options.stages)
    show("\n" + derive.table(plans, found.mean, [counts] if cost is counts else [counts, cost]))
    if target:
        recipe = derive.recipe_of(plans, teacher.spec.architecture, target.stem, like)
        derive.write(recipe, target, f"Derived from the weights {found.digest}: {cost.said(cost.of(plan))}.")
        show(f"\n{target}")


def _pictures(options: argparse.Namespace, teacher: "Teacher", like: Recipe, n: int) -> "CaptionedPictures":
    from distillation.data.batches import open_squares, scenes

    if options.data:
        size_px = like.size_px("scenes" if teacher.spec.family == "scenes" else "sdxl")
        return open_squares(options.data, options.caption_column, size_px)
    if teacher.spec.family != "scenes":
        raise UserError(f"the teacher in {teacher.folder} is of family {teacher.spec.family!r}; name pictures to measure it on with --data")
    return scenes(n, options.work)
