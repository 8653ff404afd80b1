"""Scores by group of prompts against numbers worked out by hand."""

import numpy as np
import pytest
from factories import make_record

from sdbench.arrays import F64
from sdbench.leaderboard import groups
from sdbench.records import Record, Scores, Value
from sdbench.stats.intervals import mean_interval, proportion_interval

CLIP = Value(name="clip", kind="score", direction="higher", unit="100 cos", value=2.0)
RIGHT = Value(name="right", kind="score", direction="higher", unit="share", value=0.5)
RECORD = make_record("student", groups={"photo": 4, "anime": 2})


def make_scores(**columns: F64) -> Scores:
    """Six prompts with two samples each, out of order."""
    order = [7, 2, 0, 5, 4, 9, 11, 10, 1, 3, 6, 8]
    ids = np.repeat([f"{place:05d}-0123abcd" for place in range(6)], 2)
    return Scores(ids[order].tolist(), np.tile([0, 1], 6)[order].tolist(), {name: column[order] for name, column in columns.items()})


@pytest.fixture
def scores() -> Scores:
    return make_scores(
        clip=np.repeat([1.0, 2.0, 3.0, 6.0, 10.0, 12.0], 2) + np.tile([-0.5, 0.5], 6), right=np.repeat([1.0, 1, 1, 0, 0, 0], 2)
    )


def test_means_and_intervals_count_prompts_not_samples(scores: Scores) -> None:
    found = groups.grid([(RECORD, scores)], CLIP)
    assert found is not None
    assert found.header == ("model", "photo (n = 4)", "anime (n = 2)")
    half = mean_interval([1, 2, 3, 6]).high - 3
    assert found.rows == (("student", f"3.0 ± {half:.1f}", "11 ± 13"),)
    assert half == pytest.approx(3.182446 * np.sqrt(14 / 3 / 4), rel=1e-6)  # Student's quantile at 3 degrees of freedom


def test_shares_have_the_interval_of_shares(scores: Scores) -> None:
    found = groups.grid([(RECORD, scores)], RIGHT)
    share = proportion_interval(3, 4)
    assert found is not None
    assert found.rows[0][1] == f"0.75 ({share.low:.2f}..{share.high:.2f})"


def test_models_without_groups_or_scores_are_missing_not_zero(scores: Scores) -> None:
    plain: Record = make_record("plain")
    found = groups.grid([(RECORD, scores), (plain, scores), (RECORD, make_scores(clip=np.full(12, np.nan)))], CLIP)
    assert found is not None
    assert [row[1:] for row in found.rows[1:]] == [("missing: not in this record",) * 2] * 2
    assert groups.grid([(plain, scores)], CLIP) is None


def test_group_of_which_no_prompt_was_used_is_left_out(scores: Scores) -> None:
    found = groups.grid([(make_record("stopped early", groups={"photo": 4, "anime": 2, "paintings": 2}), scores)], CLIP)
    assert found is not None
    assert found.header[1:] == ("photo (n = 4)", "anime (n = 2)")
