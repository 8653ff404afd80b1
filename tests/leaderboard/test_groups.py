"""Scores by group of prompts against numbers worked out by hand."""

import numpy as np
import pytest
from factories import make_record

from sdbench.arrays import F64
from sdbench.leaderboard import groups
from sdbench.records import Scores, Value
from sdbench.stats.intervals import mean_interval, share_interval, wins_interval
from sdbench.tables import Cell

VALUES = (
    Value(name="clip", kind="score", direction="higher", unit="100 cos", value=2.0),
    Value(name="right", kind="score", direction="higher", unit="share", value=0.5),
    Value(name="broken", kind="score", direction="higher", unit="1", state="failed", reason="3 of 12 scores are NaN"),
)
RECORD, GROUPS = make_record("student", VALUES), {"photo": 4, "anime": 2}


def make_scores(**columns: F64) -> Scores:
    """Six prompts with two samples each, out of order."""
    order = [7, 2, 0, 5, 4, 9, 11, 10, 1, 3, 6, 8]
    ids = np.repeat([f"{place:05d}-0123abcd" for place in range(6)], 2)
    return Scores(ids[order].tolist(), np.tile([0, 1], 6)[order].tolist(), {name: column[order] for name, column in columns.items()})


@pytest.fixture
def scores() -> Scores:
    clip = np.repeat([1.0, 2.0, 3.0, 6.0, 10.0, 12.0], 2) + np.tile([-0.5, 0.5], 6)
    return make_scores(clip=clip, right=np.repeat([1.0, 1, 1, 0, 0, 0], 2), broken=np.full(12, np.nan))


def test_means_and_intervals_count_prompts_not_samples(scores: Scores) -> None:
    found = groups.grid([(RECORD, scores)], GROUPS, "clip")
    assert found.header == ("model", "photo (n = 4)", "anime (n = 2)")
    half = mean_interval([1, 2, 3, 6]).high - 3
    assert found.rows == (("student", f"3.0 ± {half:.1f}", "11 ± 13"),)
    assert half == pytest.approx(3.182446 * np.sqrt(14 / 3 / 4), rel=1e-6)  # Student's quantile at 3 degrees of freedom


def test_shares_have_the_interval_of_shares(scores: Scores) -> None:
    share = share_interval([1, 1, 1, 0], 8)
    assert groups.grid([(RECORD, scores)], GROUPS, "right").rows[0][1] == f"0.75 ({share.low:.2f}..{share.high:.2f})"


def test_shares_of_one_sample_with_ties_have_the_interval_of_wins() -> None:
    wins = np.array([1.0, 0.5, 0.5, 1.0, 0.0, 1.0])
    one = Scores([f"{place:05d}-0123abcd" for place in range(6)], [0] * 6, {"right": wins})
    rate = wins_interval(wins[:4], np.full(4, 0.5)).estimate
    assert groups.grid([(RECORD, one)], GROUPS, "right").rows[0][1] == f"0.75 ({rate.low:.2f}..{rate.high:.2f})"


def test_score_that_happens_to_be_zero_throughout_is_no_share() -> None:
    record = make_record("copy", (Value(name="lpips", kind="score", direction="lower", unit="LPIPS", value=0.0),))
    assert groups.grid([(record, make_scores(lpips=np.zeros(12)))], GROUPS, "lpips").rows == (("copy", "0", "0"),)


def test_absent_scores_say_why(scores: Scores) -> None:
    rows = groups.grid([(RECORD, scores), (make_record("older"), scores)], GROUPS, "broken").rows
    nan, missing = Cell("failed", "3 of 12 scores are NaN"), Cell("missing", "not in this record")
    assert rows == (("student", nan, nan), ("older", missing, missing))


def test_prompts_that_were_not_used_are_not_counted(scores: Scores) -> None:
    (row,) = groups.grid([(RECORD, scores)], {"photo": 4, "anime": 4, "paintings": 2}, "clip").rows
    assert row[2:] == ("11 ± 13 [n=2]", "no prompt used")


def test_share_of_several_samples_has_the_interval_of_shares_over_prompts() -> None:
    halves = make_scores(right=np.array([1.0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 0]))
    share = share_interval([1, 0.5, 1, 1], 8)
    assert groups.grid([(RECORD, halves)], GROUPS, "right").rows[0][1] == f"0.88 ({share.low:.2f}..{share.high:.2f})"
