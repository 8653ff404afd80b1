"""What a run would fetch, write and cost, found out without doing it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sdbench import needs
from sdbench.models.architectures import TOPOLOGIES, unet_config
from sdbench.models.spec import ModelSpec
from sdbench.pipelines import files_to_fetch
from sdbench.probes.flops import unet_macs
from sdbench.suites import Sampling, Suite
from sdbench.weights import size_text

PNG_BYTES_PER_PIXEL = 1.5  # photographs take about this much; plain scenes far less
EFFICIENCY = 0.15  # share of a large matrix product's speed that a pipeline reaches: the slack of a rough estimate


def plan(specs: Sequence[ModelSpec], suite: Suite, runs: Path) -> dict[str, Any]:
    """Files to fetch, what else is not here, disk in bytes, and a rough time in seconds, with the same as text."""
    dtype = suite.sampling.dtype if suite.sampling else "float32"
    files = [file for spec in specs for file in files_to_fetch(spec, dtype=dtype) if not file.cached] + needs.files(suite)
    n = suite.prompts.n if suite.prompts else 0
    rate = _macs_per_s()
    rows = []
    for spec in specs:
        macs = _macs(spec, suite.sampling) if suite.sampling else None
        steps = suite.sampling.steps * (2 if suite.sampling.guidance_scale > 1 else 1) if suite.sampling else 0
        rows.append({"model": spec.name, "seconds": None if macs is None else n * steps * macs / rate / EFFICIENCY})
    size = suite.sampling.size_px if suite.sampling else 0
    disk = int(len(specs) * n * size * size * PNG_BYTES_PER_PIXEL) + sum(file.size_bytes for file in files)
    content = {
        "suite": suite.id.model_dump()
        if needs.inputs_are_here(suite)
        else suite.model_dump(include={"name", "version"}) | {"digest": None},
        "prompts": suite.prompts_described() if needs.inputs_are_here(suite) else None,
        "lacking": needs.lacking(suite, runs),
        "settings": suite.model_dump(),
        "files": [vars(file) for file in files],
        "disk_bytes": disk,
        "models": rows,
    }
    return {**content, "text": "\n".join([_text(content, n), *_probes(suite)])}


def _text(content: dict[str, Any], n: int) -> str:
    digest = content["suite"]["digest"] or "not known until its prompts are here"
    lines = [f"suite {content['suite']['name']}@{content['suite']['version']} (digest {digest}): {n} pictures a model"]
    lines += [f"prompts: {content['prompts']}"] if content["prompts"] else []
    sampling = content["settings"]["sampling"] or {}
    lines.append("sampling: " + ", ".join(f"{key} {value}" for key, value in sampling.items()))
    lines += [f"fetch: {file['repository']}/{file['name']} ({size_text(file['size_bytes'])})" for file in content["files"]]
    lines += [f"missing: {what}" for what in content["lacking"]]
    lines.append(f"disk: at most {content['disk_bytes'] / 1e9:.2f} GB" + ("" if content["files"] else "; nothing to fetch"))
    for row in content["models"]:
        lines.append(
            f"{row['model']}: "
            + ("no estimate" if row["seconds"] is None else f"roughly {_duration(row['seconds'])} of sampling on this machine")
        )
    return "\n".join(lines)


def _probes(suite: Suite) -> list[str]:
    if suite.probes is None:
        return []
    labels = list(suite.probes.chosen())
    return [f"probes: {suite.probes.rounds} rounds a model, each a process for every setting: {', '.join(labels)}"]


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"


def _macs(spec: ModelSpec, sampling: Sampling) -> int | None:
    """MACs of one UNet forward of a known architecture."""
    if spec.architecture not in TOPOLOGIES or spec.family == "custom":
        return None
    downsampling, tokens = (4, 20) if spec.family == "scenes" else (8, 77)
    return unet_macs(unet_config(spec.architecture, spec.family), latent_size=sampling.size_px // downsampling, tokens=tokens)


def _macs_per_s() -> float:
    """Speed of a large matrix product here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side, dtype = (8192, torch.bfloat16) if device == "cuda" else (1024, torch.float32)
    a = torch.randn(side, side, device=device, dtype=dtype)
    for _ in range(2):
        start = time.perf_counter()
        (a @ a).sum().item()
        seconds = time.perf_counter() - start
    return side**3 / seconds
