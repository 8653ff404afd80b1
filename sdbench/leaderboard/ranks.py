"""Ranks that the data support: models that cannot be told apart share a rank.

A model's rank for a metric is 1 + the number of models that are significantly better. That is decided prompt by prompt: a two-sided
t test of the paired differences (Student 1908) for every pair of models, with Holm's correction over all pairs, so that the ranks of a
metric contain a wrong claim at most 1 time in 20. Claims are transitive (if A is better than B and B better than C, then A is
better than C), so two models with the same rank are never told apart. The converse does not hold: where A and B, and B and C, cannot be
told apart but A and C can, A and B share rank 1 and C has rank 2, though B might be its equal. Merging such chains would call different
models equal.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

from sdbench.arrays import F64
from sdbench.records import Record, Scores, Value, mean_per_prompt
from sdbench.stats import decisions

ALPHA = 0.05
EXPLANATION = (
    "A rank is 1 + the number of models that are significantly better: paired t tests over the prompts, for all pairs of models, "
    "Holm-corrected to a 5 % chance of any wrong claim per metric. Models that share a rank cannot be told apart; overlapping intervals "
    "do not mean a tie."
)


def ranks(models: Sequence[tuple[Record, Scores]], names: Sequence[str]) -> dict[str, tuple[int | None, ...]]:
    """The rank of each model, by metric; None where a model lacks the value, or was not measured on the same prompts as the others.

    Metrics by which fewer than two models can be ranked are left out.
    """
    by_metric = {}
    for name in names:
        columns = values_per_prompt(models, name)
        if len(columns) > 1:
            better = surely_better(np.stack(list(columns.values())))
            ranks_of = dict(zip(columns, (1 + better.sum(0)).tolist(), strict=True))
            by_metric[name] = tuple(ranks_of.get(model) for model in range(len(models)))
    return by_metric


def values_per_prompt(models: Sequence[tuple[Record, Scores]], name: str) -> Mapping[int, F64]:
    """Values per prompt, plus = better, by the model's index, for the most models with the same prompts and reference.

    For a set metric, a prompt's value is the value of the set plus the prompt's influence on it; their mean is the value of the set.
    """
    columns: dict[int, F64] = {}
    measured: dict[int, Hashable] = {}
    for model, (record, scores) in enumerate(models):
        value = record.value(name)
        column = _column(value, scores)
        if value is None or column is None:
            continue
        prompts, by_prompt = mean_per_prompt(scores.prompt_ids, column)
        if len(prompts) > 1:
            measured[model] = tuple(prompts.tolist()), value.reference
            columns[model] = -by_prompt if value.direction == "lower" else by_prompt
    return {model: columns[model] for model in largest_group(measured, [record for record, _ in models])}


def largest_group(keys: Mapping[int, Hashable], records: Sequence[Record]) -> list[int]:
    """The indices of the most records with the same key; of equally many, those with the newest record among them."""
    groups: dict[Hashable, list[int]] = {}
    for index, key in keys.items():
        groups.setdefault(key, []).append(index)
    return max(groups.values(), key=lambda group: (len(group), max(records[index].created for index in group)), default=[])


def _column(value: Value | None, scores: Scores) -> F64 | None:
    """The value of each image; None where there is no such column, or it is not finite throughout."""
    if value is None or value.value is None or not value.is_image_metric or value.direction == "neither":
        return None
    column = scores.columns.get(value.column)
    if column is None or not np.isfinite(column).all():
        return None
    return column if value.kind == "score" else column - column.mean() + value.value


def surely_better(values: F64) -> npt.NDArray[np.bool_]:
    """Which models are significantly better than which, (models, models): [i, j] says that i is better than j.

    No p value is taken to be smaller than 2^(1 - n), the smallest that the signs of n differences can give. Otherwise two prompts with
    exactly equal differences would prove anything.

    Args:
        values: (models, prompts), plus = better, at least two of each.
    """
    models, n = values.shape
    covariance = np.cov(values)
    variance = np.diag(covariance)[:, None] + np.diag(covariance)[None] - 2 * covariance
    difference = values.mean(1)[:, None] - values.mean(1)[None]
    rounding = 1e-12 * np.trace(covariance) / models
    variance[variance < rounding] = 0
    difference[difference**2 < rounding] = 0  # else two copies of a model would differ by their last digits, without any spread
    with np.errstate(divide="ignore", invalid="ignore"):
        p = 2 * scipy_stats.t.sf(np.abs(difference) / np.sqrt(variance / n), n - 1)
    p = np.where(np.isnan(p), 1.0, np.maximum(p, 2.0 ** (1 - n)))  # NaN: no difference and no spread
    upper = np.triu_indices(models, 1)
    told_apart = np.zeros((models, models), bool)
    told_apart[upper] = decisions.holm(p[upper].tolist(), ALPHA)
    # Transitive: of equal prompts, SE_ik <= SE_ij + SE_jk, so t_ik >= min(t_ij, t_jk) with as many degrees of freedom; and whatever p
    # value Holm rejects, it rejects all that are not above it.
    better: npt.NDArray[np.bool_] = (told_apart | told_apart.T) & (difference > 0)
    return better
