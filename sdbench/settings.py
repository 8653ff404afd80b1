"""How images are made, and the settings in which models are timed, as suites state them."""

import operator
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sdbench.errors import unknown_name
from sdbench.records.names import BASE
from sdbench.validation import Table

Dtype = Literal["float32", "bfloat16", "float16"]
Scheduler = Literal["model", "ddim", "dpmpp", "euler", "euler-ancestral", "lcm", "tcd"]
Pixels = Annotated[int, Field(gt=0, le=16_384, multiple_of=8)]
Batch = Annotated[int, Field(gt=0, le=4096)]  # limits are far beyond any run: a digit too many is an error before anything is planned
_PREDICTION = ("prediction_type", "rescale_betas_zero_snr")  # which all of these have in their configuration
CONFIGURED = ("timestep_spacing", *_PREDICTION)  # settings that replace what a scheduler's configuration says
# The options that each scheduler of diffusers supports; it would ignore any other in silence, or fail.
SUPPORTED_SETTINGS: dict[Scheduler, tuple[str, ...]] = {
    "model": (),  # which scheduler that is, is known only once the pipeline is here
    "ddim": ("timestep_spacing", "eta", *_PREDICTION),
    "dpmpp": ("timestep_spacing", "timesteps", *_PREDICTION),
    "euler": ("timestep_spacing", "timesteps", *_PREDICTION),
    "euler-ancestral": CONFIGURED,
    "lcm": ("timesteps", *_PREDICTION),
    "tcd": ("timesteps", "eta", *_PREDICTION),
}


def is_unset(value: Any) -> bool:
    """Whether to leave a setting out of digests, so that digests made before the setting existed stay valid."""
    return value is None


class Sampling(Table):
    """How images are made.

    Attributes:
        size_px: width of the images, and their height where `height_px` gives none.
        scheduler: `model` keeps the pipeline's own; others replace its class and keep its configuration. `dpmpp` is
            `DPMSolverMultistepScheduler`, the others' classes begin with their names.
        timestep_spacing: replaces that of the configuration; SDXL's own is `leading`, many few-step students learned `trailing`.
        timesteps: one for each step, decreasing; replace any spacing.
        eta: noise added at each step, as a share of its maximum; 0 (the pipeline's default) is deterministic. `tcd` calls it gamma.
        prediction_type: what the UNet predicts, in place of what the configuration says; checkpoints in one file have their base's
            configuration, which may not be that of their training.
        rescale_betas_zero_snr: whether the last timestep is pure noise, likewise.
        batch: images in each call; a short batch is padded, since results can change with the batch size.
    """

    steps: Annotated[int, Field(gt=0, le=1000)]
    guidance_scale: Annotated[float, Field(ge=0)]
    size_px: Pixels
    height_px: Annotated[Pixels | None, Field(exclude_if=is_unset)] = None
    scheduler: Scheduler = "model"
    timestep_spacing: Annotated[Literal["leading", "trailing", "linspace"] | None, Field(exclude_if=is_unset)] = None
    timesteps: Annotated[tuple[Annotated[int, Field(ge=0, lt=1000)], ...] | None, Field(exclude_if=is_unset)] = None
    eta: Annotated[float | None, Field(ge=0, le=1, exclude_if=is_unset)] = None
    prediction_type: Annotated[Literal["epsilon", "v_prediction", "sample"] | None, Field(exclude_if=is_unset)] = None
    rescale_betas_zero_snr: Annotated[bool | None, Field(exclude_if=is_unset)] = None
    negative_prompt: str | None = None
    dtype: Dtype
    batch: Batch

    @model_validator(mode="after")
    def _check_height(self) -> Self:
        if self.height_px == self.size_px:  # equal sizes must have equal digests
            raise ValueError(f"height_px is for images that are not square; with a size_px of {self.size_px}, leave it out")
        return self

    @model_validator(mode="after")
    def _check_scheduler_options(self) -> Self:
        for name in ("timestep_spacing", "timesteps", "eta", *_PREDICTION):
            if getattr(self, name) is not None and name not in SUPPORTED_SETTINGS[self.scheduler]:
                supporting = ", ".join(scheduler for scheduler, names in SUPPORTED_SETTINGS.items() if name in names)
                raise ValueError(f"{name} needs a scheduler that supports it ({supporting}), not {self.scheduler!r}")
        if (self.scheduler, self.prediction_type) == ("euler-ancestral", "sample"):
            raise ValueError("euler-ancestral does not take prediction_type 'sample'; take another scheduler, such as euler")
        if self.timesteps is None:
            return self
        if self.timestep_spacing is not None:
            raise ValueError("timesteps and timestep_spacing exclude each other; leave one of them out")
        if len(self.timesteps) != self.steps:
            raise ValueError(f"there must be as many timesteps as steps, found {len(self.timesteps)} and {self.steps}")
        if sorted(set(self.timesteps), reverse=True) != list(self.timesteps):
            raise ValueError(f"timesteps must decrease from step to step, found {list(self.timesteps)}")
        return self

    @property
    def shape_px(self) -> tuple[int, int]:
        """Height and width of the images."""
        return self.height_px or self.size_px, self.size_px

    @property
    def with_one_step(self) -> "Sampling":
        """The same settings with the first step alone."""
        return self.model_copy(update={"steps": 1, "timesteps": self.timesteps and self.timesteps[:1]})


