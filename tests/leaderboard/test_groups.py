"""Scores by group of prompts against numbers worked out by hand."""

import numpy as np
import pytest
from factories import make_scores

from sdbench.leaderboard import groups
from sdbench.records import Scores, Value
from sdbench.stats.intervals import mean_interval, proportion_interval

CLIP = Value(name="clip", kind="score", direction="higher", unit="100 cos", value=2.0)
RIGHT = Value(name="right", kind="score", direction="higher", unit="share", value=0.5)


@pytest.fixture
def scores() -> Scores:
    """Six prompts with two samples each, four of them photographs."""
    made = make_scores(
        6, 2, clip=np.repeat([1.0, 2.0, 3.0, 6.0, 10.0, 12.0], 2) + np.tile([-0.5, 0.5], 6), right=np.repeat([1.0, 1, 1, 0, 0, 0], 2)
    )
    made.groups = ("photo",) * 8 + ("anime",) * 4
    return made


def test_means_and_intervals_count_prompts_not_samples(scores: Scores) -> None:
    found = groups.grid([("student", scores)], CLIP)
    assert found is not None
    assert found.header == ("model", "photo (n = 4)", "anime (n = 2)")
    half = mean_interval([1, 2, 3, 6]).high - 3
    assert found.rows == (("student", f"3.0 ± {half:.1f}", "11 ± 13"),)
    assert half == pytest.approx(3.182446 * np.sqrt(14 / 3 / 4), rel=1e-6)  # Student's quantile at 3 degrees of freedom


def test_shares_have_the_interval_of_shares(scores: Scores) -> None:
    found = groups.grid([("student", scores)], RIGHT)
    share = proportion_interval(3, 4)
    assert found is not None
    assert found.rows[0][1] == f"0.75 ({share.low:.2f}..{share.high:.2f})"


def test_models_without_groups_or_scores_are_missing_not_zero(scores: Scores) -> None:
    plain, with_nan = make_scores(6, 2, clip=np.ones(12)), Scores(scores.prompt_ids, scores.samples, {"clip": np.full(12, np.nan)})
    with_nan.groups = scores.groups
    found = groups.grid([("student", scores), ("plain", plain), ("broken", with_nan)], CLIP)
    assert found is not None
    assert [row[1:] for row in found.rows[1:]] == [("missing: not in this record",) * 2] * 2
    assert groups.grid([("plain", plain)], CLIP) is None
