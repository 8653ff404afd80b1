"""The tables of a recipe's file, but for the whole: what each key means, and what it may be."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


def _is_cosine(decay: str) -> bool:
    """Whether a recipe says what all did before there was a choice, whose digests stay."""
    return decay == "cosine"


class Table(BaseModel):
    """A table of a recipe; a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Keep(Table):
    """A row of a stage.

    Attributes:
        attentions: path of the teacher's attentions, `*` standing for any one part and `[01]` for a choice of them.
        blocks: the teacher's transformer blocks that stay, or "all"; none, which only the middle may have, removes the attention.
        source: where this is known from, or "inferred", or "chosen".
    """

    attentions: str
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | Literal["all"]
    source: str


class KeepResnets(Table):
    """A row of a stage that shortens blocks: with a resnet goes the attention behind it.

    Attributes:
        block: path of the teacher's down or up blocks, `*` standing for any.
        resnets: the teacher's resnets that stay.
        source: as in `Keep`.
    """

    block: str
    resnets: tuple[Annotated[int, Field(ge=0)], ...]
    source: str


class Stage(Table):
    """A cut and the training after it. What no row names stays as the stage before left it.

    Attributes:
        share: of the recipe's steps.
        shorten: applied before `keep`, whose rows then name attentions that are still there.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    share: float = Field(gt=0, le=1)
    keep: tuple[Keep, ...] = Field(min_length=1)
    shorten: tuple[KeepResnets, ...] | None = None


class Middle(Table):
    """Which of the teacher's two middle resnets is the student's only one, once the middle attention is gone; "none": the whole middle goes."""

    resnet: Literal[0, 1, "none"]
    source: str


class Loss(Table):
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


class Training(Table):
    """How a family trains. Each stage, and each teacher within it, begins anew: learning rate, optimiser, running average.

    Attributes:
        steps: over all stages.
        lr: peak learning rate.
        warmup: steps over which the learning rate rises to it.
        lr_decay: how it goes on: by a half cosine down to zero, or "none": not at all.
        batch: pictures in one forward pass.
        accumulation: batches that a step sums up, shared out over the processes: their number has to divide it.
        betas: AdamW's.
        weight_decay: AdamW's.
        clip_norm: of the gradient, at most.
        ema: decay of the running average of the weights, which is what is kept; 0 keeps the last weights.
        drop: share of captions replaced by the unconditional embedding.
        dtype: that both networks compute in; the student's weights are kept in float32.
        checkpointing: compute the student's activations twice instead of keeping them.
    """

    steps: Positive
    lr: float = Field(gt=0)
    batch: Positive
    accumulation: Positive
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    weight_decay: Weight
    clip_norm: float = Field(gt=0)
    warmup: Positive
    lr_decay: Literal["cosine", "none"] = Field(default="cosine", exclude_if=_is_cosine)
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


class Teaching(Table):
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
