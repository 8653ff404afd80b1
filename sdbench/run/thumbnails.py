"""Which of a model's pictures its record keeps: those that all models share, and those that a reader will ask for."""

import itertools

import numpy as np

from sdbench.arrays import F64
from sdbench.records import MAX_THUMBNAILS, Scores, influenced_metric

SHARED = 32  # the first pictures of the suite


def worth_keeping(scores: Scores, teacher: Scores | None) -> list[int]:
    """Rows of at most 64 pictures: the first 32, then by turns the worst of each kind, as long as there is room.

    Those are the pictures that cost most of a distance of the set, and those that lost most against the teacher's by a
    score that win rates are taken by.
    """
    ranked = [np.argsort(-column) for name, column in scores.columns.items() if influenced_metric(name)]
    judges = [name.removeprefix("win_rate.") for name in scores.columns if name.startswith("win_rate.")]
    ranked += [np.argsort(_gained(scores, teacher, judge)) for judge in judges if teacher]
    everything = range(len(scores.keys))
    kept = itertools.chain(everything[:SHARED], itertools.chain.from_iterable(zip(*ranked, strict=True)), everything)
    return list(dict.fromkeys(map(int, kept)))[:MAX_THUMBNAILS]


def _gained(scores: Scores, teacher: Scores, judge: str) -> F64:
    theirs = dict(zip(teacher.keys, teacher.columns[judge].tolist(), strict=True))
    return scores.columns[judge] - np.array([theirs[key] for key in scores.keys], np.float64)
