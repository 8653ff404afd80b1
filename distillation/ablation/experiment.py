"""The ablation: variants of the same student, each trained with several seeds.

Each finished student has a JSON file under `<results>/ablation/<recipe>/`, so that a stopped sweep resumes. The unit of
replication is the training seed: arms share captions, noise and seeds, and intervals are t intervals over seeds. Unlike a run,
a sweep starts again after an upgrade: otherwise a difference between two arms could be one between two versions.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from diffusers import UNet2DConditionModel

from distillation.cut import MIDDLE_ATTENTION, all_blocks
from distillation.data.batches import numbered_batches, scene_pool
from distillation.provenance import package_versions
from distillation.recipe import Recipe
from distillation.recipe_tables import KeepBlocks, KeepResnets, Stage
from distillation.run_plan import plan_run
from distillation.sensitivity.removal import pick_most_missed, removal_losses
from distillation.train import distil
from sdbench.arrays import F64
from sdbench.disk import digest, keep_earlier, locked, read_json, write_bytes
from sdbench.models.architectures import depths, unet_config
from sdbench.scenes.embedded import verified_path
from sdbench.scenes.networks import SceneNet
from sdbench.scenes.training.evaluation import SceneEvaluation
from sdbench.training.latents import LatentPool

BlockChooser = Callable[[str, Sequence[int], int], tuple[int, ...]]  # from attention, present blocks and number to keep: the blocks to keep
CAPTIONS = 512
SENSITIVITY_BATCHES = 8
BASE = "layer-level"  # the unchanged recipe


@dataclass(frozen=True)
class Outcome:
    """The result of one student.

    Attributes:
        identity: what decides its weights: see `RunPlan.identity`, and the versions of the packages.
        right: for each caption, whether the image shows all of it correctly.
        losses: weighted loss terms of the last stage, on batches that it was not trained on.
    """

    arm: str
    seed: int
    identity: dict[str, Any]
    right: tuple[bool, ...]
    losses: dict[str, float]

    @property
    def accuracy(self) -> float:
        """Share of captions whose image is right."""
        return float(np.mean(self.right))


def arm_recipes(recipe: Recipe, measure_losses: Callable[[], Mapping[str, F64]]) -> dict[str, Callable[[], Recipe]]:
    """The functions that make the recipes of the arms, by name of the arm.

    Args:
        recipe: the unchanged recipe, with all three losses.
        measure_losses: gives `removal_losses` of the teacher; only called for the arm that chooses blocks by them.
    """
    return {
        BASE: lambda: recipe,
        "task only": lambda: _with_loss(recipe, output=0.0, feature=0.0),
        "task and output": lambda: _with_loss(recipe, feature=0.0),
        "features scaled by the teacher": lambda: _with_loss(recipe, scale="teacher"),
        "one shot": lambda: one_shot_recipe(recipe),
        "first blocks": lambda: with_other_blocks(recipe, lambda _, present, k: tuple(present[:k]), "the first of each attention"),
        "blocks most missed": lambda: with_other_blocks(
            recipe, partial(pick_most_missed, measure_losses()), "sensitivity of the teacher's output"
        ),
    }


def run_sweep(
    recipe: Recipe,
    teacher_folder: Path,
    work: Path,
    results: Path,
    *,
    seeds: int,
    steps: int | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    only: Sequence[str] = (),
) -> list[Outcome]:
    """Train every student that has no result yet, seed by seed, and return all outcomes.

    A result with another identity is kept under another name.

    Args:
        teacher_folder: a complete pipeline of the embedded family.
        work: images, latents and students are kept in its subfolder `ablation/<digest of the versions>`.
        seeds: number of seeds per arm.
        steps: of each student; default: the recipe's.
        only: names of arms, see `arm_recipes`; default: all.

    Raises:
        UserError: a student cannot be made.
    """
    (teacher,) = plan_run(recipe, "scenes", [teacher_folder], steps).teachers
    versions = package_versions()
    work = work / "ablation" / digest(versions)[:12]

    @cache  # takes seconds to minutes
    def measure_losses() -> dict[str, F64]:
        batch = numbered_batches(pool, recipe.settings("scenes").model_copy(update={"drop": 0.0}), device)
        unet = teacher.unet("float32", device)
        return removal_losses(unet, [batch(number) for number in range(SENSITIVITY_BATCHES)], pool.scheduler)

    arms = arm_recipes(recipe, measure_losses)
    pool = LatentPool(teacher_folder, scene_pool(recipe.settings("scenes").images, work), work / "latents", device)
    evaluation = SceneEvaluation(pool, SceneNet.load(verified_path("evaluators/reader.safetensors")), CAPTIONS)
    outcomes = []
    for seed in range(seeds):
        for name in only or arms:
            variant = with_seed(arms[name](), seed)
            plan = plan_run(variant, "scenes", [teacher_folder], steps)
            identity = {**plan.identity(pool.images.digest, device), "versions": versions}
            path = results / "ablation" / recipe.name / f"{name.replace(' ', '-')}-{seed}.json"
            outcome = earlier = _read(path)
            if outcome is None or outcome.identity != identity:
                out = work / "students" / digest(identity)
                with locked(out.with_suffix(".lock")):  # another sweep may be making it
                    if not out.exists():
                        distil(plan, work, out, device=device, unet_only=True)
                outcome = _evaluate(out, name, seed, identity, evaluation, device)
                if earlier:
                    keep_earlier(path, [key for key in earlier.identity | identity if earlier.identity.get(key) != identity.get(key)])
                write_bytes(path, json.dumps(asdict(outcome)).encode() + b"\n")
            outcomes.append(outcome)
    return outcomes


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with another seed for the embedded family."""
    return recipe.model_copy(update={"scenes": recipe.settings("scenes").model_copy(update={"seed": seed})})


