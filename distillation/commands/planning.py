"""`distillation plan`: what a recipe does, and what training takes."""

import argparse

from distillation.commands.options import AddCommand, add_estimate, add_recipe, chosen_family
from distillation.recipe import load_recipe
from sdbench.arguments import add_json, print_answer, print_json


def add_commands(add: AddCommand) -> None:
    """Add the command and its options."""
    command = add("plan", _plan, "describe a recipe and estimate what training takes, without any weights")
    add_recipe(command)
    add_json(command)
    add_estimate(command)


def _plan(options: argparse.Namespace) -> int:
    recipe = load_recipe(options.recipe)  # before torch is imported, which takes seconds
    family = chosen_family(options, recipe)

    from distillation.describe import describe_recipe

    plan = describe_recipe(recipe, family, steps=options.steps, tflops=options.tflops, usd_per_hour=options.usd_per_hour)
    print_answer(plan["text"], options)
    print_json(plan, options)
    return 0
