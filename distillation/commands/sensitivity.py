"""`distillation sensitivity`: which blocks a teacher depends on most, and the best cut within a budget."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillation.commands.options import (
    TEACHER,
    AddCommand,
    add_data,
    add_results,
    check_data,
    number_between,
    positive_int,
    training_device,
    work_folder,
)
from distillation.recipe import Recipe, load_recipe
from sdbench.arguments import add_device, add_json, print_answer, print_json
from sdbench.errors import UserError

if TYPE_CHECKING:
    from distillation.sensitivity.budget import Cost
    from distillation.sensitivity.removal import Sensitivity
    from distillation.teacher import Teacher
    from sdbench.training.latents import CaptionedImages


def add_commands(add: AddCommand) -> None:
    """Add the command and its options."""
    command = add(
        "sensitivity", _sensitivity, "measure which transformer blocks a teacher depends on most, and derive which ones to remove"
    )
    command.add_argument("--teacher", help=TEACHER)
    add_data(
        command,
        "captioned images to measure on, in the forms that run takes (default: rendered scenes, for a teacher of family scenes only)",
    )
    command.add_argument(
        "--bins",
        type=number_between(int, 1, 1000),
        default=10,
        help="number of equal bins that the timesteps are divided into (default: %(default)s)",
    )
    command.add_argument(
        "--batches", type=number_between(int, 2, 10_000), default=4, help="number of batches per bin (default: %(default)s)"
    )
    command.add_argument("--images", type=positive_int, default=8, help="number of images per batch (default: %(default)s)")
    limit = command.add_mutually_exclusive_group()
    limit.add_argument(
        "--parameters",
        type=number_between(float, 1e-6, 1e12),
        help="budget: maximum number of parameters of the student, or, if at most 1, their share of the teacher's",
    )
    limit.add_argument(
        "--latency", type=number_between(float, 1e-6, 1), help="budget: maximum time per call of the student, as a share of the teacher's"
    )
    command.add_argument("--stages", type=positive_int, default=2, help="number of stages to remove the blocks in (default: %(default)s)")
    command.add_argument("--like", default="vega", help="recipe whose settings, taps and loss to copy (default: %(default)s)")
    command.add_argument("--write-recipe", type=Path, metavar="FILE.toml", help="write the derived cut as a recipe to this new file")
    add_results(command)
    add_device(command)
    add_json(command)


def _sensitivity(options: argparse.Namespace) -> int:
    """Measure and print the sensitivity, and derive a cut if there is a budget."""
    like = load_recipe(options.like)  # before torch is imported, which takes seconds
    check_data(options)
    if options.latency:  # set before CUDA starts: by default its queue holds some 1,000 launches, about half of a call of SDXL's UNet
        os.environ.setdefault("CUDA_SCALE_LAUNCH_QUEUES", "4x")
    device = training_device(options.device)

    from distillation.sensitivity.budget import parameter_cost
    from distillation.sensitivity.derive import check_recipe_path
    from distillation.sensitivity.plot import plot_sensitivity
    from distillation.sensitivity.removal import Settings, measure_sensitivity, rank_parts, ranking_table
    from distillation.teacher import fetch_folder, open_teacher, teacher_spec

    if options.write_recipe:
        check_recipe_path(options.write_recipe, budget=bool(options.parameters or options.latency))
    _check_images(options, teacher_spec(options.teacher).family, like)
    teacher = open_teacher(fetch_folder(options.teacher))
    name = Path(options.teacher).resolve().name if options.teacher else "scenes-teacher"
    settings = Settings(bins=options.bins, batches=options.batches, images=options.images)
    images = _open_images(options, teacher, like, settings.n)
    sensitivity = measure_sensitivity(teacher, name, settings, images, work_folder(options), options.results, device)
    plot_sensitivity(sensitivity, options.results / "sensitivity" / f"{name}.png")
    parameters = parameter_cost(teacher.config)
    print_answer(ranking_table(sensitivity, parameters.shares), options)
    stages = None
    if budget := options.latency or options.parameters:
        cost = _measure_times(options, teacher, images, device) if options.latency else parameters
        stages = _derive(options, teacher, like, sensitivity, parameters, cost, budget)
    parts = rank_parts(sensitivity, parameters.shares)
    print_json({"teacher": name, "digest": sensitivity.digest, "parts": parts, "stages": stages, "recipe": options.write_recipe}, options)
    return 0


def _measure_times(options: argparse.Namespace, teacher: "Teacher", images: "CaptionedImages", device: str) -> "Cost":
    import numpy as np

    from distillation.sensitivity.budget import measure_time_cost
    from distillation.sensitivity.removal import measurement_dtype
    from sdbench.training.latents import LatentPool

    pool = LatentPool(teacher.folder, images, work_folder(options) / "latents", device)
    batch = pool.batch_of_rows(np.arange(2), seed=0, device=device)  # with guidance, a call of the UNet has two halves
    return measure_time_cost(teacher.unet(measurement_dtype(teacher), device), batch, pool.scheduler)


def _derive(
    options: argparse.Namespace,
    teacher: "Teacher",
    like: Recipe,
    sensitivity: "Sensitivity",
    parameters: "Cost",
    cost: "Cost",
    budget: float,
) -> list[dict[str, Any]]:
    """Print the best cut within a budget of `cost`, write its recipe if asked to, and return its stages.

    Args:
        budget: up to 1, a share of the cost's total.
    """
    from distillation.sensitivity.budget import find_best_cut, sum_removed
    from distillation.sensitivity.derive import derive_recipe, split_into_stages, stage_table, write_recipe

    cut = find_best_cut(sensitivity.mean, cost, int(budget * cost.total if budget <= 1 else budget))
    cuts = split_into_stages(sensitivity.mean, parameters, cut, options.stages)
    costs = [parameters] if cost is parameters else [parameters, cost]
    print_answer("\n" + stage_table(cuts, sensitivity.mean, costs), options)
    if path := options.write_recipe:
        recipe = derive_recipe(cuts, teacher.spec.architecture, path.stem, like)
        write_recipe(recipe, path, f"Derived from the weights {sensitivity.digest}: {cost.format(cost.remaining(cut))}.")
        print_answer(f"\n{path}", options)
    return [
        {"keeps": cut.blocks, "loss": sum_removed(sensitivity.mean, cut)} | {each.unit: each.remaining(cut) for each in costs}
        for cut in cuts
    ]


def _check_images(options: argparse.Namespace, family: str, like: Recipe) -> None:
    """Check that there are images for a teacher of this family, and that the recipe states their size."""
    if family != "scenes" and not options.data:
        raise UserError(f"the teacher {options.teacher!r} belongs to family {family!r}; name images to measure on with --data")
    _size_px(family, like)


def _size_px(family: str, like: Recipe) -> int:
    return like.size_px("scenes" if family == "scenes" else "sdxl")


def _open_images(options: argparse.Namespace, teacher: "Teacher", like: Recipe, n: int) -> "CaptionedImages":
    from distillation.data.batches import open_square_images, scene_pool

    if options.data:
        size_px = _size_px(teacher.spec.family, like)
        return open_square_images(options.data, options.caption_column, size_px, n, options.max_undecodable)
    return scene_pool(n, work_folder(options))
