"""Scores by group of prompts, such as HPDv2's four styles: where a model is worse, and not only how much on average."""

from collections.abc import Mapping, Sequence

import numpy as np

from sdbench import tables
from sdbench.arrays import F64
from sdbench.records import Record, Scores, Value, mean_per_prompt
from sdbench.stats import intervals
from sdbench.tables import Grid


def grid(models: Sequence[tuple[Record, Scores]], value: Value) -> Grid | None:
    """The means of a score over the prompts of each group, with 95 % intervals: models down, groups across.

    Args:
        models: the record and scores of each model.
        value: the score, as any of the records has it.

    Returns:
        The table; None where no model has groups.
    """
    by_model = [(record.model.title, _means_by_group(record, scores, value)) for record, scores in models]
    n_by_group = {name: len(means) for _, groups in by_model for name, means in groups.items()}
    if not n_by_group:
        return None
    header = ("model", *(f"{name} (n = {n})" for name, n in n_by_group.items()))
    return Grid(header, tuple((model, *(_cell(groups.get(name), value) for name in n_by_group)) for model, groups in by_model))


def _means_by_group(record: Record, scores: Scores, value: Value) -> Mapping[str, F64]:
    """The mean score of each prompt, by group; empty where the model has no groups, or lacks a score."""
    column = scores.columns.get(value.column)
    if not record.groups or column is None or not np.isfinite(column).all():
        return {}
    prompts, means = mean_per_prompt(scores.prompt_ids, column)
    places = [int(prompt.partition("-")[0]) for prompt in prompts.tolist()]  # see `Suite.prompt_list`
    group_of = np.searchsorted(np.cumsum([*record.groups.values()]), places, side="right")
    by_group = {name: means[group_of == number] for number, name in enumerate(record.groups)}
    return {name: of_group for name, of_group in by_group.items() if len(of_group)}


def _cell(means: F64 | None, value: Value) -> str:
    if means is None:
        return tables.format_value(None)
    is_share = value.unit == "share"
    found = intervals.proportion_interval(float(means.sum()), len(means)) if is_share else intervals.mean_interval(means)
    return tables.format_estimate(found.value, found.low, found.high) if found.has_interval else tables.format_number(found.value)
