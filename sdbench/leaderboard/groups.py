"""Scores by group of prompts, such as HPDv2's four styles: where a model is worse, and not only how much on average."""

from collections.abc import Mapping, Sequence

import numpy as np

from sdbench import tables
from sdbench.arrays import F64
from sdbench.records import Scores, Value, mean_per_prompt
from sdbench.stats import intervals
from sdbench.tables import Grid


def grid(models: Sequence[tuple[str, Scores]], value: Value) -> Grid | None:
    """The means of a score over the prompts of each group, with 95 % intervals: models down, groups across.

    Args:
        models: name and scores of each model.
        value: the score, as any of their records has it.

    Returns:
        The table; None where no model has groups.
    """
    by_model = {model: _means_by_group(scores, value) for model, scores in models}
    n_by_group = {name: len(means) for groups in by_model.values() for name, means in groups.items()}
    if not n_by_group:
        return None
    header = ("model", *(f"{name} (n = {n})" for name, n in n_by_group.items()))
    return Grid(header, tuple((model, *(_cell(groups.get(name), value) for name in n_by_group)) for model, groups in by_model.items()))


def _means_by_group(scores: Scores, value: Value) -> Mapping[str, F64]:
    """The mean score of each prompt, by group; empty where the model has no groups, or lacks a score."""
    column = scores.columns.get(value.column)
    if scores.groups is None or column is None or not np.isfinite(column).all():
        return {}
    groups, prompt_ids = np.asarray(scores.groups), np.asarray(scores.prompt_ids)
    rows = {name: groups == name for name in dict.fromkeys(scores.groups)}
    return {name: mean_per_prompt(prompt_ids[of_group], column[of_group])[1] for name, of_group in rows.items()}


def _cell(means: F64 | None, value: Value) -> str:
    if means is None:
        return tables.format_value(None)
    is_share = value.unit == "share"
    found = intervals.proportion_interval(float(means.sum()), len(means)) if is_share else intervals.mean_interval(means)
    return tables.format_estimate(found.value, found.low, found.high) if found.has_interval else tables.format_number(found.value)
