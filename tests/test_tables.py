"""Numbers in words and tables in a terminal."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbench.disk import size_text
from sdbench.run.plan import duration_text
from sdbench.tables import Grid, format_count, format_number, text

UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
SIZES = {"bytes": 1.0, **{f"{prefix}B": factor for prefix, factor in UNITS.items()}}
TIMES = {"s": 1.0, "min": 60.0, "h": 3600.0}
FORMATTERS: dict[
    str, tuple[Callable[[int], str], dict[str, float], float, float]
] = {  # function, units, digits it may lose, largest number
    "count": (format_count, UNITS, 5e-4, 1000),
    "number": (format_number, UNITS, 5e-4, 1e18),
    "size": (size_text, SIZES, 5e-3, 1000),
    "duration": (duration_text, TIMES, 0.05, 1e18),
}


def parse(text: str, units: dict[str, float]) -> tuple[float, float]:
    """The number in front of the unit, and the whole."""
    number, _, unit = text.partition(" ")
    assert "e" not in number, text
    return float(number), float(number) * units[unit]


@pytest.mark.parametrize("name", FORMATTERS)
@given(st.integers(1, 10**17), st.sampled_from([0, 1, 3, 6, 9, 12, 15]), st.integers(-60, 60))
def test_rounding_keeps_value_order_and_unit(name: str, anywhere: int, power: int, near: int) -> None:
    """No `1000 k`, and no larger number that reads as smaller."""
    form, units, loss, largest = FORMATTERS[name]
    for n in (anywhere, max(1, 10**power + near), max(1, 10**power * (100_000 + near) // 100_000)):
        number, whole = parse(form(n), units)
        assert number < largest, form(n)
        assert abs(whole - n) <= loss * n + 1e-9, form(n)
        assert parse(form(n + 1), units)[1] >= whole, (form(n), form(n + 1))


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (format_count(0), "0"),
        (format_count(999), "999"),
        (format_count(0.25), "0.25"),
        (format_count(999.96), "1 k"),
        (format_count(999_949), "999.9 k"),
        (format_count(999_960), "1 M"),
        (format_count(745_225_604), "745.2 M"),
        (format_number(99.996), "100.0"),
        (format_number(9.9996), "10.00"),
        (format_number(-0.99996), "-1.000"),
        (format_number(9.9999e-7), "0.000001000"),
        (format_number(9.9e-7), "9.900e-07"),
        (size_text(0), "0 bytes"),
        (size_text(999), "999 bytes"),
        (size_text(999_600), "1 MB"),
        (size_text(14_900_000), "14.9 MB"),
        (size_text(95_670_000), "95.7 MB"),
        (duration_text(59.4), "59 s"),
        (duration_text(59.6), "1.0 min"),
        (duration_text(0.5), "0.5 s"),
        (duration_text(5400), "90.0 min"),
        (duration_text(5500), "1.5 h"),
    ],
)
def test_numbers_next_to_a_change_of_unit(shown: str, expected: str) -> None:
    assert shown == expected


@pytest.mark.parametrize("width", [50, 60, 80, 100, 200])
def test_a_wide_table_is_cut_into_parts_in_which_no_word_breaks(width: int) -> None:
    header = ("metric", "verdict", "candidate", "difference (one-sided bounds)", "margin", "why")
    rows = (
        (
            "memory.peak_allocated (MiB)",
            "inconclusive",
            "0.2499",
            "+1.7 % (-4.5 %..+22.3 %)",
            "5 %",
            "5 rounds do not decide it; 80 % would",
        ),
        ("scene_accuracy (share)", "regressed", "0.1035", "-0.619 (-0.658..-0.578)", "0.084", "loss shown to exceed the margin"),
    )
    shown = text(Grid(header, rows), width)
    assert max(map(len, shown.splitlines())) <= width
    for word in (*" ".join(header).split(), *(word for row in rows for cell in row for word in cell.split()), "(-4.5 %..+22.3 %)"):
        assert word in shown
    assert len(shown.split("\n\n")) == {50: 4, 60: 3, 80: 2, 100: 2, 200: 1}[width]


@pytest.mark.parametrize("sign", ["%", "↑", "↓", "²", "% ¹²"])
def test_a_sign_stays_on_the_line_of_its_word_however_long_that_is(sign: str) -> None:
    phrase = f"memory.peak_reserved_share {sign}"
    grid = Grid(("what is long takes what room is left", f"of the device: {phrase}"), ())
    assert phrase in text(grid, 20 + len(phrase) + 5)
