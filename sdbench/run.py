"""Suite x models -> records. Each step does only what is missing, and writes nothing that another step would have to undo."""

import gc
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sdbench import records
from sdbench.errors import UserError
from sdbench.generate import DTYPES, Job, generate, jobs, rendered, sampler
from sdbench.machine import environment, this_machine
from sdbench.models.catalogue import TEACHERS
from sdbench.models.digest import weights_digest
from sdbench.models.loading import load
from sdbench.models.spec import ModelSpec
from sdbench.probes import driver
from sdbench.protocols.base import Subject
from sdbench.records import Machine, Model, Record, Scores, Value
from sdbench.scenes import embedded
from sdbench.score import score
from sdbench.store import U8, Store, digest
from sdbench.suites import Sampling, Suite, suites_folder
from sdbench.thumbnails import worth_keeping
from sdbench.weights import fetch

THUMBNAIL_PX = 256


@dataclass(frozen=True)
class Bench:
    """A suite on this machine, and where its output goes."""

    suite: Suite
    sampling: Sampling
    device: str
    results: Path
    runs: Path
    quality: bool = True
    probes: bool = True


def bench(suite: Suite, *, device: str, results: Path, runs: Path, only: str | None = None) -> Bench:
    """Check that the suite can be run and the results be written, before anything slow begins.

    Args:
        only: "quality" or "probes" for one half of the suite, None for both.
    """
    if suite.prompts is None or suite.sampling is None or suite.family is None:
        raise UserError(
            f"suite {suite.name!r} is a part: it has no prompts and no sampling of its own; run one that includes it, such as 'quality' or 'standard'"
        )
    for folder in (results, runs):
        _check_writable(folder)
    return Bench(suite, suite.sampling, device, results, runs, only != "probes", only != "quality")


def run(specs: Sequence[ModelSpec], setting: Bench) -> list[Path]:
    """Measure models => their record folders, in the order of `specs`.

    The family's teacher goes first where it is among them, since win rates are against its pictures.
    """
    for spec in specs:
        if spec.family != setting.suite.family:
            raise UserError(
                f"{spec.name!r} is of family {spec.family!r}, suite {setting.suite.name!r} is for {setting.suite.family!r}; rows of two families are never compared"
            )
    teacher = TEACHERS[setting.suite.family or ""]
    ordered = sorted(specs, key=lambda spec: spec.name != teacher)
    pictures = {spec.name: _pictures(spec, setting) for spec in ordered} if setting.quality else {}
    probed = _probed([spec for spec in ordered if spec.source != "rendered"], setting) if setting.probes else {}
    made = {spec.name: _record(spec, setting, pictures.get(spec.name), probed.get(spec.name, [])) for spec in ordered}
    return [made[spec.name] for spec in specs]


def _pictures(spec: ModelSpec, setting: Bench) -> tuple[Store, list[Job]]:
    if spec.source == "embedded":
        embedded.checked(spec.location)
    weights = weights_digest(spec, dtype=setting.sampling.dtype)
    todo = jobs(setting.suite, setting.sampling, weights)
    identity = {"model": spec.name, "weights": weights, "device": setting.device, "batch": setting.sampling.batch}
    store = Store(setting.runs, identity)
    if spec.source == "rendered":
        generate(todo, store, setting.sampling.batch, rendered, spec.name)
    elif store.missing([job.image for job in todo]):
        fetch(spec, dtype=setting.sampling.dtype)
        pipeline = load(spec, dtype=DTYPES[setting.sampling.dtype], device=setting.device)
        generate(todo, store, setting.sampling.batch, sampler(pipeline, setting.sampling, setting.suite.noise), spec.name)
        del pipeline
        gc.collect()
        if setting.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return store, todo


def _probed(specs: Sequence[ModelSpec], setting: Bench) -> dict[str, list[Value]]:
    if setting.suite.probes is None or not specs:
        return {}
    work = setting.runs / "probes"
    return driver.measure(
        specs,
        setting.sampling,
        setting.suite.probes,
        work=work,
        suites=suites_folder(),
        device=setting.device,
        dtype=setting.sampling.dtype,
    )


def _record(spec: ModelSpec, setting: Bench, pictures: tuple[Store, list[Job]] | None, probed: list[Value]) -> Path:
    model = Model(
        name=spec.name,
        architecture=spec.architecture,
        source=spec.origin,
        weights_digest=weights_digest(spec, dtype=setting.sampling.dtype),
        label=spec.label,
    )
    machine = this_machine(setting.device)
    values, scores, thumbnails = _kept_quality(model, machine, setting)
    if pictures is not None:
        store, todo = pictures
        subject = subject_of(store, todo, setting.runs)
        subject = replace(subject, teacher=_teacher_scores(setting), is_teacher=spec.name == TEACHERS[spec.family])
        values, scores = score(subject, setting.suite.metrics.get(setting.suite.family or "scenes", ()))
        thumbnails = {f"{todo[row].prompt_id}.png": _thumbnail(subject.pixels[row]) for row in worth_keeping(scores, subject.teacher)}
    record = Record(
        family=spec.family,
        suite=setting.suite.id,
        model=model,
        machine=machine,
        environment=environment(),
        created=records.now(),
        n_images=len(scores.prompt_ids),
        values=(*values, *(probed if setting.probes else _kept_probes(model, machine, setting))),
        sampling=setting.sampling.model_dump(),
    )
    return _unless_same(record, scores, thumbnails, setting.results)


def _kept(model: Model, machine: Machine, setting: Bench) -> tuple[Path, Record] | None:
    """The record that this run adds to: of the same suite, weights and machine."""
    of_suite = records.newest(setting.results, setting.suite.family)
    return next((kept for kept in of_suite if (kept[1].suite, kept[1].model, kept[1].machine) == (setting.suite.id, model, machine)), None)


def _kept_quality(model: Model, machine: Machine, setting: Bench) -> tuple[list[Value], Scores, dict[str, bytes]]:
    """What an earlier run found of the pictures, so that a run of the probes alone does not lose it."""
    kept = None if setting.quality else _kept(model, machine, setting)
    if kept is None:
        return [], Scores([], [], {}), {}
    path, record = kept
    thumbnails = {file.name: file.read_bytes() for file in sorted((path / "images").glob("*.png"))}
    return [value for value in record.values if value.kind in {"score", "set"}], records.read(path)[1], thumbnails


def _kept_probes(model: Model, machine: Machine, setting: Bench) -> list[Value]:
    """Likewise the probes, for a run of the pictures alone."""
    kept = _kept(model, machine, setting)
    return [value for value in kept[1].values if value.kind in {"probe", "count"}] if kept else []


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
    return record.model_dump(exclude={"created", "environment"})


def _teacher_scores(setting: Bench) -> Scores | None:
    for path, record in records.newest(setting.results, setting.suite.family):
        if record.model.name == TEACHERS[record.family] and record.suite == setting.suite.id and record.n_images:
            return records.read(path)[1]
    return None


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


def external(images: Sequence[Path], pixels: U8, prompts: Sequence[str], runs: Path) -> Subject:
    """Pictures made elsewhere, kept as PNG in a store of their own, to be scored like any others."""
    names = [digest([path.name, pixels[row].tobytes().hex()]) for row, path in enumerate(images)]
    store = Store(runs, {"pictures": names})
    for name, picture in zip(names, np.asarray(pixels), strict=True):
        if store.missing([name]):
            store.put(name, picture)
    todo = [Job(f"{row:05d}", 0, prompt, name) for row, (prompt, name) in enumerate(zip(prompts, names, strict=True))]
    return subject_of(store, todo, runs)
