"""Metrics against the truth: where scene accuracy is known, do the metrics rank the models in the same order?"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sdbench import tables
from sdbench.arrays import F64
from sdbench.records import Record, Scores, mean_per_prompt
from sdbench.stats import intervals
from sdbench.tables import Cell, Grid

TRUTH = "scene_accuracy"
MIN_MODELS = 4
_DRAWS, _SEED = 2000, 20261124


def grid(models: Sequence[tuple[Record, Scores]]) -> Grid | None:
    """Spearman's rank correlation of each metric with scene accuracy, 1 where the orders agree.

    The table has every metric that all models have against the same reference. Each resample draws the same prompts for all models and
    metrics. None with fewer than 4 models, or where one has no scene accuracy, or where no metric is left.
    """
    if len(models) < MIN_MODELS or not all((value := record.value(TRUTH)) and value.state == "ok" for record, _ in models):
        return None  # before the draws, which take 16 kB for each prompt
    n = len(set(models[0][1].prompt_ids))
    drawn = np.random.default_rng(_SEED).integers(n, size=(_DRAWS, n))
    names = [value.name for value in models[0][0].values if value.is_image_metric and value.name != TRUTH]
    truth = _resampled_values(models, TRUTH, drawn)
    by_metric = {name: _resampled_values(models, name, drawn) for name in names}
    rows = [(name, str(len(models)), _correlation(values, truth)) for name, values in by_metric.items() if values and truth]
    chance = "4 models in random order have a rank correlation of 0.8 or more in 4 of 24 cases" if len(models) == MIN_MODELS else ""
    correlation = "rank correlation (Spearman) with scene accuracy, and its range over resampled prompts ↑"
    header = ("metric", Cell("models", chance), correlation)
    return Grid(header, tuple(rows)) if rows else None


def _correlation(metric: tuple[F64, F64], truth: tuple[F64, F64]) -> str:
    if min(np.ptp(metric[0]), np.ptp(truth[0])) == 0:
        return "not applicable: all models are equal"
    correlation = intervals.rank_correlation(metric[0], truth[0], metric[1], truth[1])
    return tables.format_estimate(correlation.value, correlation.low, correlation.high)


def _resampled_values(models: Sequence[tuple[Record, Scores]], name: str, drawn: npt.NDArray[np.int64]) -> tuple[F64, F64] | None:
    """Each model's value, plus = better, (models,), and its resamples, (draws, models); None if one lacks it or has another reference."""
    if len({value.reference for record, _ in models if (value := record.value(name))}) > 1:
        return None
    values, draws = [], []
    for record, scores in models:
        value = record.value(name)
        column = scores.columns.get(value.column) if value else None
        if value is None or value.value is None or column is None:
            return None
        _, by_prompt = mean_per_prompt(scores.prompt_ids, column)
        if len(by_prompt) != drawn.shape[1]:
            return None
        sign = -1 if value.direction == "lower" else 1
        values.append(sign * value.value)
        draws.append(sign * (value.value + (by_prompt - by_prompt.mean())[drawn].mean(1)))
    return np.array(values), np.stack(draws, 1)
