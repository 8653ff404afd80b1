"""Which scheduler draws a model's pictures, and at which timesteps.

A student of few steps that is drawn at others than it learned looks worse than it is, and a suite that leaves the
scheduler to the model does not say which they are; so dry runs and records do.
"""

from types import SimpleNamespace
from typing import Any

import diffusers

from sdbench.errors import UserError
from sdbench.generate import set_scheduler, timesteps
from sdbench.models.architectures import PARTS
from sdbench.models.files import read_json
from sdbench.models.locate import locate
from sdbench.models.spec import ModelSpec
from sdbench.settings import Sampling


def resolved(spec: ModelSpec, sampling: Sampling, pipeline: Any = None) -> dict[str, Any]:
    """Such as `{"class": "EulerDiscreteScheduler", "prediction_type": "epsilon", "timesteps": [751, 501, 251, 1]}`.

    Empty where nothing is drawn, and where the model's files are not on this disk (yet).

    Args:
        spec: the model.
        sampling: what a suite says of the scheduler and its steps.
        pipeline: of a model in memory; it is left as it is.
    """
    try:
        kind, config = (type(pipeline.scheduler), pipeline.scheduler.config) if pipeline else _own(spec)
    except UserError:
        return {}
    if kind is None:
        return {}
    drawing = SimpleNamespace(scheduler=kind.from_config(config))
    set_scheduler(drawing, sampling)
    return {
        "class": type(drawing.scheduler).__name__,
        "prediction_type": drawing.scheduler.config.prediction_type,
        "timesteps": timesteps(drawing.scheduler, sampling, "cpu").tolist(),
    }


def _own(spec: ModelSpec) -> tuple[Any, dict[str, Any]]:
    """Class and configuration of the scheduler that a model brings; no class of pictures without a model."""
    if spec.source == "rendered":
        return None, {}
    if spec.source == "random":
        assert spec.family != "custom", "its networks are not known"
        config = PARTS[spec.family]["scheduler"]
        return getattr(diffusers, config["_class_name"]), config
    pipeline = locate(spec).pipeline
    _, name = read_json(pipeline / "model_index.json")["scheduler"]
    return getattr(diffusers, name), read_json(pipeline / "scheduler" / "scheduler_config.json")
