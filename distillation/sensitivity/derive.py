"""From a cut to a recipe: the order in which parts are removed, in stages of about equal loss, and the recipe's file."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tomli_w

from distillation.cut import MIDDLE_ATTENTION, Cut, all_blocks
from distillation.recipe import NAME_PATTERN, Recipe
from distillation.recipe_tables import KeepBlocks, Middle, Stage
from distillation.sensitivity.budget import TIED_TO_MIDDLE, Cost, sum_removed
from distillation.sensitivity.removal import WHOLE_MIDDLE
from sdbench.arrays import F64
from sdbench.disk import write_bytes
from sdbench.errors import UserError
from sdbench.models.architectures import TOPOLOGIES, unet_config

SOURCE = "sensitivity of the teacher's output"


@dataclass(frozen=True)
class _Unit:
    """Blocks that are removed together.

    Attributes:
        blocks: (attention, block) of each.
        loss: of all of them.
        loss_per_parameter: per saved parameter; units are removed in this order.
    """

    blocks: tuple[tuple[str, int], ...]
    loss: float
    loss_per_parameter: float


def split_into_stages(losses: Mapping[str, F64], parameters: Cost, cut: Cut, n: int) -> list[Cut]:
    """Divide a cut into n stages, and return the cut of each stage.

    Parts are removed in rising order of loss per saved parameter, and the stages have about equal summed loss. A diffusers
    config can express each stage: a middle that is removed goes at once, before any block of the attention tied to it; if it
    stays, the two lose their blocks in pairs.

    Raises:
        UserError: the cut removes fewer parts than there are stages.
    """
    units = _units(losses, parameters, cut)
    if len(units) < n:
        raise UserError(f"the cut removes {len(units)} parts, too few for {n} stages; give fewer --stages or a smaller budget")
    cuts, blocks = [], {path: tuple(range(len(row))) for path, row in losses.items() if path != WHOLE_MIDDLE}
    ends = _stage_ends(np.array([unit.loss for unit in units]), n)
    for start, end in itertools.pairwise([0, *ends]):
        removed = {place for unit in units[start:end] for place in unit.blocks}
        blocks = {path: tuple(block for block in kept if (path, block) not in removed) for path, kept in blocks.items()}
        blocks = {path: kept for path, kept in blocks.items() if kept}
        cuts.append(Cut(blocks, cut.mid_resnet))
    return cuts


def _units(losses: Mapping[str, F64], parameters: Cost, cut: Cut) -> list[_Unit]:
    """What the cut removes, in the order of removal."""

    def unit(*blocks: tuple[str, int], measured_as: str = "", not_before: float = 0.0) -> _Unit:
        places = [(measured_as, 0)] if measured_as else blocks
        loss, saved = (sum(float(parts[path][block]) for path, block in places) for parts in (losses, parameters.parts))
        return _Unit(blocks, loss, max(loss / saved, not_before))

    def removed(path: str) -> list[tuple[str, int]]:
        return [(path, block) for block in range(len(losses[path])) if block not in cut.blocks.get(path, ())]

    ordinary = [path for path in losses if path not in (MIDDLE_ATTENTION, TIED_TO_MIDDLE, WHOLE_MIDDLE)]
    single = [unit(place) for path in ordinary for place in removed(path)]
    if MIDDLE_ATTENTION in cut.blocks:
        by_loss = (sorted(removed(path), key=lambda place: unit(place).loss_per_parameter) for path in (MIDDLE_ATTENTION, TIED_TO_MIDDLE))
        tied = [unit(*pair) for pair in zip(*by_loss, strict=True)]
    elif MIDDLE_ATTENTION in losses:
        middle = unit(*removed(MIDDLE_ATTENTION), measured_as=WHOLE_MIDDLE)
        tied = [middle, *(unit(place, not_before=middle.loss_per_parameter) for place in removed(TIED_TO_MIDDLE))]
    else:
        tied = [unit(place) for place in removed(TIED_TO_MIDDLE)]
    return sorted([*tied, *single], key=lambda unit: unit.loss_per_parameter)


def _stage_ends(losses: F64, n: int) -> list[int]:
    """Index after the last unit of each stage, so that the stages' sums are as equal as the order allows and none is empty."""
    sums, ends = losses.cumsum(), [0]
    for stage in range(1, n):
        nearest = int(np.abs(sums - sums[-1] * stage / n).argmin()) + 1
        ends.append(min(max(nearest, ends[-1] + 1), len(losses) - n + stage))
    return [*ends[1:], len(losses)]


def stage_table(cuts: Sequence[Cut], losses: Mapping[str, F64], costs: Sequence[Cost]) -> str:
    """The blocks that stay after each stage, with summed loss and costs, as a Markdown table."""
    rows = [
        [path, *(", ".join(map(str, cut.blocks.get(path, ()))) or "nothing" for cut in cuts)] for path in losses if path != WHOLE_MIDDLE
    ]
    rows.append(["summed output loss", *(f"{sum_removed(losses, cut):.3g}" for cut in cuts)])
    rows += [[cost.unit, *(cost.format(cost.remaining(cut)) for cut in cuts)] for cost in costs]
    head = ["keeps after", *(f"stage {number}" for number, _ in enumerate(cuts, 1))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def derive_recipe(cuts: Sequence[Cut], teacher: str, name: str, like: Recipe) -> Recipe:
    """A recipe of these stages, each with an equal share of the steps, and with everything else as in `like`.

    Args:
        teacher: the teacher's architecture.
        like: source of training settings, taps and loss.

    Raises:
        UserError: no recipe can start from the teacher's architecture, since it has no name.
    """
    if teacher not in TOPOLOGIES:
        raise UserError(f"a recipe starts from an architecture that has a name; found {teacher!r}, expected one of {', '.join(TOPOLOGIES)}")
    stages, previous = [], all_blocks(unet_config(teacher))
    for number, cut in enumerate(cuts, 1):
        rows = {path: cut.blocks.get(path, ()) for path, blocks in previous.items() if cut.blocks.get(path, ()) != blocks}
        keep = tuple(KeepBlocks(attentions=path, blocks=blocks, source=SOURCE) for path, blocks in rows.items())
        stages.append(Stage(name=f"stage-{number}", share=1 / len(cuts), keep=keep))
        previous = dict(cut.blocks)
    middle = Middle(resnet=0, source="the one that stayed where the middle's loss was measured")
    changes = {"name": name, "student": None, "teacher": teacher, "middle": middle, "stages": tuple(stages)}
    return like.model_copy(update=changes)


def check_recipe_path(path: Path, *, budget: bool) -> None:
    """Check that a recipe can be written there and loaded again.

    Raises:
        UserError: the file has no valid name for a recipe or exists, or there is no budget to derive a recipe from.
    """
    if not budget:
        raise UserError(f"cannot derive the recipe for {path} without a budget; give --parameters or --latency with --write-recipe")
    if path.suffix != ".toml" or not re.fullmatch(NAME_PATTERN, path.stem):
        raise UserError(
            f"{path} is not a valid recipe file name; expected lower-case letters, digits, dots and dashes, "
            "the first a letter or digit, and the suffix .toml"
        )
    if path.exists():
        raise UserError(f"{path} exists; expected a new file. Remove it, or name another with --write-recipe")


def write_recipe(recipe: Recipe, path: Path, note: str) -> None:
    """Write a recipe as TOML, below `note` as a comment.

    Raises:
        UserError: the recipe is invalid, or the disk is full.
    """
    recipe.check()
    write_bytes(path, f"# {note}\n\n{tomli_w.dumps(recipe.model_dump(mode='json', exclude_none=True))}".encode())
