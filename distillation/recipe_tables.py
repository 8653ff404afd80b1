"""The tables of a recipe file: what each key means and which values it takes. `recipe.Recipe` is the file as a whole."""

import operator
from typing import Annotated, Literal

from pydantic import Field

from sdbench.validation import Table

Positive = Annotated[int, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]


def _is_default_decay(decay: str) -> bool:
    """Older recipes lack `lr_decay`; the default stays out of the digest so that theirs do not change."""
    return decay == "cosine"


class KeepBlocks(Table):
    """A row of a stage: which transformer blocks stay.

    Attributes:
        attentions: path of the teacher's attentions; `*` matches any one part, `[01]` either digit.
        blocks: numbers of the teacher's transformer blocks that stay, or "all". An empty list removes the attention; only the middle's
            can be removed.
        source: where this is known from, or "inferred", or "chosen".
    """

    attentions: str
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | Literal["all"]
    source: str


class KeepResnets(Table):
    """A row of a stage: which resnets stay. Removing a resnet also removes the attention after it.

    Attributes:
        block: path of the teacher's down or up blocks; `*` matches any one part.
        resnets: numbers of the teacher's resnets that stay.
        source: see `KeepBlocks`.
    """

    block: str
    resnets: tuple[Annotated[int, Field(ge=0)], ...]
    source: str


class Stage(Table):
    """A cut and the training after it. Whatever no row names stays as the previous stage left it.

    Attributes:
        share: this stage's share of the recipe's steps.
        shorten: applied before `keep`; the rows of `keep` can only name attentions that remain.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    share: float = Field(gt=0, le=1)
    keep: tuple[KeepBlocks, ...] = Field(min_length=1)
    shorten: tuple[KeepResnets, ...] | None = None


class Middle(Table):
    """Which of the teacher's two middle resnets stays when the middle attention is removed; "none" removes the whole middle."""

    resnet: Literal[0, 1, "none"]
    source: str


class LossWeights(Table):
    """Weights of the loss terms.

    Attributes:
        feature: weight of the sum over the taps.
        scale: `none` leaves each tap's error as it is, as Segmind's script does; a few large taps then dominate. `teacher` divides it by
            the mean square of the teacher's output (LAPTOP-Diff, arXiv 2404.11098).
        snr_gamma: weight the task term of each image by its timestep (min-SNR, arXiv 2303.09556). The distillation terms keep their
            weight; Segmind's script drops them. None: all timesteps count the same.
    """

    task: Weight
    output: Weight
    feature: Weight
    scale: Literal["none", "teacher"]
    snr_gamma: Annotated[float, Field(gt=0)] | None = None


class Training(Table):
    """How a family trains. Learning rate, optimiser and weight average start afresh with each stage, and with each teacher within a stage.

    Attributes:
        steps: in total over all stages.
        lr: peak learning rate.
        warmup: steps over which the learning rate rises to its peak.
        lr_decay: after the warm-up: "cosine" falls to zero along a half cosine, "none" stays at the peak.
        batch: images per forward pass.
        accumulation: batches whose gradients one step averages; the number of processes must divide it.
        betas, weight_decay: of AdamW.
        clip_norm: largest norm of the gradient.
        ema: decay of the exponential moving average of the weights, which becomes the student; 0 takes the last weights.
        drop: share of captions replaced by the unconditional embedding.
        dtype: that both networks compute in; the student's weights stay in float32.
        checkpointing: recompute the student's activations in the backward pass instead of keeping them.
        validation: number of images, at most a tenth of all, that are not trained on; with every evaluation, the loss on them is logged.
    """

    steps: Positive
    lr: float = Field(gt=0)
    batch: Positive
    accumulation: Positive
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]]
    weight_decay: Weight
    clip_norm: float = Field(gt=0)
    warmup: Positive
    lr_decay: Literal["cosine", "none"] = Field(default="cosine", exclude_if=_is_default_decay)
    ema: float = Field(ge=0, lt=1)
    dtype: Literal["bfloat16", "float32"]
    checkpointing: bool
    drop: float = Field(ge=0, lt=1)
    seed: Annotated[int, Field(ge=0)]
    validation: Annotated[int, Field(ge=0)] = Field(default=0, exclude_if=operator.not_)  # as for `lr_decay`

    def epochs(self, n_images: int, steps: int) -> float:
        """Number of times that a run sees each image, on average: images are drawn with replacement."""
        return steps * self.batch * self.accumulation / n_images

    def describe_epochs(self, n_images: int, steps: int) -> str:
        """Number of images that are trained on, of all these, and epochs, in words."""
        trained = n_images - min(self.validation, n_images // 10)
        return f"{trained:,} images, each seen {self.epochs(trained, steps):,.1f} times on average"


class ScenesTraining(Training):
    """How the embedded family trains.

    Attributes:
        images: rendered scenes in the training pool.
    """

    images: Positive


class TeacherShare(Table):
    """A teacher and its share of the steps; several teachers follow each other."""

    name: str
    share: float = Field(gt=0, le=1)
    source: str


class FullSizeTraining(Training):
    """How the full-size family trains.

    Attributes:
        teachers: in the order in which they teach.
        data: Hub datasets that the released student was trained on.
        size_px: side of the images, a multiple of 8.
        source: where the numbers come from.
    """

    teachers: tuple[TeacherShare, ...] = Field(min_length=1)
    data: tuple[str, ...]
    size_px: Positive = Field(multiple_of=8)
    source: str
