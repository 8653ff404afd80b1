"""How often each model's picture beats another's on the same prompt and noise, by the suite's preference models."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import binomtest

from sdbench.leaderboard import ranks
from sdbench.leaderboard.standings import Section
from sdbench.report import MAX_MODELS
from sdbench.stats import decisions, intervals


@dataclass(frozen=True)
class Win:
    """How often the row's model wins, ties half; `sure` says that it is not a toss-up (sign test, Holm over all pairs of the matrix)."""

    share: float
    low: float
    high: float
    sure: bool


@dataclass(frozen=True)
class Matrix:
    """Models by models under one judge; the diagonal is None."""

    judge: str
    models: tuple[str, ...]
    rows: tuple[tuple[Win | None, ...], ...]


def judges(section: Section) -> list[str]:
    """What decides a win: the scores that the suite takes win rates by, else the first score that the models have."""
    names = dict.fromkeys(value.name for row in section.models for value in row.record.values if value.kind == "score")
    named = [name.removeprefix("win_rate.") for name in names if name.startswith("win_rate.")]
    return [name for name in named if name in names] or list(names)[:1]


def matrix(section: Section, judge: str) -> Matrix | None:
    """The matrix of a judge over the first 24 models of the section that share their prompts; None for fewer than two."""
    columns = ranks.values_per_prompt([(row.record, row.scores) for row in section.models], judge)
    places = list(columns)[:MAX_MODELS]
    if len(places) < 2:
        return None
    pairs = list(itertools.combinations(places, 2))
    rates = {pair: intervals.wins_interval(columns[pair[0]], columns[pair[1]]) for pair in pairs}
    sure = decisions.holm([_sign_test(rate.wins, rate.losses) for rate in rates.values()], ranks.ALPHA)
    found: dict[tuple[int, int], Win] = {}
    for (pair, rate), told_apart in zip(rates.items(), sure, strict=True):
        share = rate.estimate
        found[pair] = Win(share.value, share.low, share.high, told_apart)
        found[pair[::-1]] = Win(1 - share.value, 1 - share.high, 1 - share.low, told_apart)
    return Matrix(judge, _names(section, places), tuple(tuple(found.get((one, other)) for other in places) for one in places))


def _names(section: Section, places: Sequence[int]) -> tuple[str, ...]:
    return tuple(section.models[place].name for place in places)


def _sign_test(wins: int, losses: int) -> float:
    """Two-sided p value of wins and losses being equally likely, ties left out (Dixon and Mood 1946)."""
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
