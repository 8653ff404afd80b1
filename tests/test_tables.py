"""Numbers in words, and tables in a terminal, in Markdown and in LaTeX."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdbench.disk import size_text
from sdbench.records import Value
from sdbench.run.plan import duration_text
from sdbench.tables import Cell, Grid, format_count, format_estimate, format_number, format_ordinal, format_value, latex, markdown, text

MARKS = ["¹", "²", "³", "⁴", "⁵", "⁶", "⁷", "⁸", "⁹", "¹⁰", "¹¹", "¹²"]
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
        (format_count(1000), "1 k"),
        (format_count(745_225_604), "745.2 M"),
        (format_count(3.3806e12), "3.381 T"),
        (format_count(5e21), "5e+06 P"),
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


@pytest.mark.parametrize("width", [60, 100, 160])
def test_many_models_go_down_in_as_many_tables_as_a_terminal_needs(width: int) -> None:
    names = [f"my-vega-lr1e-5-step-{1000 * step:06d}" for step in range(40)]
    header = ("model", *(f"clip_score.backbone-{column} (100 cos) ↑" for column in range(6)))
    grid = Grid(header, tuple((name, *(f"{column}.803 (0.766..0.835)" for column in range(6))) for name in names))
    assert grid.tall() == grid.transposed().tall() == grid
    lines = text(grid, width).splitlines()
    assert max(map(len, lines)) <= width
    for name in names:
        assert re.findall(r"(.)\.803", " ".join(line for line in lines if name in line)) == [*"012345"], "no name is broken"


def test_a_table_is_cut_only_where_it_does_not_fit() -> None:
    grid = Grid(("model", "a", "bb", "ccc"), (("scenes-teacher", "1", "2", "3"),))
    uncut = text(grid, 80)
    width = max(map(len, uncut.splitlines())) + 1  # with the space behind the last column
    assert [text(grid, given) == uncut for given in (width - 1, width)] == [False, True]
    assert max(map(len, text(grid, width - 1).splitlines())) < width - 1
    too_narrow = text(grid, 10).split("\n\n")
    assert [re.findall("[123]", part) for part in too_narrow] == [["1"], ["2"], ["3"]], "no part is the first column alone"


def test_a_square_table_is_not_turned() -> None:
    grid = Grid(("model", "x"), (("a", "1"),))
    assert grid.tall() == grid


def test_a_cell_wraps_between_words_only() -> None:
    grid = Grid(("model", "note"), (("a", "as measured of my-vega-lr1e-5 before"),))
    assert "my-vega-lr1e-5" in text(grid, 30)


def test_a_table_too_wide_for_its_terminal_breaks_words_rather_than_lose_them() -> None:
    grid = Grid(("metric", "verdict"), (("preference.scenes", "inconclusive"),))
    lines = text(grid, 20).splitlines()
    assert max(map(len, lines)) <= 20
    letters = "".join(line[:11].strip() for line in lines[2:]), "".join(line[11:].strip() for line in lines[2:])
    assert letters == ("preference.scenes", "inconclusive")


def test_notes_stand_below_the_table_each_once() -> None:
    few, lost = Cell("2", "n is 3"), Cell("missing", "a_b | c")
    grid = Grid(("model", "x", "y"), (("a", few, lost), ("b", Cell("1"), few)))
    assert markdown(grid).splitlines()[2:] == ["| a | 2 ¹ | missing ² |", "| b | 1 | 2 ¹ |", "", "¹ n is 3; ² a_b | c"]
    assert markdown(grid.transposed()).splitlines()[2:4] == ["| x | 2 ¹ | 1 |", "| y | missing ² | 2 ¹ |"]
    assert markdown(Grid(("model", "x"), ((few, "1"),)).transposed()).splitlines()[0] == "| model | 2 ¹ |", "a title can have one too"
    assert latex(grid).splitlines()[-1] == r"{\par\smallskip\footnotesize $^1$ n is 3; $^2$ a\_b | c\par}"
    many = Grid(("x",), tuple((Cell("x", str(number)),) for number in range(12)))
    assert markdown(many).splitlines()[-3:] == ["| x ¹² |", "", "; ".join(f"{mark} {n}" for n, mark in enumerate(MARKS))]


def test_latex_escapes_cells() -> None:
    grid = Grid(("model", "a_b ↑"), (("x & y", "1 ± 2 %"), ("back\\slash", "<{~^}>")))
    assert latex(grid).splitlines() == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"model & a\_b $\uparrow$ \\",
        r"\midrule",
        r"x \& y & 1 $\pm$ 2 \% \\",
        r"back\textbackslash{}slash & $<$\{\textasciitilde{}\textasciicircum{}\}$>$ \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_names_are_escaped_in_tables() -> None:
    grid = Grid(("model",), (("[red]a|b</td>\nc",),))
    assert markdown(grid).splitlines()[2] == "| [red]a\\|b&lt;/td> c |"
    assert "[red]a|b</td>" in text(grid, 80)


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (12.3456, 11.3456, 13.3456, "12.3 ± 1.0"),
        (0.51234, 0.51134, 0.51334, "0.5123 ± 0.0010"),
        (1234.5, 1000.5, 1468.5, "1234 ± 234"),
        (0.93, 0.892, 0.955, "0.930 (0.892..0.955)"),
        (1.2, 1.1, None, "1.20 (1.10..?)"),
        (1.0, 0.985, 1.0, "1.000 (0.985..1.000)"),
        (0.5, 0.5, 0.5, "0.5000"),
        (3.25, None, None, "3.250"),
        (0.0, None, None, "0"),
        (-0.0, None, None, "0"),
        (float("nan"), None, None, "nan"),
        (-3.25, None, None, "-3.250"),
        (1.23456e-5, None, None, "0.00001235"),
        (123456.7, None, None, "123457"),
        (6.517e-12, None, None, "6.517e-12"),
        (-2.0, -2.5, -1.5, "-2.00 ± 0.50"),
    ],
)
def test_numbers_have_two_digits_of_their_uncertainty(value: float, low: float | None, high: float | None, expected: str) -> None:
    assert format_estimate(value, low, high) == expected


def test_ordinals_are_written_as_in_english() -> None:
    numbers = (1, 2, 3, 4, 11, 12, 13, 21, 112)
    assert [format_ordinal(number) for number in numbers] == ["1st", "2nd", "3rd", "4th", "11th", "12th", "13th", "21st", "112th"]


@pytest.mark.parametrize(("number", "expected"), [(2.0, "2"), (128.0, "128"), (0.019, "0.019"), (-0.0514, "-0.0514")])
def test_condition_of_a_measurement_has_only_the_digits_that_it_was_written_with(number: float, expected: str) -> None:
    condition = Value(name="machine.threads", kind="probe", direction="neither", unit="threads", value=number, n=5)
    assert format_value(condition) == Cell(expected)
    assert format_value(condition.model_copy(update={"direction": "lower"})) != Cell(expected)


@pytest.mark.parametrize(("number", "expected"), [(1980.0, "1980"), (10501.0, "10501"), (412.35, "412.4")])
def test_condition_takes_no_suffix_in_front_of_its_unit(number: float, expected: str) -> None:
    clock = Value(name="machine.memory_clock", kind="probe", direction="neither", unit="MHz", value=number, n=5)
    assert format_value(clock) == Cell(expected)
