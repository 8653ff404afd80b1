"""Run a suite over models, and write their records. Each step does only what is missing, so a killed run can resume."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from sdbench import schedulers
from sdbench.arrays import U8
from sdbench.assets.pipelines import fetch, missing_files
from sdbench.disk import locked
from sdbench.encoders.inference import evaluators_on, free_memory, release_evaluators
from sdbench.errors import PartialError, UserError, describe_error
from sdbench.generate import Job, generate, make_sampler, render_scenes, select_part
from sdbench.models.digest import weights_digest
from sdbench.models.loading import load
from sdbench.models.out_of_memory import explain_out_of_memory
from sdbench.models.resolve import with_cached_architecture
from sdbench.models.spec import ModelSpec
from sdbench.models.stock import CLASSES
from sdbench.notes import print_note
from sdbench.probes import driver
from sdbench.probes.driver import ProbeResult
from sdbench.records import Model
from sdbench.run.context import RunContext, check_models, check_weights, slow_dtype_notes, store_and_jobs
from sdbench.run.recording import build_subject, write_record
from sdbench.run.requirements import fetch_evaluators, sizes_text
from sdbench.scenes import embedded
from sdbench.store import Store
from sdbench.tables import join_words

T = TypeVar("T")


def run(specs: Sequence[ModelSpec], context: RunContext) -> list[Path]:
    """Measure models, and return their record folders, in the order of `specs`.

    A teacher among them is scored first, since the others are compared with its scores and images.

    Raises:
        UserError: see `fetch_models`.
        PartialError: a model cannot be drawn or timed, or its record cannot be written; what could be measured is recorded.
    """
    ordered = sorted(fetch_models(specs, context), key=lambda spec: spec.name != context.suite.teacher_name)
    models = {spec.name: describe_model(spec, context) for spec in ordered}
    if context.with_quality:
        for lacking in fetch_evaluators(context.suite.own_metrics):  # told before hours of drawing
            print_note(f"missing: {lacking}")

    def draw_all(spec: ModelSpec) -> tuple[dict[str, Any], tuple[Store, list[Job]] | None]:
        scheduler = describe_scheduler(spec, context)
        return scheduler, _draw_images(spec, models[spec.name], context) if context.with_quality else None

    drawn, refused = _try_each(ordered, draw_all)
    sound = [spec for spec in ordered if spec.name in drawn]
    probed, untimed = _probe(sound, models, context)
    if not context.with_quality:
        sound = [spec for spec in sound if spec.name not in untimed]

    def record(spec: ModelSpec) -> Path:
        (scheduler, images), model = drawn[spec.name], models[spec.name]
        own = replace(context, only="quality") if spec.name in untimed else context  # keeps what an earlier run measured
        return write_record(model, own, build_subject(model, own, *images) if images else None, probed, scheduler)

    with evaluators_on(context.device):
        folders, unwritten = _try_each(sound, record)
    errors, teacher = refused | untimed | unwritten, context.suite.teacher_name
    if teacher in errors.keys() - folders.keys() and folders and not context.suite.other_suite:
        errors[teacher] += " (so the records of the others may lack what compares them with it)"
    if errors:
        raise PartialError(_join_errors(errors), [*folders.values()])
    return [folders[spec.name] for spec in specs]


def draw(specs: Sequence[ModelSpec], context: RunContext, part: tuple[int, int]) -> dict[str, int]:
    """Draw a part of the images of models, and score nothing: for processes that share the folder of runs, such as one per GPU.

    Args:
        part: see `select_part`.

    Returns:
        By name of a model, the number of its images that are still missing.

    Raises:
        UserError: see `fetch_models`.
        PartialError: images of a model cannot be drawn; those of the others are.
    """

    def draw_part(spec: ModelSpec) -> int:
        store, jobs = _draw_images(spec, describe_model(spec, context), context, part)
        print_note(f"{spec.name}: images are in {store.folder}")
        return len(store.missing([job.image_id for job in jobs]))

    missing, refused = _try_each(fetch_models(specs, context), draw_part)
    if refused:
        raise PartialError(_join_errors(refused), [])
    return missing


def _probe(specs: Sequence[ModelSpec], models: Mapping[str, Model], context: RunContext) -> tuple[ProbeResult, dict[str, str]]:
    """Latency and memory of the models whose files have not changed, and by name the errors of the others.

    Drawing took hours, in which a trainer may have replaced or deleted a model's files. The images of all are still scored.
    """

    def check(spec: ModelSpec) -> None:
        _check_unchanged(spec, models[spec.name], context)

    asked = [spec for spec in specs if spec.source != "rendered"] if context.probes else []
    unchanged, errors = _try_each(asked, check)
    timed = [spec for spec in asked if spec.name in unchanged]
    try:
        probed = run_probes(timed, context)
    except (UserError, OSError) as error:
        probed = ProbeResult({}, "")
        errors |= {spec.name: str(error) for spec in timed}
    else:
        errors |= _try_each(timed, check)[1]
    sound = {name: values for name, values in probed.values.items() if name not in errors}
    return replace(probed, values=sound), {name: f"latency and memory: {error}" for name, error in errors.items()}


def _try_each(specs: Sequence[ModelSpec], work: Callable[[ModelSpec], T]) -> tuple[dict[str, T], dict[str, str]]:
    """What `work` returns for each model, and its errors, both by name: a model that cannot be measured does not stop the others."""
    done, errors = {}, {}
    for spec in specs:
        try:
            done[spec.name] = work(spec)
        except (UserError, OSError) as error:
            errors[spec.name] = str(error)
        free_memory()  # of the model, or of the images
    return done, errors


def _join_errors(errors: Mapping[str, str]) -> str:
    """The errors of models by name, as text; one of several models, such as too little memory, is said once."""
    names: dict[str, list[str]] = {}
    for name, error in errors.items():
        names.setdefault(error, []).append(name)
    return "\n".join(f"{join_words(those)}: {error}" for error, those in names.items())


def fetch_models(specs: Sequence[ModelSpec], context: RunContext) -> list[ModelSpec]:
    """Fetch the missing files of models, and return the models, those of the Hub with the architecture that their files show.

    Raises:
        UserError: a model is of another family or damaged, the Hub cannot be reached, or see `check_prediction`.
    """
    check_models(specs, context.suite)
    for note in slow_dtype_notes(context):
        print_note(note)
    dtype = context.sampling.dtype  # timings in other dtypes cast this copy of the weights, which need not be their own
    files = dict.fromkeys(itertools.chain.from_iterable(missing_files(spec, dtype=dtype) for spec in specs))
    if files:  # models of one base share its files
        print_note(f"fetching {sizes_text(files)}")
    for spec in specs:
        fetch(spec, dtype=dtype)
    for spec in specs:
        if spec.source == "embedded":
            embedded.verified_path(spec.location)
    fetched = [with_cached_architecture(spec) for spec in specs]
    check_models(fetched, context.suite)
    check_weights(fetched, dtype)
    for spec in fetched if context.with_quality else ():
        schedulers.check_prediction(spec, context.sampling)
        for note in schedulers.sampling_notes(spec, context.sampling, context.pipelines.get(spec.name)):
            print_note(note)
    return fetched


def describe_model(spec: ModelSpec, context: RunContext) -> Model:
    """The model as records store it. Its weights are digested once per run, so that a whole record is of the same weights.

    Raises:
        UserError: see `weights_digest`.
    """
    digest = weights_digest(spec, dtype=context.sampling.dtype)
    return Model(name=spec.name, architecture=spec.architecture, source=spec.origin, weights_digest=digest, label=spec.label)


class ImageGenerator:
    """Makes one model's images of a suite; the model is loaded once the first image is missing."""

    def __init__(self, spec: ModelSpec, model: Model, context: RunContext) -> None:
        self.spec, self.model, self.context = spec, model, context
        self.store, self.jobs = store_and_jobs(model, context)
        self._make: Callable[[list[Job]], U8] | None = None

    def draw(self, jobs: list[Job]) -> None:
        """Make those of these images that the store lacks.

        Raises:
            UserError: the device has too little memory or fails, or the model's files were replaced since they were digested; or see
                `load`, `make_sampler` and `generate`.
        """
        if not self.store.missing([job.image_id for job in jobs]):
            return
        release_evaluators()  # those of the look before, beside which the model may not fit
        batch, device = self.context.sampling.batch, self.context.device
        fewer = ["draw fewer with --batch, which makes the suite one of its own"] if batch > 1 else []
        try:
            with explain_out_of_memory(device, "to load the model"):
                self._make = self._make or self._load()
            with explain_out_of_memory(device, f"to draw {batch} images at once", fewer):
                generate(jobs, self.store, batch, self._make, self.spec.name)
        except torch.AcceleratorError as error:
            raise UserError(
                f"the GPU failed while images were drawn ({describe_error(error)}); run again, which keeps those drawn"
            ) from error

    def _load(self) -> Callable[[list[Job]], U8]:
        if self.spec.source == "rendered":
            return render_scenes
        sampling, pipeline = self.context.sampling, self.context.pipelines.get(self.spec.name)
        if pipeline is None:
            pipeline = load(self.spec, dtype=sampling.dtype, device=self.context.device)
            for network in (getattr(pipeline, part) for part in CLASSES):
                for tensor in (*network.parameters(), *network.buffers()):
                    if tensor.is_cpu:  # it may be mapped from its file, into which a trainer may write while images are drawn
                        tensor.data = tensor.data.clone()
            # The models before it may have taken hours, in which a trainer wrote its next checkpoint.
            _check_unchanged(self.spec, self.model, self.context)
        return make_sampler(pipeline, sampling, self.context.suite.noise)


