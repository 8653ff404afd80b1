"""Estimate what a run would fetch, write and cost, without running it."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sdbench import schedulers
from sdbench.assets.pipelines import missing_files
from sdbench.disk import size_text
from sdbench.models.architectures import TOPOLOGIES
from sdbench.models.locate import read_unet_config
from sdbench.models.spec import ModelSpec
from sdbench.probes import ceilings, work
from sdbench.run import requirements
from sdbench.run.context import RunContext, check_weights, slow_dtype_notes
from sdbench.settings import Sampling

PNG_BYTES_PER_PIXEL = 1.5  # about that of photographs; plain scenes take far less
# Rough shares of a large matrix product's speed that a pipeline reaches. On GPUs: open-muse's 2.7 s for SDXL in 20 steps on an A100 and
# 2.9 s on an RTX 4090 (`leaderboard/published.toml`) are 104 and 98 TFLOP/s, a third and 0.6 of what these cards' sheets state.
EFFICIENCY = {"cpu": 0.15, "cuda": 0.4}
# Assumed for a round's process beside its calls of the pipeline: imports, loading and the other stages. It was 8 to 17 s for the embedded
# family, on two cores that did more or less else; some settings compile first.
START_S = 12
# Assumed on top for each weight that is loaded, or built and calibrated. The latter took 21 to 36 s for 1.6 to 3.5 G of them on two cores
# (the load that records of `efficiency-cpu@1` have); what a disk or a GPU makes of it has not been measured.
LOAD_S_PER_WEIGHT = 10e-9


def plan(specs: Sequence[ModelSpec], context: RunContext, missing: Sequence[str] = ()) -> dict[str, Any]:
    """Files to fetch, other missing inputs, disk in bytes, and a rough time in seconds; the same under `text`, for people.

    Args:
        missing: what else the caller knows to be missing.

    Raises:
        UserError: the weights of a model on this disk are damaged, the Hub cannot be reached, or see `check_prediction`.
    """
    suite, sampling = context.suite, context.sampling
    check_weights(specs, sampling.dtype)
    efficiency = EFFICIENCY[context.device.partition(":")[0]]
    rate = efficiency * ceilings.measure("matmul", context.device, sampling.dtype) / 2  # two FLOPs are one multiply-accumulate
    scored = suite if context.with_quality else suite.model_copy(update={"metrics": {}})
    of_models = itertools.chain.from_iterable(missing_files(spec, dtype=sampling.dtype) for spec in specs)
    files = [*dict.fromkeys(of_models), *requirements.files_to_fetch(scored)]  # models of one base share its files
    n = suite.prompts.n * suite.samples if context.with_quality else 0
    for spec in specs if n else ():
        schedulers.check_prediction(spec, sampling)
    starts_s = sum(_start_s(spec, sampling) for spec in specs if spec.source != "rendered") * _count_processes(context)
    has_inputs = requirements.inputs_are_here(suite)
    content = {
        "suite": suite.id.model_dump() if has_inputs else suite.model_dump(include={"name", "version"}) | {"digest": None},
        "prompts": suite.describe_prompts() if has_inputs else None,
        "lacking": [*requirements.missing_inputs(scored, context.runs), *missing],
        "settings": suite.model_dump(),
        "files": [vars(file) for file in files],
        "disk_bytes": int(len(specs) * n * math.prod(sampling.shape_px) * PNG_BYTES_PER_PIXEL) + sum(file.size_bytes for file in files),
        "models": _estimate_models(specs, sampling, n + _count_timed_images(context), rate),
        "starts_s": starts_s,
    }
    lines = [_text(content, n, suite.samples)]
    if probes := context.probes:
        lines.append(
            f"probes: {probes.rounds} rounds a model, each a process for every setting: {', '.join(context.timed_settings)}; to start them "
            f"takes roughly {duration_text(starts_s)} more, and longer where a setting compiles"
        )
    lines += slow_dtype_notes(context)
    lines += [note for spec in specs if n for note in schedulers.sampling_notes(spec, sampling)]
    return {**content, "text": "\n".join(lines)}


def _count_processes(context: RunContext) -> int:
    """Number of processes that the probes start for each model."""
    return context.probes.rounds * len(context.timed_settings) if context.probes else 0


def _start_s(spec: ModelSpec, sampling: Sampling) -> float:
    """Seconds that a round's process is assumed to take beside its calls of the pipeline."""
    works = _works(spec, sampling.model_copy(update={"negative_prompt": None}))  # else those of the text encoders would count twice
    return START_S + LOAD_S_PER_WEIGHT * sum(of_stage.weights for of_stage in works.values())


