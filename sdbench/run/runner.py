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
from sdbench.encoders.memory import evaluators_on
from sdbench.generate import DTYPES, Job, generate, rendered, sampler
from sdbench.models.digest import weights_digest
from sdbench.models.loading import load
from sdbench.models.spec import ModelSpec, with_cached_architecture
from sdbench.probes import driver
from sdbench.probes.driver import Probed
from sdbench.records import Model
from sdbench.run.context import Bench, check_models, dtypes, place_of
from sdbench.run.recording import record_of, teacher_of, to_score
from sdbench.scenes import embedded
from sdbench.store import Store
from sdbench.suites import find


def run(specs: Sequence[ModelSpec], setting: Bench) -> list[Path]:
    """Measure models => their record folders, in the order of `specs`.

    The teacher goes first where it is among them, since win rates are against its pictures.
    """
    ordered = sorted(ready(specs, setting), key=lambda spec: spec.name != teacher_of(setting.suite))
    models = {spec.name: model_of(spec, setting) for spec in ordered}
    pictures = {spec.name: _pictures(spec, models[spec.name], setting) for spec in ordered} if setting.quality else {}
    probed = probe(ordered, setting)
    drawn_by = {spec.name: scheduler_of(spec, setting) for spec in ordered}
    made = {}
    with evaluators_on(setting.device):
        for name, model in models.items():
            subject = to_score(model, setting, *pictures[name]) if name in pictures else None
            made[name] = record_of(model, setting, subject, probed, drawn_by[name])
    return [made[spec.name] for spec in specs]


def ready(specs: Sequence[ModelSpec], setting: Bench) -> list[ModelSpec]:
    """Fetch what models lack => them, those of the Hub as what they show to be once they are here.

    Raises:
        UserError: one is of another family or damaged, two have one name, or the Hub cannot be reached.
    """
    check_models(specs, setting.suite)
    for spec, dtype in itertools.product(specs, dtypes(setting.sampling, setting.timed)):
        fetch(spec, dtype=dtype)
    for spec in specs:
        if spec.source == "embedded":
            embedded.verified_path(spec.location)
    known = [with_cached_architecture(spec) for spec in specs]
    check_models(known, setting.suite)
    return known


def model_of(spec: ModelSpec, setting: Bench) -> Model:
    """What records say of a model, its weights read for their digest: once in a run, so that all of a record is of the same weights."""
    digest = weights_digest(spec, dtype=setting.sampling.dtype)
    return Model(name=spec.name, architecture=spec.architecture, source=spec.origin, weights_digest=digest, label=spec.label)


class Easel:
    """Where one model's pictures of a suite are made, those that are asked for; the model is loaded when the first is missing."""

    def __init__(self, spec: ModelSpec, model: Model, setting: Bench) -> None:
        self.spec, self.setting = spec, setting
        self.store, self.todo = place_of(model, setting)
        self._make: Callable[[list[Job]], U8] | None = None

    def draw(self, part: list[Job]) -> None:
        """Make what is missing of these pictures."""
        if self.store.missing([job.image for job in part]):
            self._make = self._make or self._ready()
            generate(part, self.store, self.setting.sampling.batch, self._make, self.spec.name)

    def _ready(self) -> Callable[[list[Job]], U8]:
        if self.spec.source == "rendered":
            return rendered
        sampling, pipeline = self.setting.sampling, self.setting.loaded.get(self.spec.name)
        if pipeline is None:
            pipeline = load(self.spec, dtype=DTYPES[sampling.dtype], device=self.setting.device)
        return sampler(pipeline, sampling, self.setting.suite.noise)


def _pictures(spec: ModelSpec, model: Model, setting: Bench) -> tuple[Store, list[Job]]:
    easel = Easel(spec, model, setting)
    easel.draw(easel.todo)
    store, todo = easel.store, easel.todo
    del easel  # and the model with it
    gc.collect()
    if setting.device.startswith("cuda"):
        torch.cuda.empty_cache()
    return store, todo


def probe(specs: Sequence[ModelSpec], setting: Bench) -> Probed:
    """Latency and memory, measured in turns; nothing of rendered pictures, nor where the suite has no probes."""
    timed = [spec for spec in specs if spec.source != "rendered"]
    if setting.suite.probes is None or not setting.probes or not timed:
        return Probed({}, "")
    return driver.measure(
        timed,
        setting.sampling,
        setting.suite.probes,
        work=setting.runs / "probes",
        suites=find(driver.BENCHMARKS).parent,
        device=setting.device,
        settings=setting.settings,
        profile=setting.profile,
    )


def scheduler_of(spec: ModelSpec, setting: Bench) -> dict[str, Any]:
    """What draws a model's pictures of a suite, as records have it."""
    return schedulers.resolved(spec, setting.sampling, setting.loaded.get(spec.name))