def _evaluate(student_folder: Path, arm: str, seed: int, identity: dict[str, Any], evaluation: SceneEvaluation, device: str) -> Outcome:
    student = UNet2DConditionModel.from_pretrained(student_folder).float().to(device).eval()
    losses = read_json(student_folder / "provenance.json")["stages"][-1]["losses"]
    return Outcome(arm, seed, identity, tuple(evaluation.are_right(evaluation.draw_images(student))), losses)


def _read(path: Path) -> Outcome | None:
    if not path.exists():
        return None
    outcome: Outcome = read_json(
        path, lambda found: Outcome(found["arm"], found["seed"], found["identity"], tuple(found["right"]), found["losses"]), part=path
    )
    return outcome


def with_other_blocks(recipe: Recipe, choose: BlockChooser, source: str) -> Recipe:
    """A recipe with the same stages and depths but the blocks that `choose` keeps; `source` is the source of each row."""
    blocks = all_blocks(unet_config(recipe.teacher))
    stages = []
    for stage, cut in zip(recipe.stages, recipe.cuts, strict=True):
        blocks = {path: present for path, present in blocks.items() if path == MIDDLE_ATTENTION or cut.student_path(path)}
        counts = {path: len(cut.blocks.get(path, ())) for path in blocks}
        blocks = {path: choose(path, present, counts[path]) for path, present in blocks.items()}
        rows = tuple(KeepBlocks(attentions=path, blocks=kept, source=source) for path, kept in blocks.items())
        stages.append(stage.model_copy(update={"keep": rows}))
        blocks = {path: kept for path, kept in blocks.items() if kept}
    return recipe.model_copy(update={"stages": tuple(stages)})


def one_shot_recipe(recipe: Recipe) -> Recipe:
    """A recipe that makes all cuts at once and then trains for all steps."""
    last, source = recipe.cuts[-1], "the recipe's last stage"
    paths = [path for path in depths(unet_config(recipe.teacher)) if path == MIDDLE_ATTENTION or last.student_path(path)]
    keep = tuple(KeepBlocks(attentions=path, blocks=last.blocks.get(path, ()), source=source) for path in paths)
    shorten = tuple(KeepResnets(block=block, resnets=kept, source=source) for block, kept in last.resnets.items()) or None
    return recipe.model_copy(update={"stages": (Stage(name="all", share=1.0, keep=keep, shorten=shorten),)})


def _with_loss(recipe: Recipe, **weights: float | str) -> Recipe:
    return recipe.model_copy(update={"loss": recipe.loss.model_copy(update=weights)})
