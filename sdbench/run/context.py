"""The context of a run: a suite on this machine and the folders of its output, checked before anything slow begins."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdbench import __version__, records
from sdbench.assets.pipelines import is_here, is_local
from sdbench.disk import locked
from sdbench.errors import UserError
from sdbench.generate import Job, list_jobs
from sdbench.machine import slow_dtype_note, version
from sdbench.models.loading import check_headers, check_part
from sdbench.models.locate import check_local_files
from sdbench.models.resolve import check_family
from sdbench.models.spec import ModelSpec
from sdbench.records import DRAWING_PACKAGES, Model
from sdbench.scenes.grammar import EXAMPLE, parse
from sdbench.scenes.render import SIZE_PX
from sdbench.score import find_protocols
from sdbench.settings import Dtype, Probes, Sampling, Setting
from sdbench.store import Store
from sdbench.suites import Suite, check_half

RECORDS_LOCK = ".records.lock"  # in the folder of runs, held while a record is written


@dataclass(frozen=True)
class RunContext:
    """A suite on this machine, what of it is measured, and where the output goes.

    Attributes:
        only: "quality" or "probes" for one half of the suite, None for both.
        pipelines: pipelines in memory, by the names of their specs, which have the source `memory`.
        settings: labels of the probes' settings to measure; all by default.
        profile: the probes also write a table of where each stage spends its time.
        rounds: folder of the probes' rounds; by default `probes` within `runs`.
    """

    suite: Suite
    device: str
    results: Path
    runs: Path
    only: str | None = None
    pipelines: Mapping[str, Any] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    profile: bool = False
    rounds: Path | None = None

    @property
    def sampling(self) -> Sampling:
        """How the suite's images are made."""
        return self.suite.sampling

    @property
    def with_quality(self) -> bool:
        """Whether images are made and scored."""
        return self.only != "probes" and bool(self.suite.own_metrics)

    @property
    def probes(self) -> Probes | None:
        """How latency and memory are measured; None where they are not."""
        return self.suite.probes if self.only != "quality" else None

    @property
    def timed_settings(self) -> Mapping[str, Setting]:
        """Label -> setting of the probes that the run measures."""
        return self.probes.select(self.settings) if self.probes else {}


def prepare(context: RunContext) -> None:
    """Check that the suite can be run and the results can be written, before anything slow begins.

    Raises:
        UserError: see `check_suite`; or a folder cannot be written or locked, prompts or a latent are missing, or a record is damaged.
    """
    check_suite(context)
    for folder in (context.results, context.runs):
        _check_writable(folder)
    with locked(context.runs / RECORDS_LOCK):  # raises where the file system has no locks
        pass
    _ = context.suite.id  # raises where prompts or latent are missing, or the teacher does not fit
    records.newest_per_model(context.results, context.suite.family)  # raises where a record is damaged


def check_suite(context: RunContext) -> None:
    """Check that a suite can be run, and that the options leave something to measure.

    Raises:
        UserError: nothing of the suite would be measured, or it has no such half, setting, metric, size or caption.
    """
    check_half(context.only)
    suite = context.suite
    if not context.probes and not context.with_quality:
        lacking = {"quality": "no metrics", "probes": "no probes"}.get(context.only or "", "neither metrics nor probes")
        raise UserError(f"suite {suite.name!r} has {lacking}, so there is nothing to measure; name another with --suite")
    if (context.settings or context.profile) and not context.probes:
        option = "--setting" if context.settings else "--profile-stages"
        raise UserError(f"{option} is for probes, of which this run of suite {suite.name!r} has none; leave it out")
    if suite.family == "scenes" and context.with_quality and suite.sampling.shape_px != (SIZE_PX, SIZE_PX):
        height, width = suite.sampling.shape_px
        raise UserError(
            f"suite {suite.name!r} draws images of {width} x {height} px, but the evaluators of the embedded family take {SIZE_PX} x "
            f"{SIZE_PX}; set size_px to {SIZE_PX} and no height_px, or measure latency and memory alone: --only probes"
        )
    if suite.family == "scenes" and suite.prompts.source != "scenes":
        check_captions([*suite.prompt_list().values()], f"suite {suite.name!r}")
    _ = context.timed_settings  # raises where a setting is not of the suite
    find_protocols(suite.own_metrics)


def check_captions(captions: Sequence[str], where: str) -> None:
    """Check that captions follow the grammar of scenes; the embedded family's evaluators would give meaningless numbers for others.

    Raises:
        UserError: one is not the caption of a scene.
    """
    for caption in captions:
        try:
            parse(caption)
        except ValueError as error:
            raise UserError(
                f"{where}: {error}. The embedded family draws only captions of its grammar, such as {EXAMPLE!r}; "
                "other prompts need a model of family sdxl, and a suite for it such as 'standard'"
            ) from error


def check_models(specs: Sequence[ModelSpec], suite: Suite) -> None:
    """Check that models can be measured under a suite.

    Raises:
        UserError: a model is of another family or of none, or lacks weights.
    """
    for spec in specs:
        check_family(spec, suite.family, suite.name)
        check_local_files(spec)


def check_weights(specs: Sequence[ModelSpec], dtype: Dtype) -> None:
    """Check by their headers the weights of the models that are on this disk, before anything slow begins.

    Raises:
        UserError: see `check_headers`.
    """
    for spec in [spec for spec in specs if spec.source != "memory"]:
        if is_local(spec) or is_here(spec, dtype=dtype):
            check_headers(spec, dtype=dtype)
        elif spec.source == "unet-folder":  # its base is not here yet
            check_part("unet", Path(spec.location), sixteen_bit=dtype != "float32")


def slow_dtype_notes(context: RunContext) -> list[str]:
    """What to know before computing in the dtypes of the timed settings and, if images are drawn, of the sampling."""
    timed = {setting.dtype or context.sampling.dtype for setting in context.timed_settings.values()}
    computed = timed | ({context.sampling.dtype} if context.with_quality else set())
    return [note for dtype in sorted(computed) if (note := slow_dtype_note(dtype, context.device))]


def store_and_jobs(model: Model, context: RunContext) -> tuple[Store, list[Job]]:
    """The store of a model's images of a suite, and the jobs to make them.

    Other versions of the packages that draw have a store of their own: a record names its versions, and a gate may ask what an upgrade
    changed.

    Raises:
        MissingError, UserError: see `list_jobs`.
    """
    kind, _, _ = context.device.partition(":")  # all cards of a machine draw the same images
    packages = {"sdbench": __version__} | {name: version(name) for name in DRAWING_PACKAGES}
    identity = {"model": model.name, "weights": model.weights_digest, "device": kind, "batch": context.sampling.batch, "packages": packages}
    return Store(context.runs, identity), list_jobs(context.suite, context.sampling, model.weights_digest)


def _check_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"folder {folder} cannot be written ({error.strerror}); make it writable, or name another with --results and --runs."
        ) from error
