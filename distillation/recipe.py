"""Recipes: which of the teacher's blocks a student keeps, what is compared, and how long it trains.

A recipe names blocks by the teacher's own numbers, at every stage. It is checked against the two architectures when it is
read, its taps when a run begins: both before any weights are. Nothing in it depends on widths: the same file prunes SDXL
and the embedded teacher.
"""

import bisect
import hashlib
import itertools
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, ValidationError

from distillation.plan import Plan
from distillation.recipe_tables import FullSize, Keep, KeepResnets, Loss, Middle, Scenes, Stage, Table, Teaching
from sdbench.errors import UserError, unknown_name
from sdbench.models.architectures import TOPOLOGIES, Config, depths, resnet_counts, unet_config
from sdbench.scenes.render import SIZE_PX

RECIPES = Path(__file__).parent / "recipes"
Family = Literal["scenes", "sdxl"]


@dataclass(frozen=True)
class Piece:
    """Steps `start` to `end` of a run: numbers of the stage and of the teacher, from 0."""

    stage: int
    teacher: int
    start: int
    end: int


class Recipe(Table):
    """A student: its architecture, how it is cut from the teacher, and its training.

    Attributes:
        student: architecture that the last stage reaches; None where it has no name.
        teacher: architecture that the first stage starts from.
        taps: paths of the modules whose outputs the feature loss compares, `*` standing for any one part.
    """

    name: str = Field(pattern=r"^[a-z0-9.-]+$")
    student: str | None = None
    teacher: str
    middle: Middle
    stages: tuple[Stage, ...] = Field(min_length=1)
    taps: tuple[str, ...] = Field(min_length=1)
    loss: Loss
    scenes: Scenes
    sdxl: FullSize

    @property
    def digest(self) -> str:
        """SHA-256 of what the recipe says; comments and layout are not in it."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def settings(self, family: Family) -> Scenes | FullSize:
        """How a family trains."""
        return self.scenes if family == "scenes" else self.sdxl

    def size_px(self, family: Family) -> int:
        """Side of the pictures that a family trains on."""
        return SIZE_PX if family == "scenes" else self.sdxl.size_px

    def deciding(self, family: Family) -> str:
        """SHA-256 of what decides a student of this family: neither the other family's settings, nor sources and names, nor keys that are not given."""
        rows = {"__all__": {"source"}}
        prose: dict[str, Any] = {"stages": {"__all__": {"keep": rows, "shorten": rows}}, "middle": {"source"}}
        prose["sdxl"] = {"source": True, "data": True, "teachers": {"__all__": {"name", "source"}}}
        others = {name: True for name in get_args(Family) if name != family}
        return hashlib.sha256(self.model_dump_json(exclude=prose | others, exclude_none=True).encode()).hexdigest()

    @property
    def plans(self) -> list[Plan]:
        """Each stage's plan, in the teacher's block numbers.

        Raises:
            UserError: a row names what its network does not have.
        """
        config, plans = unet_config(self.teacher), []
        plan = Plan({path: tuple(range(depth)) for path, depth in depths(config).items()}, self.middle.resnet)
        for stage in self.stages:
            where = f"recipe {self.name!r}, stage {stage.name!r}"
            shorter = plan.shortened([(row.block, row.resnets) for row in stage.shorten or ()], resnet_counts(config), where)
            plan = shorter.cut([(row.attentions, row.blocks) for row in stage.keep], where)
            plans.append(plan)
        return plans

    def stage_steps(self, steps: int) -> list[int]:
        """Steps of each stage, by its share.

        Raises:
            UserError: too few steps for each stage to have one.
        """
        counts = _split(steps, [stage.share for stage in self.stages])
        if min(counts) < 1:
            raise UserError(
                f"{steps} steps leave a stage of recipe {self.name!r} without any; found {counts} for {len(self.stages)} stages"
            )
        return counts

    def pieces(self, steps: int, teachers: int) -> list[Piece]:
        """The run in pieces of one stage and one teacher each, none of them empty.

        Args:
            steps: of all.
            teachers: how many are at hand; a single one teaches all along, else each has its share.

        Raises:
            UserError: neither one teacher nor as many as the recipe names, or too few steps.
        """
        shares = [1.0] if teachers == 1 else [teaching.share for teaching in self.sdxl.teachers]
        if len(shares) != teachers:
            names = ", ".join(teaching.name for teaching in self.sdxl.teachers)
            raise UserError(
                f"{teachers} teachers for recipe {self.name!r}, which names {len(shares)} ({names}); give one, or all of them in that order"
            )
        stages, lessons = (list(itertools.accumulate(counts)) for counts in (self.stage_steps(steps), _split(steps, shares)))
        ends = sorted({*stages, *lessons} - {0})
        return [
            Piece(bisect.bisect_right(stages, start), bisect.bisect_right(lessons, start), start, end)
            for start, end in zip([0, *ends], ends, strict=False)
        ]

    def check(self) -> None:
        """Check it against the architectures that it names.

        Raises:
            UserError: a name is unknown, a row does not fit, the shares are not a whole, or the last stage is not the student.
        """
        for architecture in (self.teacher, self.student):
            if architecture is not None and architecture not in TOPOLOGIES:
                raise unknown_name("architecture", architecture, TOPOLOGIES)
        if self.student:
            self._check_end(unet_config(self.teacher), unet_config(self.student), self.plans[-1])
        for what, rows in (("stages", self.stages), ("teachers", self.sdxl.teachers)):
            if abs((total := sum(row.share for row in rows)) - 1) > 1e-6:
                raise UserError(f"recipe {self.name!r}: the shares of its {what} sum to {total:g}; expected 1")

    def _check_end(self, teacher: Config, student: Config, last: Plan) -> None:
        shortened = {block: len(kept) for block, kept in last.resnets.items()}
        for what, reached, expected in (
            ("resnets", resnet_counts(teacher) | shortened, resnet_counts(student)),
            ("transformer blocks", last.depths, depths(student)),
            ("middle", {"mid_block": last.mid_block_type}, {"mid_block": student["mid_block_type"]}),
        ):
            if wrong := sorted(path for path in reached | expected if reached.get(path) != expected.get(path)):
                found = ", ".join(f"{path} {reached.get(path, 0)} (expected {expected.get(path, 0)})" for path in wrong)
                raise UserError(f"recipe {self.name!r} does not end at {self.student}; {what} kept: {found}")


