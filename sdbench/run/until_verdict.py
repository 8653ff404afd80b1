"""A run that stops when the gate is sure: prompts in batches, a look after every few, with the error rates of a single look.

A look takes all samples of a prompt or none. Batches of prompts are spread over the list (`suites.look_order`): lists are sorted by style
or length, and the first prompts of a sorted list would not represent the others. A look takes the scores of the first k prompts on both
sides. `stats.sequential` says at which level it tests; `gate.looks` says why a pass waits for half of the prompts, and which faults even
that does not show.

A distance of the whole set is only computed at a look that may be the last, once all else has passed. It is taken from the first k
images of both models; where the baseline's images are not in the run folder, it waits until all prompts are in, since the
baseline's record has only the value of the whole set.

Only verdicts keep their error rates. The intervals of the record take the number of prompts as fixed, and a run stops where the
difference to the baseline happens to be large: simulated, 95 % intervals of that difference cover 92 to 96 %, and its mean is off by up to
0.4 of the standard error of all prompts.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from sdbench import suites, tables
from sdbench.arrays import F64
from sdbench.errors import UserError
from sdbench.gate import looks
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Policy
from sdbench.gate.verdicts import Report
from sdbench.generate import Job
from sdbench.machine import environment, this_machine
from sdbench.models.spec import ModelSpec
from sdbench.probes.driver import ProbeResult
from sdbench.protocols.base import Subject
from sdbench.records import Looks, Model, Record, Scores, Value
from sdbench.records.names import win_rate_by
from sdbench.run import runner
from sdbench.run.context import RunContext, store_and_jobs
from sdbench.run.recording import build_subject, probe_values, write_record
from sdbench.run.runner import ImageGenerator
from sdbench.score import PROTOCOLS, score
from sdbench.stats.decisions import BetweenRuns
from sdbench.validation import validate

LOOKS = 16


def look_sizes(n: int, batch: int) -> list[int]:
    """Number of prompts at each look: whole batches, in at most `LOOKS` steps of about equal size."""
    sizes = (-(-n * look // (LOOKS * batch)) * batch for look in range(1, LOOKS + 1))
    return sorted({min(n, size) for size in sizes})


def run_until_verdict(
    spec: ModelSpec, context: RunContext, baseline_folder: Path, policy: Policy, between_runs: Mapping[str, BetweenRuns]
) -> tuple[Path, Report]:
    """Make images until the verdict is sure, or cannot become sure even with all of them, and return the record folder and the verdict.

    Args:
        between_runs: probe -> how far two runs of one model lie apart on this machine class.

    Raises:
        UserError: the baseline is of another suite, has other prompts, or lacks a value that the policy requires.
    """
    baseline = Side.read(baseline_folder)
    n_images = len(context.suite.prompt_list()) * context.suite.samples
    if (baseline.record.suite, baseline.record.n_images) != (context.suite.id, n_images):
        raise UserError(
            f"baseline {baseline_folder} has {baseline.record.n_images} images of {baseline.record.suite.title_with_digest}, but this run "
            f"has {n_images} of {context.suite.id.title_with_digest}: run the baseline under this suite"
        )
    if absent := policy.absent_from(baseline.record):
        raise UserError(
            f"baseline {baseline_folder} has no value of {tables.join_words(absent)}, which the policy requires, so no verdict could be "
            "reached: measure the baseline with all of them, or weigh image metrics alone with --only quality"
        )
    (spec,) = runner.fetch_models([spec], context)
    model = runner.describe_model(spec, context)
    generator, probed = ImageGenerator(spec, model, context), runner.run_probes([spec], context)
    candidate = _Candidate(model, generator, baseline, probed, policy, between_runs)
    total, sizes = candidate.n_prompts, list[int]()
    for size in look_sizes(total, context.sampling.batch):
        sizes.append(size)
        if report := candidate.look(sizes):
            break
    assert report
    notes = (f"stopped after {sizes[-1]} of {total} prompts, at the {tables.format_ordinal(len(sizes))} look", *report.notes)
    history = Looks(baseline=baseline_folder.resolve().name, verdict=report.verdict, prompts=tuple(sizes), of=total)
    return candidate.write_record(history), replace(report, notes=notes)


class _Candidate:
    """The model under test, as far as it has been measured, and its baseline.

    Attributes:
        jobs: the suite's images, in the order of the looks, with all samples of a prompt together.
        set_metrics, score_metrics: names of the metrics that the policy weighs, and of the judges behind weighed win rates.
        scores_by_look: the scores of the prompts that each look added.
        failed: values of scores that some prompts lack.
    """

    def __init__(
        self,
        model: Model,
        generator: ImageGenerator,
        baseline: Side,
        probed: ProbeResult,
        policy: Policy,
        between_runs: Mapping[str, BetweenRuns],
    ) -> None:
        self.context, self.model, self.generator, self.baseline, self.probed = generator.context, model, generator, baseline, probed
        self.jobs = self._in_look_order(generator.jobs)
        self.samples = self.context.suite.samples
        self.n_prompts = len(self.jobs) // self.samples
        suite, weighed = self.context.suite, policy.rules(self.context.suite.name)
        measured = [name for name in suite.own_metrics if name in weighed or win_rate_by(name) in weighed]
        self.set_metrics = [name for name in measured if PROTOCOLS[name].kind == "set"]
        self.score_metrics = [name for name in measured if name not in self.set_metrics]
        self.rules = looks.LookRules(policy, suite.name, self.set_metrics, between_runs)
        self.scores_by_look: list[Scores] = []
        self.failed: dict[str, Value] = {}

    def look(self, sizes: list[int]) -> Report | None:
        """Given the sizes of the looks so far, measure and judge the prompts up to the last; return the report to stop with, or None."""
        size, before = sizes[-1], sizes[-2] if len(sizes) > 1 else 0
        self.generator.draw(self._first_jobs(size))
        values, scores = score(self._subject(self._first_jobs(size)[before * self.samples :]), self.score_metrics)
        self.scores_by_look.append(scores)
        self.failed.update({value.name: value for value in values if value.state != "ok"})
        shares = tuple(each / self.n_prompts for each in sizes)
        return looks.verdict_at(shares, lambda with_sets: self._build_sides(size, with_sets=with_sets), self.rules)

    def write_record(self, history: Looks) -> Path:
        """Write what was measured, in the suite's order; with fewer prompts than the suite's, under suite `<name>-sequential`."""
        context, size = self.context, history.prompts[-1]
        measured = set(self._first_jobs(size))
        subject = self._subject([job for job in self.generator.jobs if job in measured])  # under the suite itself, as the teacher is
        if size < history.of:
            assert context.suite.prompts
            content = {**context.suite.model_dump(), "name": f"{context.suite.name}-sequential"}
            content["prompts"] = {**context.suite.prompts.model_dump(), "looked": size}
            context = replace(context, suite=validate(suites.Suite, content, "the prompts so far"))
        return write_record(self.model, context, subject, self.probed, runner.describe_scheduler(self.generator.spec, context), history)

    def _first_jobs(self, size: int) -> list[Job]:
        """The images of the first prompts of the looks."""
        return self.jobs[: size * self.samples]

    def _subject(self, jobs: list[Job]) -> Subject:
        return build_subject(self.model, self.context, self.generator.store, jobs)

    def _in_look_order(self, jobs: list[Job]) -> list[Job]:
        by_id: dict[str, list[Job]] = {}
        for job in jobs:
            by_id.setdefault(job.prompt_id, []).append(job)
        return [job for prompt_id in suites.look_order([*by_id], self.context.sampling.batch) for job in by_id[prompt_id]]

    def _baseline_subject(self, size: int) -> Subject | None:
        """The baseline's images of the first prompts; None where one is not in the run folder."""
        store, jobs = store_and_jobs(self.baseline.record.model, self.context)
        first = self._in_look_order(jobs)[: size * self.samples]
        if store.missing([job.image_id for job in first]):
            return None
        return build_subject(self.baseline.record.model, self.context, store, first)

    def _build_sides(self, size: int, *, with_sets: bool) -> tuple[Side, Side] | None:
        """Candidate and baseline on the first prompts, with the distances of their sets or without; None where those cannot be computed."""
        keys = [(job.prompt_id, job.sample) for job in self._first_jobs(size)]
        new, new_values = self._new_scores(keys), [*self.failed.values()]
        old = self._old_scores(keys, self.score_metrics)
        absent = [name for name in self.score_metrics if name not in old.columns]
        old_values = [value for name in absent if (value := self.baseline.record.value(name))]
        if with_sets:
            if (distances := self._measure_sets(new, old, size)) is None:
                return None
            new_values, old_values = [*distances[0], *new_values], [*distances[1], *old_values]
        return self._build_side(self._new_record(), new, new_values), self._build_side(self.baseline.record, old, old_values)

    def _measure_sets(self, new: Scores, old: Scores, size: int) -> tuple[list[Value], list[Value]] | None:
        """The distances of both sets of images, whose influence columns are added to the scores; None where they cannot be computed."""
        if size == self.n_prompts:
            old_values = [value for name in self.set_metrics if (value := self.baseline.record.value(name))]
            old_columns = self._old_scores(old.keys, [PROTOCOLS[name].column for name in self.set_metrics]).columns
        else:
            if (subject := self._baseline_subject(size)) is None:
                return None
            old_values, old_scores = score(subject, self.set_metrics)
            old_columns = old_scores.columns
        new_values, new_scores = score(self._subject(self._first_jobs(size)), self.set_metrics)
        new.columns.update(new_scores.columns)
        old.columns.update(old_columns)
        return new_values, old_values

    def _new_scores(self, keys: list[tuple[str, int]]) -> Scores:
        """The candidate's scores of these images, those of all looks so far."""
        names = [name for name in self.score_metrics if name not in self.failed]
        return _scores_of(keys, {name: np.concatenate([part.columns[name] for part in self.scores_by_look]) for name in names})

    def _old_scores(self, keys: list[tuple[str, int]], names: list[str]) -> Scores:
        """The baseline's columns of these images, as far as its record has them."""
        row_of = {key: row for row, key in enumerate(self.baseline.keys)}
        rows = [row_of[key] for key in keys]
        columns = {name: self.baseline.columns[name][rows] for name in names if name in self.baseline.columns}
        return _scores_of(keys, columns)

    def _new_record(self) -> Record:
        """The candidate's record, so far with its probes alone."""
        return self.baseline.record.model_copy(
            update={
                "model": self.model,
                "machine": this_machine(self.context.device),
                "environment": environment(),
                "sampling": self.context.sampling.model_dump(mode="json"),
                "values": tuple(self.probed.values.get(self.model.name, ())),
                "run": "",
            }
        )

    def _build_side(self, record: Record, scores: Scores, values: list[Value]) -> Side:
        """A side of the comparison: the probes of a record, the means of the scores, and other values of the images."""
        n = len(scores.keys)
        means = [
            Value(
                name=name,
                kind="score",
                direction=PROTOCOLS[name].direction,
                unit=PROTOCOLS[name].unit,
                value=scores.columns[name].mean(),
                n=n // self.samples,
            )
            for name in self.score_metrics
            if name in scores.columns
        ]
        order = sorted(range(n), key=scores.keys.__getitem__)
        columns = {name: column[order] for name, column in scores.columns.items()}
        so_far = record.model_copy(update={"values": (*means, *values, *probe_values(record)), "n_images": n})
        return Side(so_far, sorted(scores.keys), columns)


def _scores_of(keys: list[tuple[str, int]], columns: Mapping[str, F64]) -> Scores:
    return Scores([prompt_id for prompt_id, _ in keys], [sample for _, sample in keys], columns)
