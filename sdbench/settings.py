"""How pictures are made, and in which settings that is timed: what a suite says, and what the rooms that do it are given."""

import operator
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from sdbench.errors import unknown
from sdbench.validation import Table

Dtype = Literal["float32", "bfloat16", "float16"]
BASE = "base"


class Sampling(Table):
    """How pictures are made.

    Attributes:
        scheduler: `model` keeps the pipeline's own; others replace its class and keep its configuration.
        batch: pictures in each call; a short batch is padded, since results can change with it.
    """

    steps: Annotated[int, Field(gt=0)]
    guidance_scale: Annotated[float, Field(ge=0)]
    size_px: Annotated[int, Field(gt=0, multiple_of=8)]
    scheduler: Literal["model", "ddim", "euler", "dpmpp"] = "model"
    negative_prompt: str | None = None
    dtype: Dtype
    batch: Annotated[int, Field(gt=0)]


class Setting(Table):
    """One way to run a model that is timed; `label` names it, in the names of its values too, so that none is taken for another.

    Attributes:
        batch: pictures of one call.
        dtype: in place of the sampling's.
        compile: `whole` compiles the UNet and the VAE's decoder; `blocks` only the kinds of transformer block, which is
            done far sooner.
        channels_last: order in memory of what the convolutions read.
        vae: `tiny` puts an `AutoencoderTiny` with random weights in the VAE's place: its pictures mean nothing, its times do.
        calls: timed calls of a round, in place of the probes'.
    """

    batch: Annotated[int, Field(gt=0)] = 1
    dtype: Dtype | None = None
    compile: Literal["whole", "blocks"] | None = None
    channels_last: bool = False
    vae: Literal["full", "tiny"] = "full"
    calls: Annotated[int, Field(gt=1)] | None = None

    @property
    def label(self) -> str:
        """What differs from the plainest setting, which is `base`: `b8+compiled`."""
        batch = f"b{self.batch}" if self.batch > 1 else None
        compiled = {None: None, "whole": "compiled", "blocks": "compiled-blocks"}[self.compile]
        words = (batch, self.dtype, compiled, "channels-last" if self.channels_last else None, "tiny-vae" if self.vae == "tiny" else None)
        return "+".join(filter(None, words)) or BASE


class Probes(Table):
    """How latency and memory are measured: fresh processes, and timed calls in each.

    Attributes:
        rounds: processes for each model and setting.
        calls: timed calls of each stage in a round.
        warmup: calls of each stage before them.
        settings: beside `base` (one picture, eager, the suite's own dtype), which is always measured.
    """

    rounds: Annotated[int, Field(gt=0)]
    calls: Annotated[int, Field(gt=1)]
    warmup: Annotated[int, Field(ge=0)]
    settings: Annotated[tuple[Setting, ...], Field(exclude_if=operator.not_)] = ()

    @field_validator("settings")
    @classmethod
    def _unlike(cls, settings: tuple[Setting, ...]) -> tuple[Setting, ...]:
        labels = [BASE, *(setting.label for setting in settings)]
        if twice := {label for label in labels if labels.count(label) > 1}:
            raise ValueError(f"setting {min(twice)!r} is there more than once")
        return settings

    def chosen(self, labels: Sequence[str] = ()) -> dict[str, Setting]:
        """Label -> setting, in the suite's order: all of them, or those named.

        Raises:
            UserError: no such setting.
        """
        known = {setting.label: setting for setting in (Setting(), *self.settings)}
        if wrong := [label for label in labels if label not in known]:
            raise unknown("setting", wrong[0], known)
        return {label: setting for label, setting in known.items() if label in labels or not labels}