def _split(steps: int, shares: Sequence[float]) -> list[int]:
    """Whole steps by share; what rounding leaves goes to the neighbours, so that all add up."""
    ends = [round(steps * share) for share in itertools.accumulate(shares)]
    return [end - start for start, end in zip([0, *ends], [*ends[:-1], steps], strict=False)]


def shipped() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read(what: str | Path) -> Recipe:
    """Read a recipe by the name of a shipped one, or from a file, and check it.

    Raises:
        UserError: there is no such recipe, or it is wrong; the message says where.
    """
    path = Path(what)
    if path.suffix != ".toml":
        path = RECIPES / f"{what}.toml"
        if not path.is_file():
            raise unknown_name("recipe", str(what), shipped())
    try:
        recipe = Recipe.model_validate(tomllib.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(f"no recipe at {path}; shipped ones go by name: {', '.join(shipped())}") from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        raise _explain(path, error) from None
    recipe.check()
    return recipe


_TABLES: dict[str, type[Table]] = {
    "": Recipe,
    "stages": Stage,
    "keep": Keep,
    "shorten": KeepResnets,
    "middle": Middle,
    "loss": Loss,
    "scenes": Scenes,
    "sdxl": FullSize,
    "teachers": Teaching,
}


def _explain(path: Path, error: ValidationError) -> UserError:
    """The first thing that is wrong, unknown keys before all, since a misspelt key is also a missing one."""
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    place = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        tables = ["", *(part for part in first["loc"][:-1] if isinstance(part, str))]
        return unknown_name(f"key in {path.name} ({place})", str(first["loc"][-1]), _TABLES[tables[-1]].model_fields)
    return UserError(f"{path.name}: {place}: {first['msg']}; found {first['input']!r}")