class Setting(Table):
    """One way to run a model that is timed; its `label` is part of the names of its values, so that none is taken for another.

    Attributes:
        batch: images of one call.
        dtype: replaces that of the sampling.
        compile: `whole` compiles the UNet and the VAE's decoder; `blocks` compiles each kind of transformer block once, which is
            far quicker.
        channels_last: memory order of what the convolutions read.
        vae: `tiny` replaces the VAE by an `AutoencoderTiny` with random weights: its images mean nothing, its times do.
        calls: timed calls of a round; replaces that of the probes.
    """

    batch: Batch = 1
    dtype: Dtype | None = None
    compile: Literal["whole", "blocks"] | None = None
    channels_last: bool = False
    vae: Literal["full", "tiny"] = "full"
    calls: Annotated[int, Field(gt=1)] | None = None

    @property
    def label(self) -> str:
        """What differs from the default setting, such as `b8+compiled`; the default is `base`."""
        batch = f"b{self.batch}" if self.batch > 1 else None
        compiled = {None: None, "whole": "compiled", "blocks": "compiled-blocks"}[self.compile]
        words = (batch, self.dtype, compiled, "channels-last" if self.channels_last else None, "tiny-vae" if self.vae == "tiny" else None)
        return "+".join(filter(None, words)) or BASE


class Probes(Table):
    """How latency and memory are measured: fresh processes, and timed calls in each.

    Rounds of a few calls last seconds, during which a card may hold its boost clock. This is not a steady state, for which MLPerf measures
    for ten minutes. Each call is awaited and its images are copied to the host, so images per second are not a server's throughput.

    Attributes:
        rounds: processes for each model and setting.
        calls: timed calls of each stage in a round.
        warmup: calls of each stage before them.
        settings: in addition to `base` (one image, eager, the suite's own dtype), which is always measured.
    """

    rounds: Annotated[int, Field(gt=0)]
    calls: Annotated[int, Field(gt=1)]
    warmup: Annotated[int, Field(ge=0)]
    settings: Annotated[tuple[Setting, ...], Field(exclude_if=operator.not_)] = ()

    @field_validator("settings")
    @classmethod
    def _check_labels(cls, settings: tuple[Setting, ...]) -> tuple[Setting, ...]:
        labels = [setting.label for setting in settings]
        if BASE in labels:
            raise ValueError(f"{BASE!r} is always measured; leave it out of settings")
        if repeated := {label for label in labels if labels.count(label) > 1}:
            raise ValueError(f"setting {min(repeated)!r} is listed more than once")
        return settings

    def select(self, labels: Sequence[str] = ()) -> dict[str, Setting]:
        """The settings by label, in the suite's order: those with these labels, by default all.

        Raises:
            UserError: there is no such setting.
        """
        known = {setting.label: setting for setting in (Setting(), *self.settings)}
        if unknown_labels := [label for label in labels if label not in known]:
            raise unknown_name("setting", unknown_labels[0], known)
        return {label: setting for label, setting in known.items() if label in labels or not labels}
