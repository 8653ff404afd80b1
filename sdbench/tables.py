"""Tables as data, how they are printed (Markdown, LaTeX, terminal), and how numbers are formatted."""

import io
import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sdbench.records import Direction, Value

JSON_VERSION = 1  # of verdicts and rows as JSON, which other programs read; raised where a key goes or gets another meaning
ARROWS: dict[Direction, str] = {"higher": " ↑", "lower": " ↓", "neither": ""}  # after a column's title: which direction is better
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"
_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {sign: f"$^{digit}$" for digit, sign in enumerate(_SUPERSCRIPTS)}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
    | {"±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"}
)
_WORD = re.compile(rf"\S+(?: [%↑↓{_SUPERSCRIPTS}]\S*)*")
_WRAPPED = 20  # characters in a line of a cell that is wrapped in a terminal: `0.803 (0.766..0.835)`
_SUFFIXES = (" ", " k", " M", " G", " T", " P")
_Column = tuple[str, ...]  # its title first


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and a note that is printed below the table; "" for none."""

    text: str
    note: str = ""


Line = tuple[str | Cell, ...]  # a text alone has no note


class Footnotes:
    """The notes below a table, each once, numbered as they are first asked for."""

    def __init__(self) -> None:
        self._marks: dict[str, str] = {}

    def mark(self, note: str) -> str:
        """The superscript number of a note."""
        number = str(len(self._marks) + 1).translate(str.maketrans("0123456789", _SUPERSCRIPTS))
        return self._marks.setdefault(note, number)

    def __str__(self) -> str:
        """All notes behind their numbers; "" if there are none."""
        return "; ".join(f"{mark} {note}" for note, mark in self._marks.items())


@dataclass(frozen=True)
class Grid:
    """A table; every row has one cell for each column of the header."""

    header: Line
    rows: tuple[Line, ...]

    def transposed(self) -> "Grid":
        """The grid with rows and columns exchanged."""
        header, *rows = zip(self.header, *self.rows, strict=True)
        return Grid(header, tuple(rows))

    def tall(self) -> "Grid":
        """The grid, or the transposed one if that has more rows: a page is as long as it likes, but only so wide."""
        return max(self, self.transposed(), key=lambda grid: len(grid.rows))

    def with_notes_below(self) -> tuple[list[list[str]], str]:
        """The texts of header and rows, with numbers for the notes, and the numbered notes, each once; "" if there are none."""
        notes = Footnotes()
        cells = ([cell if isinstance(cell, Cell) else Cell(cell) for cell in line] for line in (self.header, *self.rows))
        lines = [[f"{cell.text} {notes.mark(cell.note)}" if cell.note else cell.text for cell in line] for line in cells]
        return lines, _one_line(str(notes))


def markdown(grid: Grid) -> str:
    """The grid as a GitHub table, with notes below; cells are escaped so that they cannot break it."""
    lines, notes = grid.with_notes_below()
    lines.insert(1, ["---"] * len(grid.header))
    table = "\n".join("| " + " | ".join(escape_markdown(_one_line(cell)).replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{table}\n\n{escape_markdown(notes)}" if notes else table


def latex(grid: Grid) -> str:
    """The grid as a LaTeX `tabular`, with the rules of the package booktabs, and with notes below."""
    shown, notes = grid.with_notes_below()
    head, *rows = (" & ".join(map(escape_latex, line)) + r" \\" for line in shown)
    columns = "l" + "r" * (len(grid.header) - 1)
    lines = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]
    lines += [rf"{{\par\smallskip\footnotesize {escape_latex(notes)}\par}}"] if notes else []
    return "\n".join(lines)


def escape_latex(content: str) -> str:
    """Text on one line, escaped so that LaTeX prints it as it is."""
    return _one_line(content).translate(_LATEX)


def escape_markdown(content: str) -> str:
    """Text, escaped so that it cannot become an HTML tag in Markdown."""
    return content.replace("<", "&lt;")


def _one_line(cell: str) -> str:
    return " ".join(cell.split())


def _parts(columns: Sequence[_Column], width: int) -> Iterator[list[_Column]]:
    """The columns of the tables into which a terminal `width` characters wide makes one be cut; the first column is in each."""
    widths = [_least_width(column) for column in columns]
    start = 1
    for stop in range(2, len(widths)):
        if _table_width([widths[0], *widths[start : stop + 1]]) > width:
            yield [columns[0], *columns[start:stop]]
            start = stop
    yield [columns[0], *columns[start:]]


def _widths(columns: Sequence[_Column], width: int) -> list[int | None]:
    """The width of each column in a table of this width, so that no word breaks; None for each where that cannot be."""
    widths = [_least_width(column) for column in columns]
    spare = width - _table_width(widths)
    if spare < 0:
        return [None] * len(widths)
    given: list[int | None] = []
    for least, column in zip(widths, columns, strict=True):
        room = min(max(map(len, column)), least + spare)
        spare -= room - least
        given.append(room)
    return given


def _table_width(widths: Sequence[int]) -> int:
    """The width of a table whose columns have these widths: three characters lie between two, one at each side."""
    return sum(widths) + 3 * len(widths) - 1


def _least_width(column: _Column) -> int:
    """The width with which a column is readable: long cells wrap, but no word breaks."""
    longest_word = max(len(word) for cell in column for word in _words(cell))
    return min(max(map(len, column)), max(_WRAPPED, longest_word))


def text(grid: Grid, width: int) -> str:
    """The grid for a terminal `width` characters wide, in as many tables as it takes, with notes below; without colour."""
    lines, notes = grid.with_notes_below()
    parts = _parts([*zip(*lines, strict=True)], width)
    return "\n\n".join([*(_part_text(part, width) for part in parts), *([notes] if notes else [])])


def _part_text(columns: Sequence[_Column], width: int) -> str:
    widths = _widths(columns, width)
    header, *rows = ([Text(_wrap(cell, room)) for cell, room in zip(line, widths, strict=True)] for line in zip(*columns, strict=True))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as captured:
        console.print(table)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def _wrap(cell: str, room: int | None) -> str:
    """A cell in lines of at most this width; on one line for None."""
    if room is None:
        return _one_line(cell)
    tied = " ".join(word.replace(" ", "\xa0") for word in _words(cell))
    return "\n".join(textwrap.wrap(tied, room, break_on_hyphens=False)).replace("\xa0", " ")


def _words(cell: str) -> list[str]:
    """What stays on one line: a word with the percent sign, arrow or number of a note behind it."""
    return _WORD.findall(cell)


def format_value(value: Value | None, usual_n: int | None = None) -> Cell:
    """A value with its interval and note, or its state and the reason; with its n where that differs from `usual_n`."""
    if value is None:
        return Cell("missing", "not in this record")
    if value.value is None:
        return Cell(value.state.replace("_", " "), value.reason)
    if value.kind == "count":
        return Cell(format_count(value.value))
    n = f" [n={value.n}]" if usual_n is not None and value.n != usual_n else ""
    is_condition = value.kind == "probe" and value.direction == "neither"  # such as threads, or clocks in MHz, which take no suffix
    shown = f"{float(format_number(value.value)):g}" if is_condition else format_estimate(value.value, value.low, value.high) + n
    return Cell(shown, value.note)


def format_estimate(value: float, low: float | None, high: float | None) -> str:
    """`value ± half-width`, or `value (low..high)` where the interval is lopsided or open, rounded to two digits of the half-width."""
    return " ".join(filter(None, estimate_parts(value, low, high)))


def estimate_parts(value: float, low: float | None, high: float | None) -> tuple[str, str]:
    """The value and the interval of `format_estimate`; the latter is empty without bounds."""
    ends = [end for end in (low, high) if end is not None and end != value]
    if not ends:
        return format_number(value), ""
    spread = abs(ends[0] - value) if len(ends) == 1 else (ends[1] - ends[0]) / 2
    digits = max(0, 1 - _exponent(spread, 2))
    shown, bottom, top = ("?" if number is None else f"{number:.{digits}f}" for number in (value, low, high))
    if low is not None and high is not None and abs((low + high) / 2 - value) <= spread / 20:
        return shown, f"± {spread:.{digits}f}"
    return shown, f"({bottom}..{top})"


def format_number(value: float, digits: int = 4) -> str:
    """A number to this many significant digits, with an exponent only below a millionth; `nan` and `inf` as such."""
    if value == 0 or not math.isfinite(value):
        return f"{value or 0:.0f}"  # -0.0 is 0
    exponent = _exponent(value, digits)
    return f"{value:.{digits - 1}e}" if exponent < -6 else f"{value:.{max(0, digits - 1 - exponent)}f}"


def format_count(value: float) -> str:
    """A count with a suffix for thousands: 745225604 -> `745.2 M`."""
    power = min(max(0, _exponent(value, 4) // 3), len(_SUFFIXES) - 1)
    return f"{value / 1000**power:.4g}{_SUFFIXES[power]}".rstrip()


def _exponent(value: float, digits: int) -> int:
    """The power of ten of a number's first digit, once it is rounded to this many: 3 for 999.96 and four digits, as for 1000."""
    return int(f"{value:.{digits - 1}e}".partition("e")[2])


def format_ordinal(number: int) -> str:
    """`1st`, `2nd`, `3rd`, `4th`, `11th`."""
    ending = "th" if 10 < number % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def join_words(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
