"""Recipes: which of the teacher's blocks a student keeps, what is compared, and how long it trains.

A recipe names blocks by the teacher's own numbers, at every stage. It is checked in full against the two architectures
when it is read, before any weights are. Nothing in it depends on widths: the same file prunes SDXL and the embedded
teacher.
"""

import bisect
import hashlib
import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sdbench.errors import UserError, unknown
from sdbench.models.architectures import TOPOLOGIES, depths, resnets, unet_config
from sdbench.scenes.render import SIZE_PX

RECIPES = Path(__file__).parent / "recipes"
MIDDLE = "mid_block.attentions.0"
Family = Literal["scenes", "sdxl"]
Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Kept = TypeVar("Kept")


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


class KeepResnets(_Data):
    """A row of a stage that shortens blocks: with a resnet goes the attention behind it.

    Attributes:
        block: path of the teacher's down or up blocks, `*` standing for any.
        resnets: the teacher's resnets that stay.
        source: as in `Keep`.
    """

    block: str
    resnets: tuple[Annotated[int, Field(ge=0)], ...]
    source: str


class Stage(_Data):
    """A cut and the training after it. What no row names stays as the stage before left it.

    Attributes:
        share: of the recipe's steps.
        shorten: applied before `keep`, whose rows then name attentions that are still there.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    share: float = Field(gt=0, le=1)
    keep: tuple[Keep, ...] = Field(min_length=1)
    shorten: tuple[KeepResnets, ...] | None = None


class Middle(_Data):
    """Which of the teacher's two middle resnets is the student's only one, once the middle attention is gone; "none": the whole middle goes."""

    resnet: Literal[0, 1, "none"]
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
    """What a network keeps of another, in the other's paths and numbers.

    Attributes:
        blocks: of each attention, the transformer blocks in order; an attention that is gone has no entry.
        mid_resnet: the middle resnet that becomes the only one, or "none" for no middle at all; read where the middle attention is gone.
        resnets: of each down and up block that is shortened, the resnets that stay.
    """

    blocks: Mapping[str, tuple[int, ...]]
    mid_resnet: int | Literal["none"]
    resnets: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def within(self, previous: "Plan") -> "Plan":
        """The same network cut from one that `previous` made, instead of from the teacher."""
        blocks = {
            str(previous.place(path)): tuple(previous.blocks[path].index(block) for block in kept) for path, kept in self.blocks.items()
        }
        resnets = {
            block: tuple(previous.resnets[block].index(resnet) for resnet in kept) if block in previous.resnets else kept
            for block, kept in self.resnets.items()
        }
        return Plan(blocks, self.mid_resnet if MIDDLE in previous.blocks or self.mid_resnet == "none" else 0, resnets)

    def place(self, path: str) -> str | None:
        """Where the network has what the other has at this path, transformer blocks aside; None where that went."""
        if path.startswith("mid_block") and MIDDLE not in self.blocks and self.mid_resnet == "none":
            return None
        block, name, number, rest = _layer(path)
        if block not in self.resnets:
            return path
        if int(number) not in self.resnets[block]:
            return None
        return ".".join([block, name, str(self.resnets[block].index(int(number))), *rest])

    def origin(self, path: str) -> str:
        """Where the other has what the network has at this path, transformer blocks aside."""
        block, name, number, rest = _layer(path)
        if block == "mid_block" and name == "resnets" and MIDDLE not in self.blocks:
            return ".".join([block, name, str(self.mid_resnet), *rest])
        return ".".join([block, name, str(self.resnets[block][int(number)]), *rest]) if block in self.resnets else path

    @property
    def depths(self) -> dict[str, int]:
        """Transformer blocks of each of the network's own attentions."""
        return {str(self.place(path)): len(kept) for path, kept in self.blocks.items()}


