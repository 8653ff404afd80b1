"""Suite x models -> records. Each step does only what is missing, and writes nothing that another step would have to undo."""

import gc
import io
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sdbench import records
from sdbench.accept import judged
from sdbench.encoders.memory import evaluators
from sdbench.errors import UserError
from sdbench.generate import DTYPES, Job, generate, jobs, rendered, sampler
from sdbench.machine import environment, this_machine
from sdbench.models.catalogue import TEACHERS
from sdbench.models.digest import weights_digest
from sdbench.models.loading import load
from sdbench.models.spec import ModelSpec, recognised
from sdbench.pipelines import fetch
from sdbench.probes import driver
from sdbench.probes.driver import Probed
from sdbench.protocols.base import Subject
from sdbench.records import Looks, Machine, Model, Record, Scores, Value
from sdbench.scenes import embedded
from sdbench.score import named, score
from sdbench.settings import BASE, Sampling, Setting
from sdbench.store import U8, Store
from sdbench.suites import Suite, find
from sdbench.thumbnails import worth_keeping

THUMBNAIL_PX = 256


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
    records.newest(results, suite.family)  # so does a damaged record, which the new ones could not be joined to
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
    if suite.probes:
        suite.probes.chosen(settings)
    named(suite.own_metrics)


def run(specs: Sequence[ModelSpec], setting: Bench) -> list[Path]:
    """Measure models => their record folders, in the order of `specs`.

    The teacher goes first where it is among them, since win rates are against its pictures.
    """
    ordered = sorted(ready(specs, setting), key=lambda spec: spec.name != _teacher(setting.suite))
    models = {spec.name: model_of(spec, setting) for spec in ordered}
    pictures = {spec.name: _pictures(spec, models[spec.name], setting) for spec in ordered} if setting.quality else {}
    probed = probe(ordered, setting)
    made = {}
    with evaluators(setting.device):
        for name, model in models.items():
            subject = to_score(model, setting, *pictures[name]) if name in pictures else None
            made[name] = record_of(model, setting, subject, probed)
    return [made[spec.name] for spec in specs]


def ready(specs: Sequence[ModelSpec], setting: Bench) -> list[ModelSpec]:
    """Fetch what models lack => them, those of the Hub as what they show to be once they are here.

    Raises:
        UserError: one is of another family or damaged, two have one name, or the Hub cannot be reached.
    """
    check_models(specs, setting.suite)
    dtypes = {setting.sampling.dtype} if setting.quality else set()
    dtypes |= {each.dtype or setting.sampling.dtype for each in _settings(setting).values()}
    for spec, dtype in itertools.product(specs, sorted(dtypes)):
        fetch(spec, dtype=dtype)
    for spec in specs:
        if spec.source == "embedded":
            embedded.checked(spec.location)
    known = [recognised(spec) for spec in specs]
    check_models(known, setting.suite)
    return known


def model_of(spec: ModelSpec, setting: Bench) -> Model:
    """What records say of a model, its weights read for their digest: once in a run, so that all of a record is of the same weights."""
    digest = weights_digest(spec, dtype=setting.sampling.dtype)
    return Model(name=spec.name, architecture=spec.architecture, source=spec.origin, weights_digest=digest, label=spec.label)


def check_models(specs: Sequence[ModelSpec], suite: Suite) -> None:
    """See that models can be measured under a suite, and told apart.

    Raises:
        UserError: one is of another family, or two have one name.
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
        by_name[spec.name] = spec


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


def place_of(model: Model, setting: Bench) -> tuple[Store, list[Job]]:
    """Where a model's pictures of a suite lie, or will."""
    kind, _, _ = setting.device.partition(":")  # two cards of one machine draw the same
    identity = {"model": model.name, "weights": model.weights_digest, "device": kind, "batch": setting.sampling.batch}
    return Store(setting.runs, identity), jobs(setting.suite, setting.sampling, model.weights_digest)


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


def record_of(model: Model, setting: Bench, subject: Subject | None, probed: Probed, looks: Looks | None = None) -> Path:
    """Score the pictures, join what was probed, and write the record => its folder.

    Args:
        model: what was measured.
        setting: the suite it was measured under.
        subject: the pictures to score; None to keep what an earlier record says of them.
        probed: latency and memory, of other models too.
        looks: of a run that stopped when sure.
    """
    machine = this_machine(setting.device)
    values, scores, thumbnails = _kept_quality(model, machine, setting)
    if subject is not None:
        values, scores = score(subject, setting.suite.own_metrics)
        values = judged(values, setting.suite, setting.runs)
        shown = worth_keeping(scores, subject.teacher)
        drawn = subject.store.read([subject.images[row] for row in shown])
        thumbnails = {f"{subject.prompt_ids[row]}.png": _thumbnail(picture) for row, picture in zip(shown, drawn, strict=True)}
    new, (earlier, earlier_turns) = probed.values.get(model.name, []), _kept_probes(model, machine, setting)
    turns = {of for of, found in ((probed.turns, new), (earlier_turns, earlier)) if found}
    record = Record(
        family=setting.suite.family or "",
        suite=setting.suite.id,
        model=model,
        machine=machine,
        environment=environment(),
        created=records.now(),
        n_images=len(scores.prompt_ids),
        values=(*values, *_in_order([*new, *earlier], setting.suite)),
        sampling=setting.sampling.model_dump(mode="json"),
        prompts=setting.suite.prompts_described(),
        run=turns.pop() if len(turns) == 1 else "",
        looks=looks,
    )
    return _unless_same(record, scores, thumbnails, setting.results)


