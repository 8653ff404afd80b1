"""Write records: score images, and join the values with the probes and with what earlier runs measured of the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sdbench import records, tables
from sdbench.disk import locked
from sdbench.errors import UserError
from sdbench.generate import Job, list_jobs
from sdbench.machine import environment, this_machine, version
from sdbench.models.spec import ModelSpec
from sdbench.notes import print_note
from sdbench.probes.driver import ProbeResult
from sdbench.protocols.base import Subject
from sdbench.records import (
    DRAWING_PACKAGES,
    ENCODING_PACKAGES,
    OWN_ENDING,
    TEACHER_ENDING,
    Environment,
    Looks,
    Machine,
    Model,
    NamedTeacher,
    Record,
    Scores,
    Value,
)
from sdbench.records.names import judge_of, setting_of
from sdbench.run.acceptance import add_verdicts
from sdbench.run.context import RECORDS_LOCK, RunContext, store_and_jobs
from sdbench.run.thumbnails import choose_images, thumbnail
from sdbench.score import find_protocols, score
from sdbench.store import Store
from sdbench.suites import Suite

Quality = tuple[list[Value], Scores, dict[str, bytes]]  # values of the images, per-image scores, file name -> thumbnail


def write_record(
    model: Model,
    context: RunContext,
    subject: Subject | None,
    probed: ProbeResult,
    scheduler: Mapping[str, Any],
    looks: Looks | None = None,
) -> Path:
    """Score the images, write the record of a model, and return its folder.

    Nothing is written if the newest record of the row says the same; its folder is then returned. What this run does not measure is taken
    from an earlier record of the same weights and the same software, if there is one.

    Args:
        subject: the images to score; None to take over what an earlier record says of them.
        probed: latency and memory, perhaps of other models too.
        scheduler: see `schedulers.describe`.
        looks: of a run that stopped when sure.

    Raises:
        UserError: an image cannot be read, the suite's prompts or its latent changed meanwhile, none of the metrics could be measured,
            or the record cannot be written.
    """
    machine, software = this_machine(context.device), environment()
    of_row = _records_of_row(model, machine, context)
    of_model = [found for found in of_row if _is_same_model(found[1].model, model)]
    of_software = [found for found in of_model if _software(found[1].environment) == _software(software)]
    earlier = of_software[-1] if of_software else None  # this run adds to it
    new = probed.values.get(model.name, [])
    old, old_run_id = _earlier_probes(earlier, context, new)
    if subject is None:
        values, scores, thumbnails = _earlier_quality(earlier)
    else:
        values, scores, thumbnails = _score_quality(subject, model, context)
        _check_any_measured(model, (*values, *new))
    run_ids = {run_id for run_id, found in ((probed.run_id, new), (old_run_id, old)) if found}
    record = Record(
        family=context.suite.family,
        suite=context.suite.id,
        model=model,
        machine=machine,
        environment=software,
        created=records.now(),
        n_images=len(scores.prompt_ids),
        values=(*values, *_sort_by_setting([*new, *old], context.suite)),
        sampling={} if model.is_made_elsewhere else context.sampling.model_dump(mode="json"),
        scheduler=dict(scheduler),
        noise={} if model.is_made_elsewhere else context.suite.noise.model_dump(),
        teacher=NamedTeacher(model=context.suite.teacher_name, suite=context.suite.teacher_suite().id) if context.suite.teacher else None,
        prompts=context.suite.describe_prompts(),
        groups=context.suite.prompts.groups or {},
        samples=context.suite.samples,
        run=run_ids.pop() if len(run_ids) == 1 else "",
        looks=looks,
    )
    if of_model and of_model[-1] not in of_software:
        _warn_of_lost_values(of_model[-1][1], record)
    with locked(context.runs / RECORDS_LOCK):  # of two equal runs at once, the second finds the record of the first
        if (of_row := _records_of_row(model, machine, context)) and _comparable_content(of_row[-1][1]) == _comparable_content(record):
            return of_row[-1][0]
        folder = records.write(record, scores, thumbnails, context.results)
    if of_row and of_row[-1][1].model.weights_digest != model.weights_digest:
        before = of_row[-1][0].name
        print_note(
            f"{model.name} now stands for other weights: record {before} is no longer its row (for both rows, measure it "
            "with another --name, or both models in one run)"
        )
    return folder


def _warn_of_lost_values(before: Record, record: Record) -> None:
    """Say which values the record of a row lacks that its earlier record, by other software, has."""
    if lost := {value.name for value in before.values} - {value.name for value in record.values}:
        print_note(
            f"{record.model.name}: its new record lacks {', '.join(sorted(lost))}, which other versions or environment variables "
            "measured; run the whole suite again"
        )


def _check_any_measured(model: Model, measured: Sequence[Value]) -> None:
    if all(value.state in ("missing", "failed") for value in measured):
        raise UserError(
            f"none of the {len(measured)} metrics of {model.name!r} could be measured, so no record is written; the first, "
            f"{measured[0].name}, is {measured[0].state.replace('_', ' ')}: {measured[0].reason}. `sdbench doctor` lists what is missing "
            "here."
        )


def plain_subject(store: Store, jobs: Sequence[Job], runs: Path) -> Subject:
    """The images of these jobs to score, without anything to compare them with."""
    return Subject(
        store,
        runs,
        [job.image_id for job in jobs],
        [job.prompt_id for job in jobs],
        [job.sample for job in jobs],
        [job.prompt for job in jobs],
    )


def build_subject(model: Model, context: RunContext, store: Store, jobs: Sequence[Job]) -> Subject:
    """A model's images of these jobs to score, with what the suite compares them with.

    That is the reference, the teacher's scores, and the teacher's images where they still exist.

    Raises:
        UserError: a record of the teacher cannot be read.
    """
    of_teacher, name = context.suite.teacher_suite(), context.suite.teacher_name
    subject = replace(
        plain_subject(store, jobs, context.runs),
        is_teacher=model.name == name and not context.suite.other_suite,
        is_made_elsewhere=model.is_made_elsewhere,
        reference=context.suite.reference,
        teacher_name=f"{name} under {of_teacher.name}@{of_teacher.version}",
    )
    if not (found := _find_teacher(context, jobs)):
        return subject
    folder, teacher, images = found
    differences = _drawing_differences(teacher, context)
    return replace(
        subject,
        teacher_scores=records.read_scores(folder),
        teacher_images=images,
        teacher_digest=records.teacher_digest(folder, teacher),
        teacher_note=f"the teacher's images were drawn with {', '.join(differences)}; run the teacher here too" if differences else "",
    )


def missing_of_teacher(specs: Sequence[ModelSpec], context: RunContext) -> list[str]:
    """A description of what a run of these models will lack of the teacher's scores and images, and how to get it.

    Raises:
        MissingError, UserError: a record of the teacher cannot be read; or see `list_jobs`.
    """
    name, other_suite = context.suite.teacher_name, context.suite.other_suite
    if not other_suite and name in {spec.name for spec in specs}:
        return []
    found = _find_teacher(context, list_jobs(context.suite, context.sampling, None))
    available = {"win rates": found, "agreement": found and found[2]}
    needed = [
        "win rates" if judge_of(protocol.name) else "agreement"
        for protocol in find_protocols(context.suite.own_metrics)
        if protocol.against_teacher
    ]
    if not (missing := [kind for kind in dict.fromkeys(needed) if not available[kind]]):
        return []
    what, of_teacher = "images" if found else "record", context.suite.teacher_suite()
    advice = f"first {context.suite.teacher.command}" if context.suite.teacher and other_suite else f"add --model {name}"
    return [
        (
            f"{what} of the teacher, {name} under {of_teacher.id.title_with_digest}, "
            f"so {tables.join_words(missing)} with it will be missing: {advice}"
        )
    ]


def probe_values(record: Record) -> list[Value]:
    """The values of latency, memory and size in a record."""
    return [value for value in record.values if not value.is_image_metric]


def _find_teacher(context: RunContext, jobs: Sequence[Job]) -> tuple[Path, Record, Subject | None] | None:
    """The newest record of the teacher that has images, if any, and its images of the same prompts where they still exist.

    Of the records of the newest weights, those whose images were drawn as this run draws come first.
    """
    of_teacher = context.suite.teacher_suite()
    of_family = records.find(context.results, context.suite.family, of_teacher.id, context.suite.teacher_name)
    with_images = [found for found in of_family if found[1].n_images]
    if not with_images:
        return None
    newest = with_images[-1][1].model.weights_digest
    drawn_alike = [
        found for found in with_images if found[1].model.weights_digest == newest and not _drawing_differences(found[1], context)
    ]
    folder, record = (drawn_alike or with_images)[-1]
    return folder, record, _find_images(record.model, replace(context, suite=of_teacher), jobs)


def _drawing_differences(record: Record, context: RunContext) -> list[str]:
    """How the software and kind of device that drew a record's images differ from this run's; empty for images without a model."""
    there = {"device": "cuda" if record.machine.cuda else record.machine.device} | record.environment.packages
    here = {"device": context.device.partition(":")[0]} | {name: version(name) for name in DRAWING_PACKAGES}
    differing = [name for name in here if there.get(name) != here[name]]
    return [] if record.model.is_images_only else [f"{name} {there.get(name)}, here {here[name]}" for name in differing]


def _find_images(model: Model, context: RunContext, jobs: Sequence[Job]) -> Subject | None:
    """A measured model's images of the prompts of these jobs; None where one is missing."""
    store, of_model = store_and_jobs(model, context)
    by_key = {(job.prompt_id, job.sample): job for job in of_model}
    paired = [by_key[job.prompt_id, job.sample] for job in jobs]
    return None if store.missing([job.image_id for job in paired]) else plain_subject(store, paired, context.runs)


