"""Which scheduler samples a model's images, and at which timesteps: as a suite asks for them, and in words for records and people.

A few-step student looks worse than it is when sampled at timesteps that it was not trained for. A suite that leaves the
scheduler to the model does not state the timesteps, so dry runs and records do.
"""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import retrieve_timesteps
from torch import Tensor

from sdbench.errors import UserError
from sdbench.models.architectures import PARTS
from sdbench.models.headers import stated_prediction
from sdbench.models.loading import build_scheduler
from sdbench.models.locate import locate, read_unet_config
from sdbench.models.spec import ModelSpec
from sdbench.settings import CONFIGURED, Sampling

SCHEDULERS = {  # those that a suite may name, besides the model's own
    "ddim": diffusers.DDIMScheduler,
    "dpmpp": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler-ancestral": diffusers.EulerAncestralDiscreteScheduler,
    "lcm": diffusers.LCMScheduler,
    "tcd": diffusers.TCDScheduler,
}


def set_scheduler(pipeline: Any, sampling: Sampling) -> None:
    """Replace the pipeline's scheduler with the one that the sampling names, in the configuration of the pipeline's own.

    Raises:
        UserError: that configuration has other noise than DDPM's, such as EDM's, which the named one would replace by its defaults.
    """
    if sampling.scheduler != "model":
        if "beta_schedule" not in pipeline.scheduler.config:
            raise UserError(
                f"the model's own scheduler, {type(pipeline.scheduler).__name__}, has no betas that {sampling.scheduler!r} could take "
                "over; leave it to the model, with --scheduler model or scheduler = 'model' in a suite file"
            )
        given = {name: value for name in CONFIGURED if (value := getattr(sampling, name)) is not None}
        pipeline.scheduler = SCHEDULERS[sampling.scheduler].from_config(pipeline.scheduler.config, **given)


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
        UserError: the scheduler refuses the suite's steps or timesteps, or see `set_scheduler`.
    """
    if (own := _find_own(spec, pipeline)) is None:
        return {}
    chosen = _choose(own, sampling)
    return {
        "class": type(chosen).__name__,
        "prediction_type": chosen.config.get("prediction_type"),  # some schedulers have none
        "timesteps": set_timesteps(chosen, sampling, "cpu").tolist(),
    }


def check_prediction(spec: ModelSpec, sampling: Sampling) -> None:
    """Check that images of a single file are drawn with the kind of prediction that it was trained for, where the file states it.

    Nothing is checked where the configuration that the file is drawn with is not on this disk (yet).

    Raises:
        UserError: they are not.
    """
    stated = stated_prediction(Path(spec.location)) if spec.source == "file" else {}
    if not stated:
        return
    try:
        chosen = _choose(_build_own(spec), sampling)
    except UserError:
        return
    wrong = {name: value for name, value in stated.items() if chosen.config.get(name) != value}
    if not wrong:
        return
    options = ["--scheduler euler"] if sampling.scheduler == "model" else []
    options += [f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}") for name, value in wrong.items()]
    raise UserError(
        f"{spec.location} states that it was trained with {_describe(wrong)}, but {type(chosen).__name__} would draw it with "
        f"{_describe({name: chosen.config.get(name) for name in wrong})}; add "
        f"{' '.join(options)}, or set these in [sampling] of a suite file"
    )


def sampling_notes(spec: ModelSpec, sampling: Sampling, pipeline: Any = None) -> list[str]:
    """What to know before images are drawn with other guidance or more steps than a few-step student seems to be trained for.

    The range of guidance scales of a UNet that takes them as an input is what the guide of diffusers to latent consistency models states;
    it also says that 1 works in most cases. Nothing is said of a model whose files are not on this disk (yet).

    Args:
        pipeline: that of a model in memory.
    """
    notes, unet = [], pipeline.unet.config if pipeline else read_unet_config(spec)
    if unet.get("time_cond_proj_dim") is not None and sampling.guidance_scale <= 1:
        notes.append(
            f"{spec.name}: its UNet takes the guidance scale as an input, as those of latent consistency models, which are trained with 3 "
            f"to 13; the suite gives it {sampling.guidance_scale:g}. To change that, add --guidance-scale 8"
        )
    many = sampling.scheduler == "model" and sampling.steps > 10 and sampling.guidance_scale > 1
    if many and spec.family == "sdxl" and (own := _find_own(spec, pipeline)) and own.config.get("timestep_spacing") == "trailing":
        notes.append(
            f"{spec.name}: its own scheduler spaces timesteps as those of few-step students do, but the suite draws it in "
            f"{sampling.steps} steps with guidance; SDXL-Turbo, for one, is drawn as it was trained with --suite few-step --scheduler "
            "model --steps 1 --size-px 512"
        )
    return notes


def _describe(settings: Mapping[str, Any]) -> str:
    return " and ".join(f"{name} {value}" for name, value in settings.items())


def _choose(own: Any, sampling: Sampling) -> Any:
    """The scheduler that the sampling makes of a model's own, which is not changed."""
    stand_in = SimpleNamespace(scheduler=type(own).from_config(own.config))  # has what `set_scheduler` needs of a pipeline
    set_scheduler(stand_in, sampling)
    return stand_in.scheduler


def _find_own(spec: ModelSpec, pipeline: Any) -> Any:
    """The model's own scheduler; None where no model draws the images, and where the model's files are not on this disk (yet)."""
    if pipeline:
        return pipeline.scheduler
    try:
        return None if spec.source == "rendered" else _build_own(spec)
    except UserError:
        return None


def _build_own(spec: ModelSpec) -> Any:
    """The model's own scheduler."""
    if spec.source == "random":
        config = PARTS[spec.known_family]["scheduler"]
        return getattr(diffusers, config["_class_name"]).from_config(config)
    return build_scheduler(locate(spec).pipeline)
