"""Win rates between all pairs of models, on the same prompts and noise, by the suite's preference models.

They are counted over prompts: with several images of a prompt, the model with the higher mean score wins it.
"""

import itertools
from dataclasses import dataclass

from scipy.stats import binomtest

from sdbench.leaderboard import MAX_MODELS, ranks
from sdbench.leaderboard.standings import Section
from sdbench.records.names import judge_of
from sdbench.stats import decisions, intervals


@dataclass(frozen=True)
class Win:
    """How often the row's model wins, a tie counting half.

    Attributes:
        sure: whether it differs from a toss-up (sign test, Holm's correction over all pairs of the matrix).
    """

    share: float
    low: float
    high: float
    sure: bool


@dataclass(frozen=True)
class Matrix:
    """Win rates under one judge, models by models; the diagonal is None."""

    judge: str
    models: tuple[str, ...]
    rows: tuple[tuple[Win | None, ...], ...]


def judges(section: Section) -> list[str]:
    """The scores that decide a win: those behind the suite's win rates, else the first score that the models have."""
    values = [value for row in section.models for value in row.record.values if value.kind == "score" and value.direction != "neither"]
    scores = dict.fromkeys(value.name for value in values if value.value is not None)
    of_suite = dict.fromkeys(judge for value in values if (judge := judge_of(value.name)))
    return [name for name in of_suite if name in scores] or list(scores)[:1]


def matrix(section: Section, judge: str) -> Matrix | None:
    """A judge's win rates over the first 24 models of the section that share their prompts; None for fewer than two models."""
    columns = ranks.values_per_prompt([(row.record, row.scores) for row in section.models], judge)
    places = list(columns)[:MAX_MODELS]
    if len(places) < 2:
        return None
    pairs = list(itertools.combinations(places, 2))
    rates = {pair: intervals.wins_interval(columns[pair[0]], columns[pair[1]]) for pair in pairs}
    sure = decisions.holm([_sign_test(rate.wins, rate.losses) for rate in rates.values()], ranks.ALPHA)
    wins: dict[tuple[int, int], Win] = {}
    for (pair, rate), is_sure in zip(rates.items(), sure, strict=True):
        share = rate.estimate
        low, high = max(0.0, share.low), min(1.0, share.high)  # rounding may take them out, and -1e-17 would be shown as -0
        wins[pair] = Win(share.value, low, high, is_sure)
        wins[pair[::-1]] = Win(1 - share.value, 1 - high, 1 - low, is_sure)
    return Matrix(
        judge,
        tuple(section.models[place].name for place in places),
        tuple(tuple(wins.get((one, other)) for other in places) for one in places),
    )


def _sign_test(wins: int, losses: int) -> float:
    """Two-sided p value of the hypothesis that wins and losses are equally likely, ties left out (Dixon and Mood 1946)."""
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
