"""Which scheduler samples a model's images, and at which timesteps: as a suite asks for them, and in words for records.

A few-step student looks worse than it is when sampled at timesteps that it was not trained for. A suite that leaves the
scheduler to the model does not state the timesteps, so dry runs and records do.
"""

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import retrieve_timesteps
from torch import Tensor

from sdbench.errors import UserError
from sdbench.models.architectures import PARTS
from sdbench.models.loading import build_scheduler
from sdbench.models.locate import locate
from sdbench.models.spec import ModelSpec
from sdbench.settings import Sampling

SCHEDULERS = {  # those that a suite may name, besides the model's own
    "ddim": diffusers.DDIMScheduler,
    "dpmpp": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler-ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "lcm": diffusers.LCMScheduler,
    "tcd": diffusers.TCDScheduler,
}


def set_scheduler(pipeline: Any, sampling: Sampling) -> None:
    """Replace the pipeline's scheduler with the one that the sampling names, in the configuration of the pipeline's own."""
    if sampling.scheduler != "model":
        spacing = {} if sampling.timestep_spacing is None else {"timestep_spacing": sampling.timestep_spacing}
        pipeline.scheduler = SCHEDULERS[sampling.scheduler].from_config(pipeline.scheduler.config, **spacing)


def set_timesteps(scheduler: Any, sampling: Sampling, device: torch.device | str) -> Tensor:
    """Set the scheduler's timesteps as the pipeline does, and return them, (steps,).

    Raises:
        UserError: the scheduler refuses them.
    """
    given = sampling.timesteps and [*sampling.timesteps]
    try:
        timesteps: Tensor = retrieve_timesteps(scheduler, sampling.steps, device, given)[0]
    except ValueError as error:
        how = f"timesteps {given}" if given else f"{sampling.steps} steps"
        raise UserError(f"{type(scheduler).__name__} of the model cannot sample in {how}: {error}") from error
    return timesteps


def describe(spec: ModelSpec, sampling: Sampling, pipeline: Any = None) -> dict[str, Any]:
    """The scheduler of a model's images, as records store it.

    For example `{"class": "EulerDiscreteScheduler", "prediction_type": "epsilon", "timesteps": [751, 501, 251, 1]}`; empty where no
    model draws the images, and where the model's files are not on this disk (yet).

    Args:
        pipeline: that of a model in memory; it is not changed.

    Raises:
        UserError: the scheduler refuses the suite's steps or timesteps.
    """
    if spec.source == "rendered":
        return {}
    try:
        own = pipeline.scheduler if pipeline else _build_own(spec)
    except UserError:
        return {}
    stand_in = SimpleNamespace(scheduler=type(own).from_config(own.config))  # has what `set_scheduler` needs of a pipeline
    set_scheduler(stand_in, sampling)
    return {
        "class": type(stand_in.scheduler).__name__,
        "prediction_type": stand_in.scheduler.config.get("prediction_type"),  # some schedulers have none
        "timesteps": set_timesteps(stand_in.scheduler, sampling, "cpu").tolist(),
    }


def _build_own(spec: ModelSpec) -> Any:
    """The model's own scheduler."""
    if spec.source == "random":
        config = PARTS[spec.known_family]["scheduler"]
        return getattr(diffusers, config["_class_name"]).from_config(config)
    return build_scheduler(locate(spec).pipeline)
