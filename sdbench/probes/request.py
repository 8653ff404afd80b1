"""What one round is asked to measure: written by the driver, read by the process that measures."""

import os
from pathlib import Path

from pydantic import Field

from sdbench.models.spec import ModelSpec
from sdbench.records import Machine
from sdbench.settings import Dtype, Sampling, Setting
from sdbench.validation import Table

STAGES = ("pipeline", "text_encoders", "unet_step", "scheduler", "vae_decode")  # the pipeline first: its first call is the cold start
CEILINGS = ("matmul", "copy")  # what the machine can do at best, measured after the model in the same process
VARIABLE = "SDBENCH_PROBE_REQUEST"  # names the file of the request


class Request(Table):
    """One round.

    Attributes:
        sampling: a suite's; the batch and, where it names one, the dtype are the setting's.
        calls: timed calls of each stage.
        warmup: calls of each stage before them; the cold first call counts as the pipeline's first.
        device: "cpu", "cuda" or "cuda:<index>".
        variables: of the environment, as `machine.variables` gives them; the process inherits them.
        profile: write what holds each stage's time instead of timing it.
    """

    spec: ModelSpec
    sampling: Sampling
    setting: Setting
    calls: int = Field(gt=0)
    warmup: int = Field(ge=0)
    device: str
    machine: Machine
    variables: dict[str, str] = Field(default_factory=dict)
    profile: bool = False

    @property
    def dtype(self) -> Dtype:
        """Of the networks."""
        return self.setting.dtype or self.sampling.dtype

    @classmethod
    def from_environment(cls) -> "Request | None":
        """The request that this process was started with; None where there is none."""
        path = os.environ.get(VARIABLE)
        return cls.model_validate_json(Path(path).read_text()) if path else None