def _records_of_row(model: Model, machine: Machine, context: RunContext) -> list[tuple[Path, Record]]:
    """The records of a model's row in the leaderboard, with any weights, oldest first."""
    of_model = records.find(context.results, context.suite.family, context.suite.id, model.name, model.label)
    return [found for found in of_model if found[1].machine.machine_class == machine.machine_class]


def _is_same_model(one: Model, other: Model) -> bool:
    """Whether two models are the same, whatever commit or folder their weights came from."""
    return one.model_copy(update={"source": other.source}) == other


def _score_quality(subject: Subject, model: Model, context: RunContext) -> Quality:
    values, scores = score(subject, context.suite.own_metrics)
    if not _is_asked_for(subject, model, context):  # the record names the suite by its digest
        raise UserError(
            f"the prompts or the latent of suite {context.suite.name!r} changed since this run began; run again: images that the suite "
            "still asks for are kept"
        )
    of_teacher = subject.teacher_images
    thumbnails = {}
    for row, is_teachers in choose_images(scores, values, subject.teacher_scores, with_teacher=of_teacher is not None):
        source, ending = (of_teacher, TEACHER_ENDING) if of_teacher and is_teachers else (subject, OWN_ENDING)
        (image,) = source.store.read([source.image_ids[row]])
        thumbnails[f"{scores.image_names[row]}{ending}"] = thumbnail(image)
    return add_verdicts(values, context.suite, context.runs), scores, thumbnails


