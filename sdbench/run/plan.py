"""What a run would fetch, write and cost, found out without doing it."""

import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sdbench.assets.pipelines import missing_files
from sdbench.assets.weights import size_text
from sdbench.errors import UserError
from sdbench.machine import chosen_device
from sdbench.models.architectures import TOPOLOGIES
from sdbench.models.files import read_json
from sdbench.models.locate import locate
from sdbench.models.spec import ModelSpec
from sdbench.probes import work
from sdbench.run import requirements
from sdbench.run.context import dtypes
from sdbench.schedulers import resolved
from sdbench.settings import Sampling, Setting
from sdbench.suites import Suite

PNG_BYTES_PER_PIXEL = 1.5  # photographs take about this much; plain scenes far less
EFFICIENCY = 0.15  # share of a large matrix product's speed that a pipeline reaches: the slack of a rough estimate


def plan(
    specs: Sequence[ModelSpec],
    suite: Suite,
    runs: Path,
    *,
    device: str | None = None,
    only: str | None = None,
    settings: Sequence[str] = (),
    lacking: Sequence[str] = (),
) -> dict[str, Any]:
    """Files to fetch, what else is not here, disk in bytes, and a rough time in seconds, with the same as text.

    Args:
        specs: the models.
        suite: a whole one.
        runs: the folder that holds references.
        device: "cpu", "cuda" or "cuda:<index>"; as of the run.
        only: "quality" or "probes" for one half of the suite, as of the run.
        settings: labels of the probes' settings; all by default.
        lacking: what is not here, as the caller knows.

    Raises:
        UserError: no such device is here, or the Hub cannot be reached.
    """
    assert suite.sampling
    assert suite.prompts
    rate = _macs_per_s(chosen_device(device))
    scored = suite if only != "probes" else suite.model_copy(update={"metrics": {}, "reference": None})
    probes = suite.probes.chosen(settings) if suite.probes and only != "quality" else {}
    copies = itertools.product(specs, dtypes(suite.sampling, probes))
    of_models = itertools.chain.from_iterable(missing_files(spec, dtype=dtype) for spec, dtype in copies)
    files = [*dict.fromkeys(of_models), *requirements.files(scored)]  # models of one base share its files
    n = suite.prompts.n if scored.own_metrics else 0
    size = suite.sampling.size_px
    known = requirements.inputs_are_here(suite)
    content = {
        "suite": suite.id.model_dump() if known else suite.model_dump(include={"name", "version"}) | {"digest": None},
        "prompts": suite.prompts_described() if known else None,
        "lacking": [*requirements.lacking(scored, runs), *lacking],
        "settings": suite.model_dump(),
        "files": [vars(file) for file in files],
        "disk_bytes": int(len(specs) * n * size * size * PNG_BYTES_PER_PIXEL) + sum(file.size_bytes for file in files),
        "models": _times(specs, suite.sampling, n + _timed(suite, probes), rate),
    }
    return {**content, "text": "\n".join([_text(content, n), *_probes(suite, probes)])}


def _timed(suite: Suite, settings: Mapping[str, Setting]) -> int:
    """Pictures that the probes' calls of the pipeline make for each model."""
    if suite.probes is None:
        return 0
    calls = [setting.batch * (suite.probes.warmup + (setting.calls or suite.probes.calls)) for setting in settings.values()]
    return suite.probes.rounds * sum(calls)


def _times(specs: Sequence[ModelSpec], sampling: Sampling, pictures: int, macs_per_s: float) -> list[dict[str, Any]]:
    """Seconds of each model for so many pictures, None where its work is not known; and what draws them."""
    found = []
    for spec in specs:
        macs = _macs(spec, sampling)
        seconds = None if macs is None else pictures * macs / macs_per_s / EFFICIENCY
        found.append({"model": spec.name, "seconds": seconds, "scheduler": resolved(spec, sampling)})
    return found


def _text(content: dict[str, Any], n: int) -> str:
    digest = content["suite"]["digest"] or "not known until its prompts are here"
    lines = [f"suite {content['suite']['name']}@{content['suite']['version']} (digest {digest}): {n or 'no'} pictures a model"]
    lines += [f"prompts: {content['prompts']}"] if content["prompts"] else []
    lines.append("sampling: " + ", ".join(f"{key} {value}" for key, value in content["settings"]["sampling"].items()))
    lines += [f"fetch: {file['repository']}/{file['name']} ({size_text(file['size_bytes'])})" for file in content["files"]]
    lines += [f"missing: {what}" for what in content["lacking"]]
    spent = "sampling" if n else "timed calls"
    lines.append(f"disk: at most {content['disk_bytes'] / 1e9:.2f} GB" + ("" if content["files"] else "; nothing to fetch"))
    for row in content["models"]:
        lines.append(
            f"{row['model']}: "
            + (f"{drawn['class']} at {', '.join(map(str, drawn['timesteps']))}; " if (drawn := row["scheduler"]) else "")
            + ("no estimate" if row["seconds"] is None else f"roughly {_duration(row['seconds'])} of {spent} on this machine")
        )
    return "\n".join(lines)


def _probes(suite: Suite, settings: Mapping[str, Setting]) -> list[str]:
    if suite.probes is None or not settings:
        return []
    return [f"probes: {suite.probes.rounds} rounds a model, each a process for every setting: {', '.join(settings)}"]


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"


def _macs(spec: ModelSpec, sampling: Sampling) -> int | None:
    """MACs of a picture by a pipeline whose UNet has a known architecture."""
    if spec.architecture not in TOPOLOGIES or spec.family == "custom":
        return None
    configs = work.of_random(spec)
    works = work.of(configs | {"unet": configs["unet"] | _unet(spec)}, sampling, zero_negative=True)
    return sum(found.macs * (sampling.steps if stage == "unet_step" else 1) for stage, found in works.items())


def _unet(spec: ModelSpec) -> dict[str, Any]:
    """The configuration of a model's UNet; empty where it has none on this disk, or none yet."""
    if spec.source == "random":
        return {}
    try:
        return read_json(locate(spec).unet_config)
    except UserError:
        return {}


def _macs_per_s(device: str) -> float:
    """Speed of a large matrix product on a device."""
    side, dtype = (1024, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a = torch.randn(side, side, device=device, dtype=dtype)
    for _ in range(2):
        start = time.perf_counter()
        (a @ a).sum().item()
        seconds = time.perf_counter() - start
    return side**3 / seconds
