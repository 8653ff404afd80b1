"""Settings of a suite that a single run may change."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdbench.assets.prompts import count_prompts
from sdbench.errors import UserError
from sdbench.settings import Sampling
from sdbench.suites import Prompts, Suite, Teacher, base_name
from sdbench.validation import validate

# What images must have in common with the teacher's to be paired, or else should have for a like comparison.
SHARED = ("size_px", "height_px", "batch", "dtype", "n", "samples_per_prompt", "prompts")


@dataclass(frozen=True)
class Overrides:
    """Settings in place of a suite's own. The changed suite is named `<name>-custom`, so its rows stay separate.

    Where the teacher has a suite of its own, those in `SHARED` change that suite too, so that images can still be paired.

    Attributes:
        height_px: of images that are not square.
        timesteps: one for each step; sets `steps` to their number where that is not given.
        n: number of prompts: the first n of the list.
        samples_per_prompt: number of images for each prompt; at the same number of images, more prompts tell more.
        prompts: text file with one prompt per line, or a table or folder of captions; all of them are taken unless `n` says otherwise.
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
    prediction_type: str | None = None
    rescale_betas_zero_snr: bool | None = None
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
        """The suite with these settings; the suite itself where none is given.

        Raises:
            UserError: a value is out of range, the prompts cannot be read, or `rounds` or `calls` are given for a suite without probes.
        """
        given = {name: value for name, value in vars(self).items() if value is not None}
        if not given:
            return suite
        content = suite.model_dump() | {"name": f"{base_name(suite.name)}-custom", "reference": self.reference or suite.reference}
        content["metrics"] |= {suite.family: self.metrics} if self.metrics else {}
        content["sampling"] |= {"steps": len(self.timesteps)} if self.timesteps else {}
        content["sampling"] |= {name: value for name, value in given.items() if name in Sampling.model_fields}
        content["prompts"] = self._change_prompts(suite.prompts)
        content |= {"teacher": teacher} if (teacher := self._change_teacher(suite.teacher)) else {}
        if timing := {name: value for name, value in given.items() if name in ("rounds", "calls")}:
            content["probes"] = _change_timing(suite, timing)
        return validate(Suite, content, f"suite {suite.name!r} with your settings")

    def _change_prompts(self, prompts: Prompts) -> dict[str, Any]:
        """The suite's prompts, or those of a file, with other numbers of prompts or samples."""
        content = prompts.model_dump()
        if self.prompts:
            source, n = count_prompts(Path(self.prompts))
            place = "path" if source == "dataset" else "file"
            content = {"source": source, place: str(self.prompts), "n": n, "samples": prompts.samples}
        if self.n is not None:
            content |= {"n": self.n, "digest": None, "groups": None}
        if self.samples_per_prompt is not None:
            content["samples"] = self.samples_per_prompt
        return content

    def _change_teacher(self, teacher: Teacher | None) -> Teacher | None:
        """The teacher, its own suite changed by the shared settings."""
        shared = {name: value for name in SHARED if (value := getattr(self, name)) is not None}
        if teacher is None or not shared or (own := teacher.find_suite()) is None or own.other_suite:  # the last is refused later
            return teacher
        options = [word for name, value in shared.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        return teacher.model_copy(update={"changed": Overrides(**shared).apply(own), "options": (*teacher.options, *options)})


def _change_timing(suite: Suite, timing: dict[str, int]) -> dict[str, Any]:
    """The suite's probes with other numbers of rounds or calls; these calls replace those that a setting has of its own."""
    if suite.probes is None:
        raise UserError(f"suite {suite.name!r} has no probes, so {' and '.join(timing)} have no effect; leave them out")
    content = {**suite.probes.model_dump(), **timing}
    if "calls" in timing:
        content["settings"] = [{**setting, "calls": None} for setting in content.get("settings", ())]
    return content
