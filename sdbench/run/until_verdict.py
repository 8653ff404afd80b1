"""A run that stops when the gate is sure: prompts in batches, a look after each few, error rates as of a single look.

Batches of prompts are mixed first (`suites.look_order`), for lists are sorted by style or length, and the first of them would speak for no
others. A look takes the scores of the first k prompts on both sides; `sequential` says at which level, and `looks` why a pass
waits for half of them and which faults even that does not show. A distance of the whole set is not taken before a look that may
be the last: once all else has passed, from the first k pictures of both models, or, where the baseline's pictures are not in
the run folder, once all prompts are in and its record has the value.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sdbench import suites
from sdbench.errors import UserError
from sdbench.gate import looks
from sdbench.gate.compare import Side
from sdbench.gate.policy import Policy
from sdbench.gate.verdicts import Report
from sdbench.generate import Job
from sdbench.machine import this_machine
from sdbench.models.spec import ModelSpec
from sdbench.probes.driver import Probed
from sdbench.protocols.base import Subject
from sdbench.records import Looks, Model, Record, Scores, Value
from sdbench.run import runner
from sdbench.run.context import Bench, place_of
from sdbench.run.recording import probes_of, record_of, to_score
from sdbench.run.runner import Easel
from sdbench.score import PROTOCOLS, score
from sdbench.stats.decisions import BetweenRuns
from sdbench.validation import validate

LOOKS = 16


@dataclass(frozen=True)
class Question:
    """Whether a model is as good as a record, within a policy.

    Attributes:
        between_runs: of probes, how far two runs of one model lie apart on this machine class.
    """

    spec: ModelSpec
    setting: Bench
    baseline: Path
    policy: Policy
    between_runs: dict[str, BetweenRuns]


def sizes(n: int, batch: int) -> list[int]:
    """Prompts at each look: whole batches, in at most `LOOKS` about equal steps."""
    steps = (-(-n * look // (LOOKS * batch)) * batch for look in range(1, LOOKS + 1))
    return sorted({min(n, size) for size in steps})


def run_until_verdict(question: Question) -> tuple[Path, Report]:
    """Make pictures until the verdict is sure, or would not become so with all of them => the record, the verdict.

    Raises:
        UserError: the baseline is of another suite or has other prompts.
    """
    setting, old = question.setting, Side.read(question.baseline)
    if (old.record.suite, old.record.n_images) != (setting.suite.id, len(setting.suite.prompt_list())):
        raise UserError(
            f"baseline {question.baseline} is of {old.record.suite}, {old.record.n_images} pictures; this run is of {setting.suite.id}, "
            f"{len(setting.suite.prompt_list())}: run the baseline under this suite"
        )
    (spec,) = runner.ready([question.spec], setting)
    model = runner.model_of(spec, setting)
    state = _Candidate(question, model, Easel(spec, model, setting), old, runner.probe([spec], setting))
    looked: list[int] = []
    for size in sizes(len(state.todo), setting.sampling.batch):
        looked.append(size)
        if report := state.look(looked):
            break
    assert report
    notes = (f"stopped after {looked[-1]} of {len(state.todo)} prompts, at look {len(looked)}", *report.notes)
    course = Looks(baseline=question.baseline.resolve().name, verdict=report.verdict, prompts=tuple(looked), of=len(state.todo))
    return state.record(course), replace(report, notes=notes)


class _Candidate:
    """The model under question, as far as it is measured."""

    def __init__(self, question: Question, model: Model, easel: Easel, old: Side, probed: Probed) -> None:
        self.question, self.model, self.easel, self.old, self.probed = question, model, easel, old, probed
        self.todo = self._mixed(easel.todo)
        rules = question.policy.rules(question.setting.suite.name)
        # Those weighed, and the judges that weighed win rates are made of.
        measured = [name for name in question.setting.suite.own_metrics if name in rules or f"win_rate.{name}" in rules]
        self.sets = [name for name in measured if PROTOCOLS[name].kind == "set"]
        self.scores = [name for name in measured if name not in self.sets]
        self.rules = looks.LookRules(question.policy, question.setting.suite.name, self.sets, question.between_runs)
        self.parts: list[Scores] = []
        self.failed: dict[str, Value] = {}  # scores that some prompts do not have

    def look(self, looked: list[int]) -> Report | None:
        """Judge the prompts so far; None to go on."""
        size, total = looked[-1], len(self.todo)
        shares = tuple(each / total for each in looked)
        self.easel.draw(self.todo[:size])
        values, scores = self._score(self.scores, (looked[-2:-1] or [0])[0], size)
        self.parts.append(scores)
        self.failed.update({value.name: value for value in values if value.state != "ok"})

        return looks.verdict_at(shares, lambda sets: self._sides(size, sets), self.rules)

    def record(self, course: Looks) -> Path:
        """Write what was measured, in the suite's order; of fewer prompts than the suite's it is of suite `<name>-sequential`."""
        setting, size = self.question.setting, course.prompts[-1]
        looked = set(self.todo[:size])
        pictures = [job for job in self.easel.todo if job in looked]
        subject = self._subject(pictures)  # of the whole suite, which the teacher was measured under
        if size < course.of:
            assert setting.suite.prompts
            content = {**setting.suite.model_dump(), "name": f"{setting.suite.name}-sequential"}
            content["prompts"] = {**setting.suite.prompts.model_dump(), "looked": size}
            setting = replace(setting, suite=validate(suites.Suite, content, "the prompts so far"))
        return record_of(self.model, setting, subject, self.probed, runner.scheduler_of(self.easel.spec, setting), course)

    def _subject(self, pictures: list[Job]) -> Subject:
        return to_score(self.model, self.question.setting, self.easel.store, pictures)

    def _score(self, names: list[str], start: int, stop: int) -> tuple[list[Value], Scores]:
        return score(self._subject(self.todo[start:stop]), names)

    def _mixed(self, todo: list[Job]) -> list[Job]:
        jobs = {job.prompt_id: job for job in todo}
        return [jobs[prompt_id] for prompt_id in suites.look_order([*jobs], self.question.setting.sampling.batch)]

    def _baseline_drawn(self, size: int) -> bool:
        store, todo = place_of(self.old.record.model, self.question.setting)
        return not store.missing([job.image for job in self._mixed(todo)[:size]])

    def _sides(self, size: int, sets: bool) -> tuple[Side, Side] | None:
        """Both models on the first prompts; with the distances of their sets, or without."""
        if sets and size < len(self.todo) and not self._baseline_drawn(size):
            return None
        ids = [job.prompt_id for job in self.todo[:size]]
        there = [name for name in self.scores if name not in self.failed]
        found = Scores(ids, [0] * size, {name: np.concatenate([part.columns[name] for part in self.parts]) for name in there})
        theirs = Scores(
            ids, [0] * size, {name: self.old.columns[name][self._rows(ids)] for name in self.scores if name in self.old.columns}
        )
        whole = self._whole(found, theirs, size) if sets else ([], [])
        mine = self.old.record.model_copy(
            update={
                "model": self.model,
                "machine": this_machine(self.question.setting.device),
                "sampling": self.question.setting.sampling.model_dump(mode="json"),
                "values": tuple(self.probed.values.get(self.model.name, ())),
                "run": "",
            }
        )
        absent = [value for name in self.scores if name not in theirs.columns and (value := self.old.record.value(name))]
        return self._side(mine, found, [*whole[0], *self.failed.values()]), self._side(self.old.record, theirs, [*whole[1], *absent])

    def _rows(self, ids: list[str]) -> list[int]:
        place = {prompt_id: row for row, (prompt_id, _) in enumerate(self.old.keys)}
        return [place[prompt_id] for prompt_id in ids]

    def _whole(self, found: Scores, theirs: Scores, size: int) -> tuple[list[Value], list[Value]]:
        """The distances of both sets of pictures, their influence columns added to the scores."""
        values, scores = self._score(self.sets, 0, size)
        found.columns.update(scores.columns)
        if size == len(self.todo):
            columns = [PROTOCOLS[name].column for name in self.sets]
            rows = self._rows(list(theirs.prompt_ids))
            theirs.columns.update({name: self.old.columns[name][rows] for name in columns if name in self.old.columns})
            return values, [value for name in self.sets if (value := self.old.record.value(name))]
        store, todo = place_of(self.old.record.model, self.question.setting)
        old_values, old_scores = score(to_score(self.old.record.model, self.question.setting, store, self._mixed(todo)[:size]), self.sets)
        theirs.columns.update(old_scores.columns)
        return values, old_values

    def _side(self, record: Record, scores: Scores, more: list[Value]) -> Side:
        n = len(scores.keys)
        means = [
            Value(
                name=name,
                kind="score",
                direction=PROTOCOLS[name].direction,
                unit=PROTOCOLS[name].unit,
                value=scores.columns[name].mean(),
                n=n,
            )
            for name in self.scores
            if name in scores.columns
        ]
        values = (*means, *more, *probes_of(record))
        order = sorted(range(n), key=scores.keys.__getitem__)
        columns = {name: column[order] for name, column in scores.columns.items()}
        return Side(record.model_copy(update={"values": values, "n_images": n}), sorted(scores.keys), columns)
