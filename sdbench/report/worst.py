"""The worst images of each model: those that lost most against the teacher, and those that add most to a distance of the set."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, zip_longest

import numpy as np

from sdbench.leaderboard import MAX_MODELS
from sdbench.leaderboard.standings import Row, Section
from sdbench.records import influenced_metric

MAX_CASES = 10  # images for each model and metric


@dataclass(frozen=True)
class Case:
    """One image of a model.

    Attributes:
        name: of the image, see `Scores.image_names`.
        amount: the loss against the teacher, below 0, or what the image adds to the distance of its set.
        own, teacher: the scores behind a loss; None for a distance.
    """

    name: str
    prompt: str
    amount: float
    own: float | None = None
    teacher: float | None = None


@dataclass(frozen=True)
class Worst:
    """A model's worst images by a metric, the worst first."""

    model: str
    metric: str
    cases: tuple[Case, ...]


@dataclass(frozen=True)
class WorstImages:
    """The worst images of a section.

    Attributes:
        regressions: for each judge and model but the teacher, the images that lost most against the teacher's of the same prompt and noise.
        costliest: see the function.
        losses: by the first judge, the largest loss of any model against the teacher, below 0, by the image's name.
    """

    regressions: tuple[Worst, ...]
    costliest: tuple[Worst, ...]
    losses: Mapping[str, float]

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the images, each once: the first of each list, then the second of each, and so on."""
        lists = [found.cases for found in (*self.regressions, *self.costliest)]
        return tuple(dict.fromkeys(case.name for case in chain.from_iterable(zip_longest(*lists)) if case))


def find(section: Section, judges: Sequence[str]) -> WorstImages:
    """The worst images of a section, by the scores that decide a win and by the distances of its sets."""
    regressions, largest = list[Worst](), dict[str, float]()
    for judge in judges:
        by_model: dict[str, list[Case]] = {}
        for model, case in _iterate_losses(section, judge):
            by_model.setdefault(model, []).append(case)
            if judge == judges[0]:
                largest[case.name] = min(largest.get(case.name, 0.0), case.amount)
        for model, cases in by_model.items():
            regressions.append(Worst(model, judge, tuple(sorted(cases, key=lambda case: (case.amount, case.name))[:MAX_CASES])))
    return WorstImages(tuple(regressions), tuple(costliest(section)), largest)


def _iterate_losses(section: Section, judge: str) -> Iterator[tuple[str, Case]]:
    """Model and image, for each image that is worse than the teacher's."""
    if section.teacher is None:
        return
    of_teacher = _scores_by_name(section.teacher, judge)
    for row in [row for row in section.models if row is not section.teacher][:MAX_MODELS]:
        sign = -1 if _direction(row, judge) == "lower" else 1
        texts = dict(zip(row.scores.image_names, row.scores.prompt_texts, strict=True))
        for name, own in _scores_by_name(row, judge).items():
            if name in of_teacher and sign * (own - of_teacher[name]) < 0:
                yield row.name, Case(name, texts[name], sign * (own - of_teacher[name]), own, of_teacher[name])


def _scores_by_name(row: Row, metric: str) -> Mapping[str, float]:
    """The scores that are finite, by the image's name; none where the model was not scored by this metric."""
    if metric not in row.scores.columns:
        return {}
    scores = zip(row.scores.image_names, row.scores.columns[metric].tolist(), strict=True)
    return {name: score for name, score in scores if np.isfinite(score)}


def _direction(row: Row, name: str) -> str | None:
    value = row.record.value(name)
    return value.direction if value else None


def costliest(section: Section) -> Iterator[Worst]:
    """For each model, the images that add most to a distance of its set: influence / n, to first order."""
    for row in section.models[:MAX_MODELS]:
        names, texts = row.scores.image_names, row.scores.prompt_texts
        for name, column in row.scores.columns.items():
            metric = influenced_metric(name)
            if metric and _direction(row, metric) == "lower" and np.isfinite(column).all():
                order = np.argsort(-column, kind="stable")[:MAX_CASES]
                cases = tuple(Case(names[i], texts[i], float(column[i]) / len(column)) for i in order)
                yield Worst(row.name, metric, cases)
