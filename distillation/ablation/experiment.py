"""The ablation: the same student made in other ways, several seeds each, and what each way is worth.

Every finished student is a JSON file under `<results>/ablation/<recipe>/`, so that a sweep that was stopped goes on. The
unit of replication is the training seed: arms share captions, noise and seeds, and intervals are t intervals over seeds.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import numpy as np
from diffusers import UNet2DConditionModel

from distillation.data.batches import batches, scenes
from distillation.plan import MIDDLE
from distillation.recipe import Recipe
from distillation.recipe_tables import Keep, KeepResnets, Stage
from distillation.sensitivity.removal import most_missed, removal_losses
from distillation.train import check, distil
from sdbench.arrays import F64
from sdbench.disk import write_bytes
from sdbench.errors import unknown_name
from sdbench.models.architectures import depths, unet_config
from sdbench.scenes.embedded import verified_path
from sdbench.scenes.networks import SceneNet
from sdbench.scenes.training.evaluation import SceneEvaluation
from sdbench.training.latents import LatentPool

Choose = Callable[[str, Sequence[int], int], tuple[int, ...]]
CAPTIONS = 512
SENSITIVITY_BATCHES = 8
BASE = "layer-level"  # the recipe as it is


@dataclass(frozen=True)
class Outcome:
    """One student.

    Attributes:
        identity: digest of what decides its weights: recipe of the arm, teacher, steps, device.
        right: for each caption, whether the picture shows it wholly right.
        losses: weighted terms of the last stage on batches it was not trained on.
    """

    arm: str
    seed: int
    identity: str
    right: tuple[bool, ...]
    losses: dict[str, float]

    @property
    def accuracy(self) -> float:
        """Share of the captions."""
        return float(np.mean(self.right))


def arms(recipe: Recipe, missed: Callable[[], Mapping[str, F64]]) -> dict[str, Callable[[], Recipe]]:
    """Each way of making the student.

    Args:
        recipe: the way it is made, with all three losses.
        missed: gives what the teacher's output loses without each block, for the plan that is derived from it.
    """
    return {
        BASE: lambda: recipe,
        "task only": lambda: _weighted(recipe, output=0.0, feature=0.0),
        "task and output": lambda: _weighted(recipe, feature=0.0),
        "features scaled by the teacher": lambda: _weighted(recipe, scale="teacher"),
        "one shot": lambda: one_shot(recipe),
        "first blocks": lambda: replanned(recipe, lambda _, there, k: tuple(there[:k]), "the first of each attention"),
        "blocks most missed": lambda: replanned(recipe, partial(most_missed, missed()), "sensitivity of the teacher's output"),
    }


def sweep(
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
    """Make every student that is not there yet, seed by seed => all outcomes.

    Args:
        recipe: what to vary.
        teacher_folder: a whole pipeline of the embedded family.
        work: gets pictures, latents and students on the way.
        results: the folder of results.
        seeds: of each arm.
        steps: of each student; the recipe's where not given.
        device: where to train.
        only: names of arms; all where empty.

    Raises:
        UserError: an arm is unknown, or a student cannot be made.
    """
    (teacher,), *_ = check(recipe, "scenes", [teacher_folder], steps)

    @cache  # seconds to minutes
    def missed() -> dict[str, F64]:
        batch = batches(pool, recipe.scenes.model_copy(update={"drop": 0.0}), device)
        unet = teacher.unet("float32", device)
        return removal_losses(unet, [batch(number) for number in range(SENSITIVITY_BATCHES)], pool.scheduler)

    ways = arms(recipe, missed)
    if wrong := [name for name in only if name not in ways]:
        raise unknown_name("arm", wrong[0], ways)
    pool = LatentPool(teacher_folder, scenes(recipe.scenes.pictures, work), work / "latents", device)
    watch = SceneEvaluation(pool, SceneNet.load(verified_path("evaluators/reader.safetensors")), CAPTIONS)
    outcomes = []
    for seed in range(seeds):
        for name in only or ways:
            way = ways[name]().model_copy(update={"scenes": recipe.scenes.model_copy(update={"seed": seed})})
            identity = hashlib.sha256(json.dumps([way.deciding("scenes"), teacher.digest, steps, device]).encode()).hexdigest()[:16]
            path = results / "ablation" / recipe.name / f"{name.replace(' ', '-')}-{seed}.json"
            if not (found := _read(path)) or found.identity != identity:
                found = _make(Outcome(name, seed, identity, (), {}), way, teacher_folder, work, watch, steps, device)
                write_bytes(path, json.dumps(asdict(found)).encode() + b"\n")
            outcomes.append(found)
    return outcomes


def _make(
    what: Outcome, way: Recipe, teacher_folder: Path, work: Path, watch: SceneEvaluation, steps: int | None, device: Literal["cpu", "cuda"]
) -> Outcome:
    out = work / "ablation" / what.identity
    if not out.exists():
        distil(way, "scenes", [teacher_folder], work, out, steps=steps, device=device, unet_only=True)
    student = UNet2DConditionModel.from_pretrained(out).float().to(device).eval()
    losses = json.loads((out / "provenance.json").read_text())["stages"][-1]["losses"]
    return Outcome(what.arm, what.seed, what.identity, tuple(watch.are_right(watch.draw_pictures(student))), losses)


def _read(path: Path) -> Outcome | None:
    if not path.exists():
        return None
    content = json.loads(path.read_text())
    return Outcome(content["arm"], content["seed"], content["identity"], tuple(content["right"]), content["losses"])


def replanned(recipe: Recipe, choose: Choose, source: str) -> Recipe:
    """The same stages and depths with other blocks.

    Args:
        recipe: gives stages and depths.
        choose: an attention, the blocks that are there, and how many to keep => which.
        source: of each row.
    """
    blocks = {path: tuple(range(depth)) for path, depth in depths(unet_config(recipe.teacher)).items()}
    stages = []
    for stage, plan in zip(recipe.stages, recipe.plans, strict=True):
        blocks = {path: there for path, there in blocks.items() if path == MIDDLE or plan.place(path)}
        counts = {path: len(plan.blocks.get(path, ())) for path in blocks}
        blocks = {path: choose(path, there, counts[path]) for path, there in blocks.items()}
        rows = tuple(Keep(attentions=path, blocks=kept, source=source) for path, kept in blocks.items())
        stages.append(stage.model_copy(update={"keep": rows}))
        blocks = {path: kept for path, kept in blocks.items() if kept}
    return recipe.model_copy(update={"stages": tuple(stages)})


def one_shot(recipe: Recipe) -> Recipe:
    """All cuts at once, then all steps."""
    last, source = recipe.plans[-1], "the recipe's last stage"
    paths = [path for path in depths(unet_config(recipe.teacher)) if path == MIDDLE or last.place(path)]
    keep = tuple(Keep(attentions=path, blocks=last.blocks.get(path, ()), source=source) for path in paths)
    shorten = tuple(KeepResnets(block=block, resnets=kept, source=source) for block, kept in last.resnets.items()) or None
    return recipe.model_copy(update={"stages": (Stage(name="all", share=1.0, keep=keep, shorten=shorten),)})


def _weighted(recipe: Recipe, **weights: float | str) -> Recipe:
    return recipe.model_copy(update={"loss": recipe.loss.model_copy(update=weights)})
