"""How pictures are made, and in which settings that is timed: what a suite says, and what the rooms that do it are given."""

import operator
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sdbench.errors import unknown_name
from sdbench.validation import Table

Dtype = Literal["float32", "bfloat16", "float16"]
Scheduler = Literal["model", "ddim", "dpmpp", "euler", "euler-ancestral", "lcm", "tcd"]
BASE = "base"
# What each scheduler of diffusers heeds; anything else it would pass over in silence, or end the run for.
HEEDS: dict[Scheduler, tuple[str, ...]] = {
    "model": (),  # which it is shows only once the pipeline is here
    "ddim": ("timestep_spacing", "eta"),
    "dpmpp": ("timestep_spacing", "timesteps"),
    "euler": ("timestep_spacing", "timesteps"),
    "euler-ancestral": ("timestep_spacing",),
    "lcm": ("timesteps",),
    "tcd": ("timesteps", "eta"),
}


def unset(value: Any) -> bool:
    """Whether a setting is left out of digests, so that those from before there was such a setting hold."""
    return value is None


class Sampling(Table):
    """How pictures are made.

    Attributes:
        scheduler: `model` keeps the pipeline's own; others replace its class and keep its configuration. `dpmpp` is
            `DPMSolverMultistepScheduler`, the others' classes begin with their names.
        timestep_spacing: in place of the configuration's; SDXL's own is `leading`, many few-step students learned `trailing`.
        timesteps: each step's, falling, in place of any spacing.
        eta: noise added at each step, as a share of what it may be: 0 (the pipeline's default) is deterministic. `tcd` calls it gamma.
        batch: pictures in each call; a short batch is padded, since results can change with it.
    """

    steps: Annotated[int, Field(gt=0)]
    guidance_scale: Annotated[float, Field(ge=0)]
    size_px: Annotated[int, Field(gt=0, multiple_of=8)]
    scheduler: Scheduler = "model"
    timestep_spacing: Annotated[Literal["leading", "trailing", "linspace"] | None, Field(exclude_if=unset)] = None
    timesteps: Annotated[tuple[Annotated[int, Field(ge=0, lt=1000)], ...] | None, Field(exclude_if=unset)] = None
    eta: Annotated[float | None, Field(ge=0, le=1, exclude_if=unset)] = None
    negative_prompt: str | None = None
    dtype: Dtype
    batch: Annotated[int, Field(gt=0)]

    @model_validator(mode="after")
    def _heeded(self) -> Self:
        for name in ("timestep_spacing", "timesteps", "eta"):
            if getattr(self, name) is not None and name not in HEEDS[self.scheduler]:
                able = ", ".join(scheduler for scheduler, names in HEEDS.items() if name in names)
                raise ValueError(f"{name} needs a scheduler that is named and heeds it ({able}), not {self.scheduler!r}")
        if self.timesteps is None:
            return self
        if self.timestep_spacing is not None:
            raise ValueError("timesteps leave nothing to space; leave timestep_spacing out, or them")
        if len(self.timesteps) != self.steps or sorted(set(self.timesteps), reverse=True) != list(self.timesteps):
            raise ValueError(f"timesteps must fall, one for each of the {self.steps} steps, found {list(self.timesteps)}")
        return self

    @property
    def of_one_step(self) -> "Sampling":
        """The same with the first step alone."""
        return self.model_copy(update={"steps": 1, "timesteps": self.timesteps and self.timesteps[:1]})


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

    Rounds of a few calls are over in seconds, for which a card may hold its boost clock: this is no steady state, for which MLPerf
    takes ten minutes. Each call is waited for and its pictures copied to the host, so images a second are no server's throughput.

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
            raise unknown_name("setting", wrong[0], known)
        return {label: setting for label, setting in known.items() if label in labels or not labels}
