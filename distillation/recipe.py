"""Recipes: which of the teacher's blocks a student keeps, which outputs are compared, and how long it trains.

A recipe numbers blocks as the teacher does, at every stage. It is checked against both architectures when it is loaded, and
its taps are checked when a run starts: both before any weights are read. Nothing in it depends on widths, so the same file
prunes SDXL and the embedded teacher.
"""

import bisect
import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args, overload

from pydantic import Field, model_validator

from distillation.cut import Cut, all_blocks
from distillation.recipe_tables import (
    FullSizeTraining,
    LossWeights,
    Middle,
    ScenesTraining,
    Stage,
    TeacherShare,
)
from sdbench.errors import UserError, unknown_name
from sdbench.models.architectures import TOPOLOGIES, Family, Shape, resnet_counts, shape_of, unet_config
from sdbench.scenes.render import SIZE_PX
from sdbench.validation import Table, read_toml

RECIPES = Path(__file__).parent / "recipes"
_EXAMPLE = RECIPES / "vega.toml"
NAME_PATTERN = r"^[a-z0-9][a-z0-9.-]*$"
_OWN_SHAPE = "For a shape of your own, leave `student` out of the recipe"


@dataclass(frozen=True)
class Segment:
    """Steps `start` to `end` (exclusive) of a run, with the number of their stage and of their teacher, both from 0."""

    stage: int
    teacher: int
    start: int
    end: int


