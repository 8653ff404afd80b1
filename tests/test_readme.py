"""The README says nothing that the results do not: its table is the leaderboard's, for the suite as it is now."""

import re
from pathlib import Path

import pytest

from sdbench import suites

ROOT = Path(__file__).parents[1]
README, LEADERBOARD = ((ROOT / name).read_text() for name in ("README.md", "results/LEADERBOARD.md"))
ROWS = [line.strip("| ").split(" | ") for line in README.splitlines() if line.startswith("| scenes-")]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_every_number_of_the_readme_is_in_the_leaderboard(row: list[str]) -> None:
    for cell in row[1:]:
        if cell not in ("no model", "(is the teacher)"):
            assert f"| {cell} " in LEADERBOARD


def test_the_table_is_of_the_shipped_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    suite = suites.load("quality")
    assert re.findall(r"`quality@\d+`", README) == [f"`quality@{suite.version}`"]
    assert f"suite digest: {suite.id.digest}" in LEADERBOARD
    assert len(ROWS) == 5
