"""Which scheduler samples a model's images, and at which timesteps.

A few-step student looks worse than it is when sampled at timesteps that it was not trained for. A suite that leaves the
scheduler to the model does not state the timesteps, so dry runs and records do.
"""

from types import SimpleNamespace
from typing import Any

import diffusers

from sdbench.errors import UserError
from sdbench.generate import set_scheduler, set_timesteps
from sdbench.models.architectures import PARTS
from sdbench.models.files import read_json
from sdbench.models.locate import locate
from sdbench.models.spec import ModelSpec
from sdbench.settings import Sampling


def describe(spec: ModelSpec, sampling: Sampling, pipeline: Any = None) -> dict[str, Any]:
    """The scheduler of a model's images, as records store it.

    For example `{"class": "EulerDiscreteScheduler", "prediction_type": "epsilon", "timesteps": [751, 501, 251, 1]}`; empty where no
    model draws the images, and where the model's files are not on this disk (yet).

    Args:
        spec: the model.
        sampling: has the scheduler and its steps.
        pipeline: that of a model in memory; it is not changed.
    """
    try:
        kind, config = (type(pipeline.scheduler), pipeline.scheduler.config) if pipeline else _load_own(spec)
    except UserError:
        return {}
    if kind is None:
        return {}
    stand_in = SimpleNamespace(scheduler=kind.from_config(config))  # has what `set_scheduler` needs of a pipeline
    set_scheduler(stand_in, sampling)
    return {
        "class": type(stand_in.scheduler).__name__,
        "prediction_type": stand_in.scheduler.config.prediction_type,
        "timesteps": set_timesteps(stand_in.scheduler, sampling, "cpu").tolist(),
    }


def _load_own(spec: ModelSpec) -> tuple[Any, dict[str, Any]]:
    """Class and configuration of the model's own scheduler; no class for rendered images, which no model draws."""
    if spec.source == "rendered":
        return None, {}
    if spec.source == "random":
        assert spec.family != "custom", "its networks are not known"
        config = PARTS[spec.family]["scheduler"]
        return getattr(diffusers, config["_class_name"]), config
    pipeline = locate(spec).pipeline
    _, name = read_json(pipeline / "model_index.json")["scheduler"]
    return getattr(diffusers, name), read_json(pipeline / "scheduler" / "scheduler_config.json")
