"""What was measured to records: pictures scored, joined with what was probed and with what earlier runs found of the rest."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from sdbench import records, tables
from sdbench.arrays import U8
from sdbench.generate import Job, jobs
from sdbench.machine import environment, this_machine
from sdbench.models.catalogue import TEACHERS
from sdbench.models.spec import ModelSpec
from sdbench.probes.driver import Probed
from sdbench.protocols.base import Subject
from sdbench.records import Looks, Machine, Model, NamedTeacher, Record, Scores, Value
from sdbench.run.acceptance import judged
from sdbench.run.context import Bench, place_of
from sdbench.run.thumbnails import worth_keeping
from sdbench.score import named, score
from sdbench.settings import BASE
from sdbench.store import Store
from sdbench.suites import Suite

THUMBNAIL_PX = 256


def record_of(
    model: Model, setting: Bench, subject: Subject | None, probed: Probed, scheduler: Mapping[str, Any], looks: Looks | None = None
) -> Path:
    """Score the pictures, join what was probed, and write the record, unless the newest of its row says the same already => its folder.

    Args:
        model: what was measured.
        setting: the suite it was measured under.
        subject: the pictures to score; None to keep what an earlier record says of them.
        probed: latency and memory, of other models too.
        scheduler: as of `scheduler_of`.
        looks: of a run that stopped when sure.
    """
    machine = this_machine(setting.device)
    of_row = _of_row(model, machine, setting)
    kept = next((found for found in reversed(of_row) if _is_of(found[1].model, model)), None)  # what this run adds to
    values, scores, thumbnails = _kept_quality(None if setting.quality else kept)
    if subject is not None:
        values, scores = score(subject, setting.suite.own_metrics)
        values = judged(values, setting.suite, setting.runs)
        shown = worth_keeping(scores, subject.teacher)
        drawn = subject.store.read([subject.images[row] for row in shown])
        thumbnails = {f"{subject.prompt_ids[row]}.png": _thumbnail(picture) for row, picture in zip(shown, drawn, strict=True)}
    new, (earlier, earlier_turns) = probed.values.get(model.name, []), _kept_probes(kept, setting)
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
        sampling={} if model.is_made_elsewhere else setting.sampling.model_dump(mode="json"),
        scheduler=dict(scheduler),
        noise={} if model.is_made_elsewhere else setting.suite.noise.model_dump(),
        teacher=NamedTeacher(model=teacher_of(setting.suite), suite=setting.suite.of_teacher().id) if setting.suite.teacher else None,
        prompts=setting.suite.prompts_described(),
        run=turns.pop() if len(turns) == 1 else "",
        looks=looks,
    )
    if of_row and _what_it_says(of_row[-1][1]) == _what_it_says(record):
        return of_row[-1][0]
    return records.write(record, scores, thumbnails, setting.results)


def to_score(model: Model, setting: Bench, store: Store, todo: Sequence[Job]) -> Subject:
    """A model's pictures of these jobs, with what the suite compares them with: the reference, the teacher's scores, and its pictures where they still are."""
    theirs, name = setting.suite.of_teacher(), teacher_of(setting.suite)
    subject = replace(
        subject_of(store, todo, setting.runs),
        is_teacher=model.name == name and theirs is setting.suite,
        is_elsewhere=model.is_made_elsewhere,
        reference=setting.suite.reference,
        original_name=f"{name} under {theirs.name}@{theirs.version}",
    )
    if not (found := _of_teacher(setting, todo)):
        return subject
    folder, teacher, drawn = found
    digest = (teacher.model.weights_digest or folder.name)[:24]
    return replace(subject, teacher=records.read_scores(folder), original=drawn, original_digest=digest)


def lacking(specs: Sequence[ModelSpec], setting: Bench) -> list[str]:
    """What a run of these models will find neither of the teacher's scores nor of its pictures, in words, and how to get it."""
    theirs, name = setting.suite.of_teacher(), teacher_of(setting.suite)
    if theirs is setting.suite and name in {spec.name for spec in specs}:
        return []
    found = _of_teacher(setting, jobs(setting.suite, setting.sampling, None))
    here = {"win rates": found, "agreement": found and found[2]}
    against = [
        "win rates" if each.name.startswith("win_rate.") else "agreement"
        for each in named(setting.suite.own_metrics)
        if each.against_teacher
    ]
    if not (missing := [kind for kind in dict.fromkeys(against) if not here[kind]]):
        return []
    what, way = "pictures" if found else "record", f"add --model {name}"
    if theirs is not setting.suite:
        way = f"first sdbench run --model {name} --suite {theirs.name}"
    return [
        f"{what} of the teacher, {name} under {theirs.name}@{theirs.version}, so {tables.join_words(missing)} with it will be missing: {way}"
    ]


def _of_teacher(setting: Bench, todo: Sequence[Job]) -> tuple[Path, Record, Subject | None] | None:
    """The newest record of the teacher's pictures, if there is one, and its pictures of the same prompts where they still are."""
    theirs = setting.suite.of_teacher()
    assert theirs.sampling
    of_family = records.find(setting.results, setting.suite.family or "", theirs.id, teacher_of(setting.suite))
    kept = [found for found in of_family if found[1].n_images]
    if not kept:
        return None
    folder, record = kept[-1]
    return folder, record, _drawn(record.model, replace(setting, suite=theirs, sampling=theirs.sampling), todo)


def teacher_of(suite: Suite) -> str:
    """The name of the model that the others are compared with."""
    return suite.teacher.model if suite.teacher else TEACHERS[suite.family or ""]


def probes_of(record: Record) -> list[Value]:
    """What a record says of latency, memory and size."""
    return [value for value in record.values if not value.is_picture_metric]


def _of_row(model: Model, machine: Machine, setting: Bench) -> list[tuple[Path, Record]]:
    """The records of a model's row of the leaderboard, whatever its weights were, oldest first."""
    of_model = records.find(setting.results, setting.suite.family or "", setting.suite.id, model.name, model.label)
    return [found for found in of_model if found[1].machine.machine_class == machine.machine_class]


def _is_of(one: Model, other: Model) -> bool:
    """Whether two are the same, whatever commit or folder their weights came with."""
    return one.model_copy(update={"source": other.source}) == other


def _kept_quality(kept: tuple[Path, Record] | None) -> tuple[list[Value], Scores, dict[str, bytes]]:
    """What an earlier run found of the pictures, so that a run of the probes alone does not lose it."""
    if kept is None:
        return [], Scores([], [], {}), {}
    path, record = kept
    thumbnails = {file.name: file.read_bytes() for file in sorted((path / "images").glob("*.png"))}
    return [value for value in record.values if value.is_picture_metric], records.read(path)[1], thumbnails


def _kept_probes(kept: tuple[Path, Record] | None, setting: Bench) -> tuple[list[Value], str]:
    """Likewise the probes of settings that this run does not measure, and the turns that they were taken in."""
    if kept is None:
        return [], ""
    measured = setting.timed
    return [value for value in probes_of(kept[1]) if _label(value) not in measured], kept[1].run


def _in_order(probed: list[Value], suite: Suite) -> list[Value]:
    """The settings in the suite's order, whichever were measured last."""
    order = {label: number for number, label in enumerate(suite.probes.chosen() if suite.probes else ())}
    return sorted(probed, key=lambda value: order.get(_label(value), len(order)))


def _label(value: Value) -> str:
    return value.name.partition("@")[2] or BASE


def _what_it_says(record: Record) -> dict[str, Any]:
    said_by_digests = {"noise", "scheduler", "teacher"}
    return record.model_dump(exclude={"created", "environment", "run", *said_by_digests})


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
