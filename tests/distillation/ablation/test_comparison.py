from pathlib import Path

import pytest
from PIL import Image

from distillation.ablation.comparison import compare_arms, markdown_table, plot_arms
from distillation.ablation.experiment import BASE, Outcome
from sdbench.stats.intervals import Estimate


def test_the_table_matches_closed_forms() -> None:
    def outcome(arm: str, seed: int, right: int) -> Outcome:
        return Outcome(arm, seed, {}, (True,) * right + (False,) * (10 - right), {})

    rows = [outcome(BASE, 0, 4), outcome(BASE, 1, 6), outcome("other", 0, 5), outcome("other", 1, 9)]
    base, other = compare_arms(rows)
    half = 12.7062 * 0.1  # t(0.975, 1) sd / sqrt(2), sd = 0.1 sqrt(2)
    assert (base.accuracy.value, base.accuracy.high) == pytest.approx((0.5, 0.5 + half), rel=1e-4)
    assert base.difference == Estimate(0, 0, 0, 2)
    assert other.difference
    assert (other.difference.value, other.difference.high) == pytest.approx((0.2, 0.2 + half), rel=1e-4)
    (alone,) = compare_arms([outcome("other", 0, 5)])
    assert markdown_table([alone]).splitlines()[-1] == "| other | 1 | 0.500 (one seed) | the recipe has no student with these seeds |"
    assert markdown_table([base, other]).splitlines()[-1] == "| other | 2 | 0.700 ± 2.541 | +0.200 ± 1.271 |"


def test_the_plot_works_with_a_single_seed(tmp_path: Path) -> None:
    rows = [Outcome(arm, 0, {}, (True, False), {}) for arm in (BASE, "other")]
    plot_arms(rows, tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert len(image.convert("RGB").getcolors(maxcolors=10**6) or ()) > 10
