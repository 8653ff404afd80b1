"""What one round is asked to measure: written by the driver, read by the process that measures."""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sdbench.models.spec import ModelSpec
from sdbench.records import Machine
from sdbench.suites import Sampling

STAGES = ("pipeline", "text_encoders", "unet_step", "vae_decode")  # the pipeline first: its first call is the cold start
VARIABLE = "SDBENCH_PROBE_REQUEST"  # names the file of the request


class Request(BaseModel):
    """One round.

    Attributes:
        calls: timed calls of each stage.
        warmup: calls of each stage before them; the cold first call counts as the pipeline's first.
        device: "cpu", "cuda" or "cuda:<index>".
        dtype: of the networks, in place of the one that `sampling` names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spec: ModelSpec
    sampling: Sampling
    calls: int = Field(gt=0)
    warmup: int = Field(ge=0)
    device: str
    machine: Machine
    dtype: Literal["float32", "bfloat16", "float16"]

    @classmethod
    def from_environment(cls) -> "Request | None":
        """The request that this process was started with; None where there is none."""
        path = os.environ.get(VARIABLE)
        return cls.model_validate_json(Path(path).read_text()) if path else None
