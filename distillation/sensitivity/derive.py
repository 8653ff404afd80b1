"""From a plan to a recipe: the order in which its parts go, in stages of about equal loss, and the file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w

from distillation.plan import MIDDLE, Plan
from distillation.recipe import Recipe
from distillation.recipe_tables import Keep, Middle, Stage
from distillation.sensitivity.budget import TWIN, Cost, removed
from distillation.sensitivity.removal import WHOLE
from sdbench.arrays import F64
from sdbench.disk import write_bytes
from sdbench.errors import UserError
from sdbench.models.architectures import TOPOLOGIES, depths, unet_config

SOURCE = "sensitivity of the teacher's output"


@dataclass(frozen=True)
class _Unit:
    """Blocks that go together, as (attention, block).

    Attributes:
        loss: of all of them.
        price: loss per saved parameter, by which units are ordered.
    """

    blocks: tuple[tuple[str, int], ...]
    loss: float
    price: float


def in_stages(losses: Mapping[str, F64], parameters: Cost, plan: Plan, n: int) -> list[Plan]:
    """The way to a plan: parts go in rising order of loss per saved parameter, in n stages of about equal summed loss.

    Each stage has a diffusers config. Where the middle goes, it goes at once, and before any block of the attention that
    is as deep; where it stays, the two lose their blocks in pairs.

    Raises:
        UserError: fewer parts go than there are stages.
    """
    units = _units(losses, parameters, plan)
    if len(units) < n:
        raise UserError(f"the plan takes out {len(units)} parts, too few for {n} stages; give fewer --stages or a smaller budget")
    plans, blocks = [], {path: tuple(range(len(row))) for path, row in losses.items() if path != WHOLE}
    ends = _ends(np.array([unit.loss for unit in units]), n)
    for start, end in zip([0, *ends], ends, strict=False):
        gone = {place for unit in units[start:end] for place in unit.blocks}
        blocks = {path: tuple(block for block in kept if (path, block) not in gone) for path, kept in blocks.items()}
        blocks = {path: kept for path, kept in blocks.items() if kept}
        plans.append(Plan(blocks, plan.mid_resnet))
    return plans


def _units(losses: Mapping[str, F64], parameters: Cost, plan: Plan) -> list[_Unit]:
    def unit(*blocks: tuple[str, int], of: str = "", least: float = 0.0) -> _Unit:
        places = [(of, 0)] if of else blocks
        loss, saved = (sum(float(parts[path][block]) for path, block in places) for parts in (losses, parameters.parts))
        return _Unit(blocks, loss, max(loss / saved, least))

    def going(path: str) -> list[tuple[str, int]]:
        return [(path, block) for block in range(len(losses[path])) if block not in plan.blocks.get(path, ())]

    alone = [unit(place) for path in losses if path not in (MIDDLE, TWIN, WHOLE) for place in going(path)]
    if MIDDLE in plan.blocks:
        pairs = (sorted(going(path), key=lambda place: unit(place).price) for path in (MIDDLE, TWIN))
        together = [unit(*pair) for pair in zip(*pairs, strict=True)]
    elif MIDDLE in losses:
        middle = unit(*going(MIDDLE), of=WHOLE)
        together = [middle, *(unit(place, least=middle.price) for place in going(TWIN))]
    else:
        together = [unit(place) for place in going(TWIN)]
    return sorted([*together, *alone], key=lambda unit: unit.price)


def _ends(losses: F64, n: int) -> list[int]:
    """Where each of n stages ends: as near to equal sums as the order allows, none of them empty."""
    sums, ends = losses.cumsum(), [0]
    for stage in range(1, n):
        nearest = int(np.abs(sums - sums[-1] * stage / n).argmin()) + 1
        ends.append(min(max(nearest, ends[-1] + 1), len(losses) - n + stage))
    return [*ends[1:], len(losses)]


def table(plans: Sequence[Plan], losses: Mapping[str, F64], costs: Sequence[Cost]) -> str:
    """Blocks that stay after each stage, and what each comes to, in Markdown."""
    rows = [[path, *(", ".join(map(str, plan.blocks.get(path, ()))) or "nothing" for plan in plans)] for path in losses if path != WHOLE]
    rows.append(["summed output loss", *(f"{removed(losses, plan):.3g}" for plan in plans)])
    rows += [[cost.unit, *(cost.said(cost.of(plan)) for plan in plans)] for cost in costs]
    head = ["keeps after", *(f"stage {number}" for number, _ in enumerate(plans, 1))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def recipe_of(plans: Sequence[Plan], teacher: str, name: str, like: Recipe) -> Recipe:
    """A recipe of these stages with everything else as in `like`; each stage gets an equal share of the steps.

    Args:
        plans: of each stage.
        teacher: architecture.
        name: of the recipe.
        like: gives training settings, taps and loss.

    Raises:
        UserError: the teacher's architecture has no name, so that no recipe can start from it.
    """
    if teacher not in TOPOLOGIES:
        raise UserError(f"a recipe starts from an architecture that has a name; found {teacher!r}, expected one of {', '.join(TOPOLOGIES)}")
    stages, before = [], {path: tuple(range(depth)) for path, depth in depths(unet_config(teacher)).items()}
    for number, plan in enumerate(plans, 1):
        rows = {path: plan.blocks.get(path, ()) for path, blocks in before.items() if plan.blocks.get(path, ()) != blocks}
        keep = tuple(Keep(attentions=path, blocks=blocks, source=SOURCE) for path, blocks in rows.items())
        stages.append(Stage(name=f"stage-{number}", share=1 / len(plans), keep=keep))
        before = dict(plan.blocks)
    middle = Middle(resnet=0, source="the one that stayed where the middle's loss was measured")
    changes = {"name": name, "student": None, "teacher": teacher, "middle": middle, "stages": tuple(stages)}
    return like.model_copy(update=changes)


def check_target(path: Path, *, budget: bool) -> None:
    """Make sure that a recipe can be written and read there.

    Raises:
        UserError: the name is no recipe's, the file exists, or no budget says what to write.
    """
    if not budget:
        raise UserError(f"no budget says which blocks {path} should keep; give --parameters or --latency beside --write-recipe")
    if path.suffix != ".toml" or not re.fullmatch(r"[a-z0-9.-]+", path.stem):
        raise UserError(f"{path} is no name of a recipe's file; expected small letters, digits, dots and dashes, and the ending .toml")
    if path.exists():
        raise UserError(f"{path} exists; expected a new file. Remove it, or name another with --write-recipe")


def write(recipe: Recipe, path: Path, note: str) -> None:
    """Write a recipe as TOML under a comment.

    Raises:
        UserError: the recipe is wrong, or the disk takes no more.
    """
    recipe.check()
    write_bytes(path, f"# {note}\n\n{tomli_w.dumps(recipe.model_dump(mode='json', exclude_none=True))}".encode())