class Recipe(Table):
    """A student: its architecture, how it is cut from the teacher, and its training.

    Attributes:
        student: architecture after the last stage; None if it has no name.
        teacher: architecture that the first stage cuts.
        taps: paths of the modules whose outputs the feature loss compares; `*` matches any one part.
        scenes, sdxl: how it trains in each family; None for one that it does not train, but never for both.
    """

    name: str = Field(pattern=NAME_PATTERN)
    student: str | None = None
    teacher: str
    middle: Middle
    stages: tuple[Stage, ...] = Field(min_length=1)
    taps: tuple[str, ...] = Field(min_length=1)
    loss: LossWeights
    scenes: ScenesTraining | None = None
    sdxl: FullSizeTraining | None = None

    @model_validator(mode="after")
    def _trains_a_family(self) -> Self:
        if not self.families:
            raise ValueError(
                "neither a table [scenes] nor a table [sdxl]; a recipe has one for each family that it trains: "
                f"copy that of a shipped recipe, such as {_EXAMPLE}"
            )
        return self

    @property
    def digest(self) -> str:
        """The SHA-256 (hex) of the recipe's content; comments and layout do not matter."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @property
    def families(self) -> tuple[Family, ...]:
        """The families that it has settings for, one or both; the embedded one comes first."""
        families: tuple[Family, ...] = ("scenes", "sdxl")
        return tuple(family for family in families if getattr(self, family) is not None)

    @overload
    def settings(self, family: Literal["scenes"]) -> ScenesTraining: ...
    @overload
    def settings(self, family: Literal["sdxl"]) -> FullSizeTraining: ...
    def settings(self, family: Family) -> ScenesTraining | FullSizeTraining:
        """The training settings of a family.

        Raises:
            UserError: the recipe has none.
        """
        settings = self.scenes if family == "scenes" else self.sdxl
        if settings is None:
            raise UserError(
                f"recipe {self.name!r} has no table [{family}], the settings of family {family!r}. Copy that of a shipped recipe, such as "
                f"{_EXAMPLE}, name another recipe, or, for `run` and `plan`, choose --family {self.families[0]}"
            )
        return settings

    def size_px(self, family: Family) -> int:
        """Side of the images that a family trains on.

        Raises:
            UserError: the recipe has no settings for the family, and its images are not rendered ones.
        """
        return SIZE_PX if family == "scenes" else self.settings(family).size_px

    def training_digest(self, family: Family) -> str:
        """The SHA-256 (hex) of all that decides the weights of a student of this family, and of the names of recipe, student and stages.

        Left out are the other family's settings, all sources, the teachers' names, the released student's data, keys that are not set, and
        gradient checkpointing, which changes at most rounding: a run may be continued with it on a smaller GPU.

        Raises:
            UserError: the recipe has no settings for the family.
        """
        settings = self.settings(family).model_copy(update={"checkpointing": family == "sdxl"})  # as in earlier runs of the shipped recipes
        rows = {"__all__": {"source"}}
        notes: dict[str, Any] = {"stages": {"__all__": {"keep": rows, "shorten": rows}}, "middle": {"source"}}
        notes["sdxl"] = {"source": True, "data": True, "teachers": {"__all__": {"name", "source"}}}
        other_families = {name: True for name in get_args(Family) if name != family}
        recipe = self.model_copy(update={family: settings})
        return hashlib.sha256(recipe.model_dump_json(exclude=notes | other_families, exclude_none=True).encode()).hexdigest()

    @property
    def _teachers(self) -> tuple[TeacherShare, ...]:
        return self.sdxl.teachers if self.sdxl else ()

    @property
    def cuts(self) -> list[Cut]:
        """The cut of each stage, in the teacher's block numbers.

        Raises:
            UserError: a row does not fit the network that the stages before it leave; see `Cut.keep_resnets` and `Cut.keep_blocks`.
        """
        config, cuts = unet_config(self.teacher), []
        cut = Cut(all_blocks(config), self.middle.resnet)
        for stage in self.stages:
            where = f"recipe {self.name!r}, stage {stage.name!r}"
            cut = cut.keep_resnets([(row.block, row.resnets) for row in stage.shorten or ()], resnet_counts(config), where)
            cut = cut.keep_blocks([(row.attentions, row.blocks) for row in stage.keep], where)
            cuts.append(cut)
        return cuts

    def stage_steps(self, steps: int, first_stage: int = 0) -> list[int]:
        """Number of steps of each stage from `first_stage` on, by its share.

        Raises:
            UserError: too few steps for every stage to have at least one.
        """
        shares = [stage.share for stage in self.stages[first_stage:]]
        if first_stage:  # all of them sum to 1 already; dividing could move a step
            shares = [share / sum(shares) for share in shares]
        counts = _split_steps(steps, shares)
        if min(counts) < 1:
            enough = next(more for more in itertools.count(steps + 1) if min(_split_steps(more, shares)) >= 1)
            raise UserError(
                f"{steps} steps are too few for the {len(shares)} stages of recipe {self.name!r}; each needs at least 1, found "
                f"{counts}. --steps {enough} is enough"
            )
        return counts

    def teacher_shares(self, n_teachers: int) -> list[float]:
        """Each teacher's share of the steps: a single one teaches all of them, several each teach the share that the recipe states.

        Raises:
            UserError: neither one teacher nor as many as the recipe names.
        """
        shares = [1.0] if n_teachers == 1 else [teacher.share for teacher in self._teachers]
        if len(shares) != n_teachers:
            names = ", ".join(teacher.name for teacher in self._teachers)
            known = f"{len(shares)} ({names}); give one, or all of them in that order" if self._teachers else "none; give one"
            raise UserError(f"{n_teachers} teachers for recipe {self.name!r}, which names {known}")
        return shares

    def segments(self, steps: int, n_teachers: int, first_stage: int = 0) -> list[Segment]:
        """The run in segments of one stage and one teacher each, from a stage on; none is empty.

        Raises:
            UserError: neither one teacher nor as many as the recipe names, or too few steps.
        """
        shares = self.teacher_shares(n_teachers)
        counts = self.stage_steps(steps, first_stage), _split_steps(steps, shares)
        stage_ends, teacher_ends = (list(itertools.accumulate(each)) for each in counts)
        ends = sorted({*stage_ends, *teacher_ends} - {0})
        return [
            Segment(first_stage + bisect.bisect_right(stage_ends, start), bisect.bisect_right(teacher_ends, start), start, end)
            for start, end in itertools.pairwise([0, *ends])
        ]

    def check(self) -> None:
        """Check the recipe against the architectures that it names.

        Raises:
            UserError: a name is unknown, two stages share one, a row does not fit, shares do not sum to 1, or the last stage does not end
                at the student.
        """
        for architecture in (self.teacher, self.student):
            if architecture is not None and architecture not in TOPOLOGIES:
                raise unknown_name("architecture", architecture, TOPOLOGIES, _OWN_SHAPE if architecture == self.student else "")
        if twice := [name for name, n in Counter(stage.name for stage in self.stages).items() if n > 1]:
            raise UserError(f"recipe {self.name!r}: two stages are named {twice[0]!r}; give each a name of its own")
        reached = self.cuts[-1].shape(unet_config(self.teacher))
        if self.student:
            self._check_final_shape(reached, shape_of(unet_config(self.student)))
        for what, rows in (("stages", self.stages), ("teachers", self._teachers)):
            if rows and abs((total := sum(row.share for row in rows)) - 1) > 1e-6:
                raise UserError(f"recipe {self.name!r}: the shares of its {what} sum to {total:g}; expected 1")

    def _check_final_shape(self, reached: Shape, expected: Shape) -> None:
        for what, kept, wanted in (
            ("resnets", reached.resnets, expected.resnets),
            ("transformer blocks", reached.blocks, expected.blocks),
            ("middle", {"mid_block": reached.middle}, {"mid_block": expected.middle}),
        ):
            if wrong := sorted(path for path in kept | wanted if kept.get(path) != wanted.get(path)):
                found = ", ".join(f"{path} {kept.get(path, 0)} (expected {wanted.get(path, 0)})" for path in wrong)
                raise UserError(f"recipe {self.name!r} does not end at {self.student}; {what} kept: {found}. {_OWN_SHAPE}")


def _split_steps(steps: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers of steps by share. Only the ends are rounded, so the numbers always sum to `steps`."""
    ends = [round(steps * share) for share in itertools.accumulate(shares)]
    return [end - start for start, end in itertools.pairwise([0, *ends[:-1], steps])]


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Load and check a recipe: a shipped one by its name, or a `.toml` file by its path.

    Raises:
        UserError: there is no such recipe, or it has an error; the message says where.
    """
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = RECIPES / f"{name_or_path}.toml"
        if not path.is_file():
            if (own := Path(f"{name_or_path}.toml")).is_file():
                raise UserError(f"unknown recipe {str(name_or_path)!r}; did you mean the file {str(own)!r}?")
            raise unknown_name("recipe", str(name_or_path), shipped_recipes())
    if not path.is_file():
        raise UserError(f"no recipe at {path}; name a file, or a shipped recipe: {', '.join(shipped_recipes())}")
    recipe = read_toml(Recipe, path, f"recipe {path}")
    recipe.check()
    return recipe
