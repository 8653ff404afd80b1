"""The request for one round of measurements: written by the driver, read by the measuring process."""

import os
from pathlib import Path

from pydantic import Field

from sdbench.models.spec import ModelSpec
from sdbench.records import Machine
from sdbench.settings import Dtype, Sampling, Setting
from sdbench.validation import Table

CEILINGS = ("matmul", "copy")  # the machine's peak rates, measured after the model in the same process
REQUEST_VARIABLE = "SDBENCH_PROBE_REQUEST"  # the environment variable that names the file of the request


class Request(Table):
    """What one round measures.

    Attributes:
        sampling: that of the suite; the setting replaces its batch and, where it names one, its dtype.
        calls: timed calls of each stage.
        warmup: calls of each stage before them; the cold first call is the pipeline's first; on a card another always follows it.
        device: "cpu", "cuda" or "cuda:<index>".
        profile: write a table of where each stage spends its time, instead of timing it.
    """

    spec: ModelSpec
    sampling: Sampling
    setting: Setting
    calls: int = Field(gt=0)
    warmup: int = Field(ge=0)
    device: str
    machine: Machine
    profile: bool = False

    @property
    def dtype(self) -> Dtype:
        """The dtype of the networks."""
        return self.setting.dtype or self.sampling.dtype

    @classmethod
    def from_environment(cls) -> "Request | None":
        """The request that this process was started with; None where there is none."""
        path = os.environ.get(REQUEST_VARIABLE)
        return cls.model_validate_json(Path(path).read_text(encoding="utf-8")) if path else None
