"""Student's t against SciPy's, over the degrees of freedom used in practice."""

import math

import pytest
from scipy import stats

from sdbench.stats import student_t

DEGREES = (1, 2, 3, 4, 5, 10, 31, 62, 63, 499, 500, 511, 4095, 29_999)


@pytest.mark.parametrize("df", DEGREES)
def test_quantile_and_cdf_match_scipy(df: int) -> None:
    for p in (0.001, 0.025, 0.05, 0.3, 0.5, 0.6, 0.9, 0.95, 0.975, 0.9999):
        t = float(stats.t.ppf(p, df))
        assert student_t.quantile(p, df) == pytest.approx(t, rel=1e-9, abs=1e-9)
        assert student_t.cdf(t, df) == pytest.approx(p, rel=0, abs=1e-11)  # ppf of SciPy 1.14 is off by 4e-12


def test_cdf_stays_between_0_and_1() -> None:
    ends = [student_t.cdf(t / 4, df) for df in DEGREES for t in range(-400, 401)]
    assert (min(ends), max(ends)) == (0.0, 1.0)


def test_infinities_nan_many_degrees_of_freedom_and_invalid_arguments() -> None:
    assert student_t.cdf(float("inf"), 3) == 1
    assert student_t.cdf(float("-inf"), 3) == 0
    assert math.isnan(student_t.cdf(math.nan, 3))  # 0 would reject every hypothesis
    assert student_t.quantile(0.95, 10**15) == pytest.approx(float(stats.norm.ppf(0.95)))
    for p, df in ((0.0, 5), (1.0, 5), (0.9, 0)):
        with pytest.raises(ValueError):  # noqa: PT011  # the message for p is the standard library's
            student_t.quantile(p, df)