def _check_unchanged(spec: ModelSpec, model: Model, context: RunContext) -> None:
    """Check that a model's weights are still those that its description has the digest of.

    Raises:
        UserError: they are not; or see `weights_digest`.
    """
    if weights_digest(spec, dtype=context.sampling.dtype) != model.weights_digest:
        raise UserError(
            f"the files of {spec.name!r} in {spec.location} changed since this run began; run again, on a copy if a trainer still writes "
            "there"
        )


def _draw_images(spec: ModelSpec, model: Model, context: RunContext, part: tuple[int, int] = (1, 1)) -> tuple[Store, list[Job]]:
    generator = ImageGenerator(spec, model, context)
    store = generator.store
    missing = store.missing([job.image_id for job in generator.jobs])
    if missing and (others := store.elsewhere(missing)):
        print_note(
            f"{spec.name}: {join_words([*map(str, others)])} hold images that {store.folder} lacks, but were drawn with another version, "
            "batch size or kind of device, or under another name; they are drawn again"
        )
    generator.draw(select_part(generator.jobs, context.sampling.batch, part))
    return store, generator.jobs


def run_probes(specs: Sequence[ModelSpec], context: RunContext) -> ProbeResult:
    """Measure latency and memory of the models in turns; empty for rendered images, and where the suite or the run has no probes.

    A second command that measures in this folder of runs waits until the first has ended: at once, both would time each other too.

    Raises:
        UserError: see `locked` and `driver.measure`.
    """
    timed = [spec for spec in specs if spec.source != "rendered"]
    if context.probes is None or not timed:
        return ProbeResult({}, "")
    kept = context.runs / "probes"
    with locked(kept / ".lock"):
        return driver.measure(
            timed,
            context.sampling,
            context.probes,
            work=context.rounds or kept,
            device=context.device,
            settings=context.settings,
            profile=context.profile,
        )


def describe_scheduler(spec: ModelSpec, context: RunContext) -> dict[str, Any]:
    """The scheduler of a model's images of the suite, see `schedulers.describe`."""
    return schedulers.describe(spec, context.sampling, context.pipelines.get(spec.name))
