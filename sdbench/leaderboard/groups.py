"""Scores by group of prompts, such as HPDv2's four styles: where a model is worse, and not only how much on average."""

from collections.abc import Mapping, Sequence

import numpy as np

from sdbench import tables
from sdbench.arrays import F64
from sdbench.records import Record, Scores, mean_per_prompt
from sdbench.records.names import place_of_prompt
from sdbench.stats import intervals
from sdbench.tables import Grid, Line


def grid(models: Sequence[tuple[Record, Scores]], groups: Mapping[str, int], metric: str) -> Grid:
    """The means of a score over the prompts of each group, with 95 % intervals: models down, groups across.

    Args:
        models: the record and scores of each model, all of the same prompts.
        groups: names and sizes of consecutive groups of these prompts.
    """
    header = ("model", *(f"{name} (n = {n})" for name, n in groups.items()))
    return Grid(header, tuple((record.model.title, *_cells(record, scores, groups, metric)) for record, scores in models))


def _cells(record: Record, scores: Scores, groups: Mapping[str, int], metric: str) -> Line:
    value = record.value(metric)
    if value is None or value.value is None:
        return (tables.format_value(value),) * len(groups)
    prompts, means = mean_per_prompt(scores.prompt_ids, scores.columns[metric])
    places = [place_of_prompt(prompt) for prompt in prompts.tolist()]
    group_of = np.searchsorted(np.cumsum([*groups.values()]), places, side="right")
    samples = len(scores.prompt_ids) // len(prompts) if value.unit == "share" else None
    return tuple(_cell(means[group_of == number], n, samples) for number, n in enumerate(groups.values()))


def _cell(means: F64, n: int, samples: int | None) -> str:
    """The mean of a group of n prompts; `samples` is the number of images behind each prompt's share, None if the means are no shares."""
    if not len(means):
        return "no prompt used"  # by a run that stopped when sure
    if samples is None:
        found = intervals.mean_interval(means)
    elif samples == 1:
        found = intervals.wins_interval(means, np.full(len(means), 0.5)).estimate
    else:
        found = intervals.share_interval(means, samples * len(means))
    text = tables.format_estimate(found.value, found.low, found.high)
    return text if len(means) == n else f"{text} [n={len(means)}]"