def _count_timed_images(context: RunContext) -> int:
    """Number of images that the probes' calls of the pipeline make for each model."""
    if (probes := context.probes) is None:
        return 0
    calls = [setting.batch * (probes.warmup + (setting.calls or probes.calls)) for setting in context.timed_settings.values()]
    return probes.rounds * sum(calls)


def _estimate_models(specs: Sequence[ModelSpec], sampling: Sampling, images: int, macs_per_s: float) -> list[dict[str, Any]]:
    """For each model, the seconds for this number of images, None where its work is not known; and its scheduler."""
    estimates = []
    for spec in specs:
        macs = _macs(spec, sampling)
        seconds = None if macs is None else images * macs / macs_per_s
        estimates.append({"model": spec.name, "seconds": seconds, "scheduler": schedulers.describe(spec, sampling)})
    return estimates


def _text(content: dict[str, Any], n: int, samples: int) -> str:
    digest = content["suite"]["digest"] or "not known until its prompts are here"
    each = f", {samples} for each of {n // samples} prompts" if n and samples > 1 else ""
    lines = [f"suite {content['suite']['name']}@{content['suite']['version']} (digest {digest}): {n or 'no'} images a model{each}"]
    lines += [f"prompts: {content['prompts']}"] if content["prompts"] else []
    lines.append("sampling: " + ", ".join(f"{key} {value}" for key, value in content["settings"]["sampling"].items()))
    lines += [f"fetch: {file['repository']}/{file['name']} ({size_text(file['size_bytes'])})" for file in content["files"]]
    lines += [f"missing: {what}" for what in content["lacking"]]
    spent = "sampling" if n else "timed calls"
    lines.append(f"disk: at most {size_text(content['disk_bytes'])}" + ("" if content["files"] else "; nothing to fetch"))
    for row in content["models"]:
        lines.append(
            f"{row['model']}: "
            + (f"{_describe_scheduler(scheduler)}; " if (scheduler := row["scheduler"]) else "")
            + ("no estimate" if row["seconds"] is None else f"roughly {duration_text(row['seconds'])} of {spent} on this machine")
        )
    return "\n".join(lines)


def _describe_scheduler(scheduler: Mapping[str, Any]) -> str:
    """A scheduler, as `schedulers.describe` has it, in words; some have no kind of prediction."""
    kind = f" ({scheduler['prediction_type']})" if scheduler["prediction_type"] else ""
    return f"{scheduler['class']}{kind} at {', '.join(f'{timestep:g}' for timestep in scheduler['timesteps'])}"


def duration_text(seconds: float) -> str:
    """A duration in seconds, minutes or hours, as exact as an estimate of it."""
    if seconds < 59.5:  # from there on two digits make 60
        return f"{seconds:.2g} s"
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"


def _macs(spec: ModelSpec, sampling: Sampling) -> int | None:
    """Multiply-accumulates of one image; None where the networks are not known."""
    works = _works(spec, sampling)
    return sum(of_stage.macs * (sampling.steps if stage == "unet_step" else 1) for stage, of_stage in works.items()) or None


def _works(spec: ModelSpec, sampling: Sampling) -> dict[str, work.Work]:
    """The work of each stage for one image; empty where the networks are not known."""
    is_known, own = spec.architecture in TOPOLOGIES, read_unet_config(spec)
    if spec.family == "custom" or not (is_known or own):
        return {}
    configs = work.random_configs(spec if is_known else replace(spec, architecture="sdxl"))  # a student with blocks of its own
    return work.by_stage(configs | {"unet": configs["unet"] | own}, sampling, zero_negative=True)
