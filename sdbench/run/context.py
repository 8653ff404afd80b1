"""A suite on this machine: what is asked of it, checked before anything slow begins, and where its pictures lie."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdbench import records
from sdbench.errors import UserError
from sdbench.generate import Job, jobs
from sdbench.models.locate import check_local_files
from sdbench.models.spec import ModelSpec
from sdbench.records import Model
from sdbench.scenes.grammar import parse
from sdbench.score import named
from sdbench.settings import Dtype, Sampling, Setting
from sdbench.store import Store
from sdbench.suites import Suite


@dataclass(frozen=True)
class Bench:
    """A suite on this machine, and where its output goes.

    Attributes:
        loaded: pipelines that are in memory already, by the names of their specs, which have the source `memory`.
        settings: labels of the probes' settings to measure; all by default.
        profile: the probes also write what holds the time of each stage.
    """

    suite: Suite
    sampling: Sampling
    device: str
    results: Path
    runs: Path
    quality: bool = True
    probes: bool = True
    loaded: Mapping[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    profile: bool = False

    @property
    def timed(self) -> Mapping[str, Setting]:
        """Settings of the probes that the run measures, by their labels."""
        return self.suite.probes.chosen(self.settings) if self.probes and self.suite.probes else {}


def bench(
    suite: Suite,
    *,
    device: str,
    results: Path,
    runs: Path,
    only: str | None = None,
    settings: Sequence[str] = (),
    profile: bool = False,
) -> Bench:
    """Check that the suite can be run and the results be written, before anything slow begins.

    Args:
        only: "quality" or "probes" for one half of the suite, None for both.
        settings: labels of the probes' settings to measure; all by default.
        profile: the probes also write what holds the time of each stage.
    """
    check_suite(suite, only=only, settings=settings, profile=profile)
    assert suite.sampling
    for folder in (results, runs):
        _check_writable(folder)
    suite.id  # noqa: B018  # prompts or a latent that are neither here nor reachable end the run here
    records.newest_per_model(results, suite.family)  # so does a damaged record, which the new ones could not be joined to
    pictures = only != "probes" and bool(suite.own_metrics)
    return Bench(suite, suite.sampling, device, results, runs, pictures, only != "quality", settings=tuple(settings), profile=profile)


def check_suite(suite: Suite, *, only: str | None, settings: Sequence[str], profile: bool) -> None:
    """See that a suite is whole, and that what is asked of it leaves something to measure.

    Raises:
        UserError: it is a part, nothing of it would be measured, or it has no such setting.
    """
    if suite.prompts is None or suite.sampling is None or suite.family is None:
        raise UserError(
            f"suite {suite.name!r} is a part: it has no prompts and no sampling of its own; run one that includes it, such as 'quality' or 'standard'"
        )
    timed, scored = only != "quality" and suite.probes is not None, only != "probes" and bool(suite.own_metrics)
    if not timed and not scored:
        lacking = {"quality": "no metrics", "probes": "no probes"}.get(only or "", "neither metrics nor probes")
        raise UserError(f"suite {suite.name!r} has {lacking}, so there is nothing to measure; name another with --suite")
    if (settings or profile) and not timed:
        option = "--setting" if settings else "--profile"
        raise UserError(f"{option} is for probes, of which this run of suite {suite.name!r} has none; leave it out")
    if suite.family == "scenes" and suite.prompts.source != "scenes":
        check_captions([*suite.prompt_list().values()], f"suite {suite.name!r}")
    if suite.probes:
        suite.probes.chosen(settings)
    named(suite.own_metrics)


def check_captions(captions: Sequence[str], where: str) -> None:
    """See that the embedded family's evaluators know what these say; of others they would make something up.

    Raises:
        UserError: one is no caption of a scene.
    """
    for caption in captions:
        try:
            parse(caption)
        except ValueError as error:
            raise UserError(f"{where}: {error}; other prompts are for the full-size family, by --suite standard") from error


def check_models(specs: Sequence[ModelSpec], suite: Suite) -> None:
    """See that models can be measured under a suite, and told apart.

    Raises:
        UserError: one is of another family or lacks weights, or two have one name.
    """
    by_name: dict[str, ModelSpec] = {}
    for spec in specs:
        if spec.family != suite.family:
            raise UserError(
                f"{spec.name!r} is of family {spec.family!r}, suite {suite.name!r} is for {suite.family!r}; rows of two families are never compared"
            )
        if other := by_name.get(spec.name):
            places = " and ".join(each.location or each.source for each in (other, spec))
            raise UserError(f"two models are called {spec.name!r}: {places}; run them one by one, each with a --name of its own")
        check_local_files(spec)
        by_name[spec.name] = spec


def dtypes(sampling: Sampling, timed: Mapping[str, Setting]) -> list[Dtype]:
    """What a run computes in, and so which copies of the weights it takes: the sampling's, whose digest names the model, and those of what it times."""
    return sorted({sampling.dtype, *(setting.dtype or sampling.dtype for setting in timed.values())})


def place_of(model: Model, setting: Bench) -> tuple[Store, list[Job]]:
    """Where a model's pictures of a suite lie, or will."""
    kind, _, _ = setting.device.partition(":")  # two cards of one machine draw the same
    identity = {"model": model.name, "weights": model.weights_digest, "device": kind, "batch": setting.sampling.batch}
    return Store(setting.runs, identity), jobs(setting.suite, setting.sampling, model.weights_digest)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"folder {folder} cannot be written ({error.strerror}); make it writable, or name another with --results and --runs."
        ) from error
