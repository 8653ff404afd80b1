"""Recipes: which of the teacher's blocks a student keeps, what is compared, and how long it trains.

A recipe names blocks by the teacher's own numbers, at every stage. It is checked in full against the two architectures
when it is read, before any weights are. Nothing in it depends on widths: the same file prunes SDXL and the embedded
teacher.
"""

import bisect
import hashlib
import itertools
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdbench.errors import UserError, unknown
from sdbench.models.architectures import TOPOLOGIES, depths, unet_config
from sdbench.scenes.render import SIZE_PX

RECIPES = Path(__file__).parent / "recipes"
MIDDLE = "mid_block.attentions.0"
Family = Literal["scenes", "sdxl"]
Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


class _Data(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Keep(_Data):
    """A row of a stage.

    Attributes:
        attentions: path of the teacher's attentions, `*` standing for any one part and `[01]` for a choice of them.
        blocks: the teacher's transformer blocks that stay, or "all"; none, which only the middle may have, removes the attention.
        source: where this is known from, or "inferred", or "chosen".
    """

    attentions: str
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | Literal["all"]
    source: str


class Stage(_Data):
    """A cut and the training after it. What no row names stays as the stage before left it.

    Attributes:
        share: of the recipe's steps.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    share: float = Field(gt=0, le=1)
    keep: tuple[Keep, ...] = Field(min_length=1)


class Middle(_Data):
    """Which of the teacher's two middle resnets is the student's only one, once the middle attention is gone."""

    resnet: Literal[0, 1]
    source: str


class Loss(_Data):
    """Weights of the loss terms.

    Attributes:
        feature: of the sum over the taps.
        scale: what each tap's error is divided by: `none`, as in Segmind's script, or `teacher`, the mean square of the
            teacher's own output (LAPTOP-Diff, arXiv 2404.11098), without which a few large taps dominate.
        snr_gamma: weigh the task term of each picture by its timestep (min-SNR, arXiv 2303.09556); the distillation terms keep
            their weight, where Segmind's script loses them. None: all timesteps alike.
    """

    task: Weight
    output: Weight
    feature: Weight
    scale: Literal["none", "teacher"]
    snr_gamma: Annotated[float, Field(gt=0)] | None = None


class Training(_Data):
    """How a family trains.

    Attributes:
        steps: over all stages.
        lr: peak learning rate of each stage.
        warmup: steps of each stage over which the learning rate rises.
        batch: pictures in one forward pass of one process.
        accumulation: forward passes of each process before a step.
        ema: decay of the running average of the weights, which is what is kept; 0 keeps the last weights.
        drop: share of captions replaced by the unconditional embedding.
        dtype: that both networks compute in; the student's weights are kept in float32.
        checkpointing: compute the student's activations twice instead of keeping them.
    """

    steps: Positive
    lr: float = Field(gt=0)
    batch: Positive
    accumulation: Positive
    warmup: Positive
    ema: float = Field(ge=0, lt=1)
    dtype: Literal["bfloat16", "float32"]
    checkpointing: bool
    drop: float = Field(ge=0, lt=1)
    seed: Annotated[int, Field(ge=0)]


class Scenes(Training):
    """How the embedded family trains.

    Attributes:
        pictures: rendered scenes in the training pool.
    """

    pictures: Positive


class Teaching(_Data):
    """A teacher and its share of the steps; several teach in succession."""

    name: str
    share: float = Field(gt=0, le=1)
    source: str


class FullSize(Training):
    """How the full-size family trains.

    Attributes:
        teachers: in succession.
        data: Hub datasets that the released student saw.
        size_px: side of the pictures, a multiple of 8.
        source: where the numbers are from.
    """

    teachers: tuple[Teaching, ...] = Field(min_length=1)
    data: tuple[str, ...]
    size_px: Positive = Field(multiple_of=8)
    source: str


@dataclass(frozen=True)
class Plan:
    """What a network keeps of another.

    Attributes:
        blocks: of each attention, the other network's transformer blocks in order; an attention that is gone has no entry.
        mid_resnet: the other's middle resnet that becomes the only one; read where the middle attention is gone.
    """

    blocks: Mapping[str, tuple[int, ...]]
    mid_resnet: int

    def within(self, previous: "Plan") -> "Plan":
        """The same network cut from one that `previous` made, instead of from the teacher."""
        blocks = {path: tuple(previous.blocks[path].index(block) for block in kept) for path, kept in self.blocks.items()}
        return Plan(blocks, self.mid_resnet if MIDDLE in previous.blocks else 0)

    @property
    def depths(self) -> dict[str, int]:
        """Transformer blocks of each attention."""
        return {path: len(kept) for path, kept in self.blocks.items()}


@dataclass(frozen=True)
class Piece:
    """Steps `start` to `end` of a run: numbers of the stage and of the teacher, from 0."""

    stage: int
    teacher: int
    start: int
    end: int


class Recipe(_Data):
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
        """SHA-256 of what decides a student of this family: the other family's settings, and keys that are not given, are not in it."""
        others = {name for name in get_args(Family) if name != family}
        return hashlib.sha256(self.model_dump_json(exclude=others, exclude_none=True).encode()).hexdigest()

    @property
    def plans(self) -> list[Plan]:
        """Each stage's plan, in the teacher's block numbers.

        Raises:
            UserError: a row names what its network does not have.
        """
        blocks = {path: tuple(range(depth)) for path, depth in depths(unet_config(self.teacher)).items()}
        plans = []
        for stage in self.stages:
            blocks = self._cut(blocks, stage)
            plans.append(Plan(blocks, self.middle.resnet))
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

    def _cut(self, blocks: Mapping[str, tuple[int, ...]], stage: Stage) -> dict[str, tuple[int, ...]]:
        cut, seen = dict(blocks), set()
        for row in stage.keep:
            where = f"recipe {self.name!r}, stage {stage.name!r}"
            for path in _matching(row.attentions, blocks, f"attention in {where}"):
                if path in seen:
                    raise UserError(f"{where}: two rows name {path}; expected one")
                seen.add(path)
                kept = blocks[path] if row.blocks == "all" else row.blocks
                _check_blocks(path, kept, blocks[path], where)
                cut[path] = kept
        return {path: kept for path, kept in cut.items() if kept}

    def check(self) -> None:
        """Check it against the architectures that it names.

        Raises:
            UserError: a name is unknown, a row does not fit, the shares are not a whole, or the last stage is not the student.
        """
        for architecture in (self.teacher, self.student):
            if architecture is not None and architecture not in TOPOLOGIES:
                raise unknown("architecture", architecture, TOPOLOGIES)
        reached = self.plans[-1].depths
        expected = depths(unet_config(self.student)) if self.student else reached
        if wrong := sorted(path for path in reached | expected if reached.get(path) != expected.get(path)):
            found = ", ".join(f"{path} {reached.get(path, 0)} (expected {expected.get(path, 0)})" for path in wrong)
            raise UserError(f"recipe {self.name!r} does not end at {self.student}; transformer blocks kept: {found}")
        for what, rows in (("stages", self.stages), ("teachers", self.sdxl.teachers)):
            if abs((total := sum(row.share for row in rows)) - 1) > 1e-6:
                raise UserError(f"recipe {self.name!r}: the shares of its {what} sum to {total:g}; expected 1")


def _split(steps: int, shares: Sequence[float]) -> list[int]:
    """Whole steps by share; what rounding leaves goes to the neighbours, so that all add up."""
    ends = [round(steps * share) for share in itertools.accumulate(shares)]
    return [end - start for start, end in zip([0, *ends], [*ends[:-1], steps], strict=False)]


def matches(pattern: str, path: str) -> bool:
    """Whether a module path fits a pattern, part by part."""
    wanted, parts = pattern.split("."), path.split(".")
    return len(wanted) == len(parts) and all(itertools.starmap(fnmatchcase, zip(parts, wanted, strict=True)))


def _matching(pattern: str, paths: Iterable[str], kind: str) -> list[str]:
    paths = list(paths)
    if found := [path for path in paths if matches(pattern, path)]:
        return found
    raise unknown(kind, pattern, paths)


def _check_blocks(path: str, kept: tuple[int, ...], there: tuple[int, ...], where: str) -> None:
    if missing := [block for block in kept if block not in there]:
        raise UserError(f"{where}: {path} has no block {missing[0]}; it has {', '.join(map(str, there))} at this stage")
    if list(kept) != sorted(set(kept)):
        raise UserError(f"{where}: {path} keeps {list(kept)}; expected each block once, in rising order")
    if not kept and path != MIDDLE:
        raise UserError(f"{where}: {path} keeps no block; only {MIDDLE} can go, others need at least one")


def read(what: str | Path) -> Recipe:
    """Read a recipe by the name of a shipped one, or from a file, and check it.

    Raises:
        UserError: there is no such recipe, or it is wrong; the message says where.
    """
    path = Path(what)
    if path.suffix != ".toml":
        path = RECIPES / f"{what}.toml"
        if not path.is_file():
            raise unknown("recipe", str(what), (found.stem for found in RECIPES.glob("*.toml")))
    try:
        recipe = Recipe.model_validate(tomllib.loads(path.read_text()))
    except FileNotFoundError:
        raise UserError(
            f"no recipe at {path}; shipped ones go by name: {', '.join(sorted(file.stem for file in RECIPES.glob('*.toml')))}"
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        raise _explain(path, error) from None
    recipe.check()
    return recipe


_TABLES: dict[str, type[_Data]] = {
    "": Recipe,
    "stages": Stage,
    "keep": Keep,
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
        return unknown(f"key in {path.name} ({place})", str(first["loc"][-1]), _TABLES[tables[-1]].model_fields)
    return UserError(f"{path.name}: {place}: {first['msg']}; found {first['input']!r}")
