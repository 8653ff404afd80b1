"""Settings of a suite that a single run may change."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbench.assets.prompts import count_prompts
from sdbench.errors import UserError
from sdbench.suites import Suite, base_name
from sdbench.validation import validate


@dataclass(frozen=True)
class Overrides:
    """Settings in place of a suite's own. The changed suite is named `<name>-custom`, so its rows stay separate.

    Attributes:
        height_px: of images that are not square.
        timesteps: one for each step; sets `steps` to their number where that is not given.
        n: number of prompts.
        samples_per_prompt: number of images for each prompt; at the same number of images, more prompts tell more.
        prompts: text file with one prompt per line; all of them are taken unless `n` says otherwise.
        metrics: names of the image metrics.
        reference: name of the reference that distances are measured to.
        rounds: processes for each model and setting.
        calls: timed calls of each stage in a process.
    """

    steps: int | None = None
    guidance_scale: float | None = None
    scheduler: str | None = None
    timestep_spacing: str | None = None
    timesteps: Sequence[int] | None = None
    eta: float | None = None
    size_px: int | None = None
    height_px: int | None = None
    batch: int | None = None
    dtype: str | None = None
    n: int | None = None
    samples_per_prompt: int | None = None
    prompts: str | Path | None = None
    metrics: Sequence[str] | None = None
    reference: str | None = None
    rounds: int | None = None
    calls: int | None = None

    def apply(self, suite: Suite) -> Suite:
        """The suite with these settings; the suite itself where none is given, or where it draws no images.

        Raises:
            UserError: a value is out of range, the prompts cannot be read, or `rounds` or `calls` are given for a suite without probes.
        """
        changed = {name: value for name, value in vars(self).items() if value is not None}
        if not changed or suite.sampling is None or suite.prompts is None:
            return suite
        n, samples, prompt_file, reference = (changed.pop(name, None) for name in ("n", "samples_per_prompt", "prompts", "reference"))
        metrics = {suite.family: tuple(changed.pop("metrics"))} if "metrics" in changed else suite.metrics
        timing: dict[str, int] = {name: changed.pop(name) for name in ("rounds", "calls") if name in changed}
        sampling = {**suite.sampling.model_dump(), **({"steps": len(self.timesteps)} if self.timesteps else {}), **changed}
        prompts = suite.prompts.model_dump()
        if prompt_file:
            source, n_prompts = count_prompts(Path(prompt_file))
            prompts = {"source": source, {"file": "file", "dataset": "path"}[source]: str(prompt_file), "n": n_prompts}
        if n is not None:
            prompts |= {"n": n, "digest": None, "groups": None}
        prompts |= {"samples": suite.samples if samples is None else samples}
        changes = {"name": f"{base_name(suite.name)}-custom", "sampling": sampling, "prompts": prompts}
        content = {**suite.model_dump(), **changes, "metrics": metrics, "reference": reference or suite.reference}
        if timing:
            content["probes"] = _change_timing(suite, timing)
        return validate(Suite, content, f"suite {suite.name!r} with your settings")


def _change_timing(suite: Suite, timing: dict[str, int]) -> dict[str, Any]:
    """The suite's probes with other numbers of rounds or calls; these calls replace those that a setting has of its own."""
    if suite.probes is None:
        raise UserError(f"suite {suite.name!r} has no probes, so {' and '.join(timing)} have no effect; leave them out")
    content = {**suite.probes.model_dump(), **timing}
    if "calls" in timing:
        content["settings"] = [{**setting, "calls": None} for setting in content.get("settings", ())]
    return content