def _is_asked_for(subject: Subject, model: Model, context: RunContext) -> bool:
    """Whether the images are those that the suite asks for, as its files are now."""
    if model.is_made_elsewhere:
        return dict(zip(subject.prompt_ids, subject.prompts, strict=True)) == context.suite.prompt_list()
    return {*subject.image_ids} == {job.image_id for job in list_jobs(context.suite, context.sampling, model.weights_digest)}


def _earlier_quality(earlier: tuple[Path, Record] | None) -> Quality:
    """What an earlier run measured of the images, so that a run of the probes alone does not lose it."""
    if earlier is None:
        return [], Scores([], [], {}), {}
    path, record = earlier
    thumbnails = {file.name: file.read_bytes() for file in sorted((path / "images").glob("*.png"))}
    return [value for value in record.values if value.is_image_metric], records.read_scores(path), thumbnails


def _earlier_probes(earlier: tuple[Path, Record] | None, context: RunContext, new: Sequence[Value]) -> tuple[list[Value], str]:
    """What an earlier run measured in settings that this run does not time and did not count again, and the id of its turns."""
    if earlier is None:
        return [], ""
    timed, counted, before = context.timed_settings, {value.name for value in new}, earlier[1]
    return [value for value in probe_values(before) if setting_of(value.name) not in timed and value.name not in counted], before.run


def _sort_by_setting(values: list[Value], suite: Suite) -> list[Value]:
    """The values in the suite's order of settings, whenever they were measured; counts follow the base setting."""
    order = {label: number for number, label in enumerate(suite.probes.select() if suite.probes else ())}
    return sorted(values, key=lambda value: (order.get(setting_of(value.name), len(order)), value.kind == "count"))


def _software(environment: Environment) -> dict[str, Any]:
    """What all values of a record have in common, since a record names a single environment: what may change an image or a time."""
    return {"variables": environment.variables} | {
        name: environment.packages.get(name) for name in ("sdbench", *DRAWING_PACKAGES, *ENCODING_PACKAGES)
    }


def _comparable_content(record: Record) -> dict[str, Any]:
    """What must differ between two records of a row for the second to be written."""
    covered_by_digests = {"noise", "scheduler", "teacher"}
    return record.model_dump(exclude={"created", "environment", "run", *covered_by_digests}) | {"software": _software(record.environment)}