def _layer(path: str) -> tuple[str, str, str, list[str]]:
    """A path such as `up_blocks.0.resnets.2.conv1` in its parts: block, "resnets" or "attentions", number, rest; all else has no block."""
    found = re.fullmatch(r"(mid_block|(?:down|up)_blocks\.\d+)\.(resnets|attentions)\.(\d+)(?:\.(.+))?", path)
    return (found[1], found[2], found[3], found[4].split(".") if found[4] else []) if found else ("", "", "", [])


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
        config, plans = unet_config(self.teacher), []
        plan = Plan({path: tuple(range(depth)) for path, depth in depths(config).items()}, self.middle.resnet)
        for stage in self.stages:
            plan = self._cut(self._shortened(plan, stage, resnets(config)), stage)
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

    def _shortened(self, plan: Plan, stage: Stage, counts: Mapping[str, int]) -> Plan:
        """The plan with the stage's resnets, and with the attentions that stay beside them."""
        where = f"recipe {self.name!r}, stage {stage.name!r}"
        there = {block: plan.resnets.get(block, tuple(range(count))) for block, count in counts.items()}
        rows = _by_path([(row.block, row.resnets) for row in stage.shorten or ()], there, "block", where)
        for block, kept in rows.items():
            _check_kept("resnet", block, kept, there[block], where)
        shorter = replace(plan, resnets={**plan.resnets, **rows})
        return replace(shorter, blocks={path: kept for path, kept in plan.blocks.items() if shorter.place(path)})

    def _cut(self, plan: Plan, stage: Stage) -> Plan:
        """The plan with the stage's transformer blocks."""
        where = f"recipe {self.name!r}, stage {stage.name!r}"
        rows = _by_path([(row.attentions, row.blocks) for row in stage.keep], plan.blocks, "attention", where)
        cut = {path: plan.blocks[path] if blocks == "all" else blocks for path, blocks in rows.items()}
        for path, kept in cut.items():
            _check_kept("block", path, kept, plan.blocks[path], where)
        return replace(plan, blocks={path: kept for path, kept in {**plan.blocks, **cut}.items() if kept})

    def check(self) -> None:
        """Check it against the architectures that it names.

        Raises:
            UserError: a name is unknown, a row does not fit, the shares are not a whole, or the last stage is not the student.
        """
        for architecture in (self.teacher, self.student):
            if architecture is not None and architecture not in TOPOLOGIES:
                raise unknown("architecture", architecture, TOPOLOGIES)
        last = self.plans[-1]
        for what, reached, count in (
            ("resnets", {**resnets(unet_config(self.teacher)), **{block: len(kept) for block, kept in last.resnets.items()}}, resnets),
            ("transformer blocks", last.depths, depths),
        ):
            expected = count(unet_config(self.student)) if self.student else reached
            if wrong := sorted(path for path in reached | expected if reached.get(path) != expected.get(path)):
                found = ", ".join(f"{path} {reached.get(path, 0)} (expected {expected.get(path, 0)})" for path in wrong)
                raise UserError(f"recipe {self.name!r} does not end at {self.student}; {what} kept: {found}")
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


def _by_path(rows: Iterable[tuple[str, Kept]], paths: Iterable[str], kind: str, where: str) -> dict[str, Kept]:
    """What the rows, each of a pattern, say of each path that they name."""
    paths, found = list(paths), dict[str, Kept]()
    for pattern, kept in rows:
        named = [path for path in paths if matches(pattern, path)]
        if not named:
            raise unknown(f"{kind} in {where}", pattern, paths)
        if twice := [path for path in named if path in found]:
            raise UserError(f"{where}: two rows name {twice[0]}; expected one")
        found |= dict.fromkeys(named, kept)
    return found


def _check_kept(kind: str, path: str, kept: tuple[int, ...], there: tuple[int, ...], where: str) -> None:
    if missing := [number for number in kept if number not in there]:
        raise UserError(f"{where}: {path} has no {kind} {missing[0]}; it has {', '.join(map(str, there))} at this stage")
    if list(kept) != sorted(set(kept)):
        raise UserError(f"{where}: {path} keeps {list(kept)}; expected each {kind} once, in rising order")
    if not kept and path != MIDDLE:
        raise UserError(f"{where}: {path} keeps no {kind}; only {MIDDLE} can go, others need at least one")


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
        return unknown(f"key in {path.name} ({place})", str(first["loc"][-1]), _TABLES[tables[-1]].model_fields)
    return UserError(f"{path.name}: {place}: {first['msg']}; found {first['input']!r}")
