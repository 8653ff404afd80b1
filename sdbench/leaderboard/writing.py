"""The leaderboard's files, with a few tables for each section.

Only record folders are read, and the same records always give the same text.
"""

import itertools
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from sdbench import tables
from sdbench.disk import write_bytes
from sdbench.leaderboard import export, published, ranks, speed, truth
from sdbench.leaderboard.grids import BIAS, METHODS, efficiency_grid, group_grids, quality_grid, rank_grid
from sdbench.leaderboard.provenance import footer_lines
from sdbench.leaderboard.standings import Row, Section, sections
from sdbench.tables import Grid

FILE_NAME = "LEADERBOARD.md"
_NOTICE = f"<!-- {FILE_NAME} is generated from the records by `sdbench leaderboard`; do not edit it by hand. -->"
_LEGEND = (
    "`±` and `(low..high)` are 95 % intervals, the latter where they are asymmetric. A bare number has none: counts, memory, cold starts, "
    "ceilings, conditions of the machine, p90 and p99, and what had too few calls or images. `separate runs` marks a ratio of two models "
    "that were not measured in turns; it has no interval, because rounds do not show how much separate runs vary. ↑ higher is better, "
    "↓ lower is better. A note below the table says why a value is missing. Rows of different sections are not comparable. "
    f"{METHODS} {BIAS}"
)


def markdown(board: Sequence[Row]) -> str:
    """The content of `LEADERBOARD.md`.

    Raises:
        UserError: see `records.read_scores`.
    """
    parts = [_NOTICE, "# Leaderboard", _LEGEND]
    for family, group in itertools.groupby(sections(board), lambda section: section.family):
        of_family = list(group)
        parts += itertools.chain.from_iterable(map(_section, of_family))
        if family == "sdxl":
            parts += _published(of_family)
    return "\n\n".join(parts) + "\n"


def _section(section: Section) -> Iterator[str]:
    yield from filter(None, [f"## {section.title}", section.about, tables.markdown(quality_grid(section))])
    if section.ranks:
        yield from ("### Ranks", ranks.EXPLANATION, tables.markdown(rank_grid(section)))
    for title, grid in group_grids(section).items():
        yield from (f"### {title}", tables.markdown(grid))
    if (efficiency := efficiency_grid(section)).rows:
        yield from ("### Efficiency", tables.markdown(efficiency))
    for title, grid in speed.grids(section.records, section.speed_baseline).items():
        yield from (f"### {title}", tables.markdown(grid))
    if correlations := truth.grid([(row.record, row.scores) for row in section.models]):
        yield from ("### Against the truth", tables.markdown(correlations))
    yield "\n".join(f"- {tables.escape_markdown(line)}" for line in footer_lines(section))


def _published(of_family: Sequence[Section]) -> Iterator[str]:
    yield "## Published elsewhere"
    yield "Not measured here; the protocols differ from ours and from each other."
    yield tables.markdown(published.grid(lambda claim: f"[{claim.source}]({claim.url})"))
    for section in of_family:
        if (beside := speed.published_grid(section.records, section.teacher.record if section.teacher else None)).rows:
            yield from (f"### Published and measured: {section.title}", tables.markdown(beside))


def text_table(board: Sequence[Row], width: int) -> str:
    """The tables for a terminal `width` characters wide."""
    parts = []
    for section in sections(board):
        head = filter(None, [section.title, textwrap.fill(section.about, width)])
        parts += [*head, *(tables.text(grid, width) for grid in _tall_grids(section)), "\n".join(footer_lines(section))]
    return "\n\n".join(parts) + "\n"


def latex(board: Sequence[Row]) -> str:
    """The tables of quality and efficiency for a paper; they need the package booktabs. Comments say how the numbers were made."""
    parts = [f"% {_NOTICE.strip('<!-> ').replace(FILE_NAME, 'This file')}\n% \\usepackage{{booktabs}}"]
    for section in sections(board):
        caption = tables.escape_latex(". ".join(filter(None, [section.title, section.about])))
        tabulars = (f"\\begin{{table}}\n\\caption{{{caption}}}\n{tables.latex(grid)}\n\\end{{table}}" for grid in _tall_grids(section))
        parts += [*tabulars, "\n".join(f"% {line}" for line in footer_lines(section))]
    return "\n\n".join(parts) + "\n"


def _tall_grids(section: Section) -> Iterator[Grid]:
    """The tables of quality and efficiency, with models across unless there are many."""
    yield quality_grid(section).tall()
    if (efficiency := efficiency_grid(section)).rows:
        yield efficiency.tall()


def write(board: Sequence[Row], results: Path) -> list[Path]:
    """Write `LEADERBOARD.md`, `.tex`, `.csv` and `.json`, each whole or not at all, and return their paths.

    Raises:
        UserError: a file cannot be written.
    """
    texts = {".md": markdown(board), ".tex": latex(board), ".csv": export.csv_text(board), ".json": export.json_text(board)}
    return [write_bytes((results / FILE_NAME).with_suffix(suffix), text.encode()) for suffix, text in texts.items()]