def _kept(model: Model, machine: Machine, setting: Bench) -> tuple[Path, Record] | None:
    """The record that this run adds to: of the same suite, weights and class of machine."""
    of_suite = records.newest(setting.results, setting.suite.family)
    wanted = setting.suite.id, model, machine.machine_class
    return next((kept for kept in of_suite if (kept[1].suite, kept[1].model, kept[1].machine.machine_class) == wanted), None)


def _kept_quality(model: Model, machine: Machine, setting: Bench) -> tuple[list[Value], Scores, dict[str, bytes]]:
    """What an earlier run found of the pictures, so that a run of the probes alone does not lose it."""
    kept = None if setting.quality else _kept(model, machine, setting)
    if kept is None:
        return [], Scores([], [], {}), {}
    path, record = kept
    thumbnails = {file.name: file.read_bytes() for file in sorted((path / "images").glob("*.png"))}
    return [value for value in record.values if value.kind in {"score", "set"}], records.read(path)[1], thumbnails


def _kept_probes(model: Model, machine: Machine, setting: Bench) -> tuple[list[Value], str]:
    """Likewise the probes of settings that this run does not measure, and the turns that they were taken in."""
    kept = _kept(model, machine, setting)
    if kept is None:
        return [], ""
    measured = _settings(setting)
    return [value for value in probes_of(kept[1]) if _label(value) not in measured], kept[1].run


def _settings(setting: Bench) -> Mapping[str, Setting]:
    """Settings of the probes that this run measures, by their labels."""
    return setting.suite.probes.chosen(setting.settings) if setting.probes and setting.suite.probes else {}


def _in_order(probed: list[Value], suite: Suite) -> list[Value]:
    """The settings in the suite's order, whichever were measured last."""
    order = {label: number for number, label in enumerate(suite.probes.chosen() if suite.probes else ())}
    return sorted(probed, key=lambda value: order.get(_label(value), len(order)))


def _label(value: Value) -> str:
    return value.name.partition("@")[2] or BASE


def probes_of(record: Record) -> list[Value]:
    """What a record says of latency, memory and size."""
    return [value for value in record.values if value.kind in {"probe", "count"}]


def subject_of(store: Store, todo: Sequence[Job], runs: Path) -> Subject:
    """The pictures of these jobs, to be scored."""
    return Subject(
        store,
        runs,
        [job.image for job in todo],
        [job.prompt_id for job in todo],
        [job.sample for job in todo],
        [job.prompt for job in todo],
    )


def _unless_same(record: Record, scores: Scores, thumbnails: dict[str, bytes], results: Path) -> Path:
    """Write the record, unless the newest one of this row says the same already."""
    for path, kept in records.newest(results, record.family):
        if _what_it_says(kept) == _what_it_says(record):
            return path
    return records.write(record, scores, thumbnails, results)


def _what_it_says(record: Record) -> dict[str, Any]:
    return record.model_dump(exclude={"created", "environment", "run"})


def to_score(model: Model, setting: Bench, store: Store, todo: Sequence[Job]) -> Subject:
    """A model's pictures of these jobs, with what the suite compares them with: the reference, the teacher's scores, and its pictures where they still are."""
    theirs, name = setting.suite.of_teacher(), _teacher(setting.suite)
    assert theirs.sampling
    subject = replace(
        subject_of(store, todo, setting.runs),
        is_teacher=model.name == name and theirs is setting.suite,
        reference=setting.suite.reference,
        original_name=f"{name} under {theirs.name}@{theirs.version}",
    )
    kept = [found for found in records.under(setting.results, setting.suite.family or "", theirs.id, name) if found[1].n_images]
    if not kept:
        return subject
    drawn = _drawn(kept[-1][1].model, replace(setting, suite=theirs, sampling=theirs.sampling), todo)
    return replace(subject, teacher=records.read(kept[-1][0])[1], original=drawn)


def _teacher(suite: Suite) -> str:
    """The name of the model that the others are compared with."""
    return suite.teacher.model if suite.teacher else TEACHERS[suite.family or ""]


def _drawn(model: Model, setting: Bench, todo: Sequence[Job]) -> Subject | None:
    """A measured model's pictures of the same prompts."""
    store, theirs = place_of(model, setting)
    by_key = {(job.prompt_id, job.sample): job for job in theirs}
    same = [by_key[job.prompt_id, job.sample] for job in todo]
    return None if store.missing([job.image for job in same]) else subject_of(store, same, setting.runs)


def _thumbnail(pixels: U8) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


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
