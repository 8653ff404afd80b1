"""Suite x models -> records. Each step does only what is missing, and writes nothing that another step would have to undo."""

import gc
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sdbench import schedulers
from sdbench.arrays import U8
from sdbench.assets.pipelines import fetch
from sdbench.encoders.memory import evaluators
from sdbench.generate import DTYPES, Job, generate, make_sampler, render_scenes
from sdbench.models.digest import weights_digest
from sdbench.models.loading import load
from sdbench.models.spec import ModelSpec, recognised
from sdbench.probes import driver
from sdbench.probes.driver import ProbeResult
from sdbench.records import Model
from sdbench.run.context import RunContext, check_models, dtypes, place_of
from sdbench.run.recording import record_of, teacher_of, to_score
from sdbench.scenes import embedded
from sdbench.store import Store
from sdbench.suites import find


def run(specs: Sequence[ModelSpec], context: RunContext) -> list[Path]:
    """Measure models => their record folders, in the order of `specs`.

    The teacher goes first where it is among them, since win rates are against its pictures.
    """
    ordered = sorted(ready(specs, context), key=lambda spec: spec.name != teacher_of(context.suite))
    models = {spec.name: model_of(spec, context) for spec in ordered}
    pictures = {spec.name: _pictures(spec, models[spec.name], context) for spec in ordered} if context.quality else {}
    probed = probe(ordered, context)
    drawn_by = {spec.name: scheduler_of(spec, context) for spec in ordered}
    made = {}
    with evaluators(context.device):
        for name, model in models.items():
            subject = to_score(model, context, *pictures[name]) if name in pictures else None
            made[name] = record_of(model, context, subject, probed, drawn_by[name])
    return [made[spec.name] for spec in specs]


def ready(specs: Sequence[ModelSpec], context: RunContext) -> list[ModelSpec]:
    """Fetch what models lack => them, those of the Hub as what they show to be once they are here.

    Raises:
        UserError: one is of another family or damaged, two have one name, or the Hub cannot be reached.
    """
    check_models(specs, context.suite)
    for spec, dtype in itertools.product(specs, dtypes(context.sampling, context.timed)):
        fetch(spec, dtype=dtype)
    for spec in specs:
        if spec.source == "embedded":
            embedded.checked(spec.location)
    known = [recognised(spec) for spec in specs]
    check_models(known, context.suite)
    return known


def model_of(spec: ModelSpec, context: RunContext) -> Model:
    """What records say of a model, its weights read for their digest: once in a run, so that all of a record is of the same weights."""
    digest = weights_digest(spec, dtype=context.sampling.dtype)
    return Model(name=spec.name, architecture=spec.architecture, source=spec.origin, weights_digest=digest, label=spec.label)


class PictureGenerator:
    """Where one model's pictures of a suite are made, those that are asked for; the model is loaded when the first is missing."""

    def __init__(self, spec: ModelSpec, model: Model, context: RunContext) -> None:
        self.spec, self.context = spec, context
        self.store, self.todo = place_of(model, context)
        self._make: Callable[[list[Job]], U8] | None = None

    def draw(self, part: list[Job]) -> None:
        """Make what is missing of these pictures."""
        if self.store.missing([job.image for job in part]):
            self._make = self._make or self._ready()
            generate(part, self.store, self.context.sampling.batch, self._make, self.spec.name)

    def _ready(self) -> Callable[[list[Job]], U8]:
        if self.spec.source == "rendered":
            return render_scenes
        sampling, pipeline = self.context.sampling, self.context.loaded.get(self.spec.name)
        if pipeline is None:
            pipeline = load(self.spec, dtype=DTYPES[sampling.dtype], device=self.context.device)
        return make_sampler(pipeline, sampling, self.context.suite.noise)


def _pictures(spec: ModelSpec, model: Model, context: RunContext) -> tuple[Store, list[Job]]:
    generator = PictureGenerator(spec, model, context)
    generator.draw(generator.todo)
    store, todo = generator.store, generator.todo
    del generator  # and the model with it
    gc.collect()
    if context.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return store, todo


def probe(specs: Sequence[ModelSpec], context: RunContext) -> ProbeResult:
    """Latency and memory, measured in turns; nothing of rendered pictures, nor where the suite has no probes."""
    timed = [spec for spec in specs if spec.source != "rendered"]
    if context.suite.probes is None or not context.probes or not timed:
        return ProbeResult({}, "")
    return driver.measure(
        timed,
        context.sampling,
        context.suite.probes,
        work=context.runs / "probes",
        suites=find(driver.BENCHMARK_FILE).parent,
        device=context.device,
        settings=context.settings,
        profile=context.profile,
    )


def scheduler_of(spec: ModelSpec, context: RunContext) -> dict[str, Any]:
    """What draws a model's pictures of a suite, as records have it."""
    return schedulers.describe(spec, context.sampling, context.loaded.get(spec.name))
