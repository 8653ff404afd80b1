"""A model's results in its model card: `model-index` metadata, which the Hub reads, and a section between two markers."""

import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from sdbench import tables
from sdbench.disk import write_bytes
from sdbench.errors import UserError
from sdbench.leaderboard import grids, standings
from sdbench.leaderboard.speed import P50, probe_cell
from sdbench.leaderboard.standings import Row, Section
from sdbench.records import Value
from sdbench.tables import Grid, Line

FILE_NAME = "README.md"
_START, _END = (
    "<!-- sdbench: results, written by `sdbench card`; what stands between these two lines is replaced -->",
    "<!-- sdbench: end -->",
)
_DATASET_PREFIX = "sdbench"  # of the data set's type, marks our entries in a card's `model-index`


def write(folder: Path, board: list[Row], own: list[Row]) -> Path:
    """Write the results of a model into `folder/README.md`, replacing earlier results, and return its path.

    Args:
        folder: the model's folder; of an existing card, everything but the results is kept.
        board: all rows, for the teachers' results.
        own: the model's rows.

    Raises:
        UserError: the card cannot be read or written, its metadata is not YAML, or its markers do not make one pair.
    """
    path = folder / FILE_NAME
    try:
        text = path.read_text(encoding="utf-8-sig") if path.exists() else ""  # drops the byte order mark that some editors write
        card = ModelCard(text if text.startswith("---") else f"---\n{{}}\n---\n{text}")
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"the model card {path} cannot be read: {error}. Repair or remove it") from error
    assert isinstance(card.data, ModelCardData)
    sections = [(section, row) for section in standings.sections(board) for row in section.rows if row in own]
    others = [result for result in card.data.eval_results or [] if not result.dataset_type.startswith(_DATASET_PREFIX)]
    card.data.eval_results = others + [result for section, row in _newest_with_entries(sections) for result in _entries(section, row)]
    card.data.model_name = card.data.model_name or folder.resolve().name
    card.text = _replace_results(card.text, "\n\n".join(part for section, row in sections for part in _section_parts(section, row)), path)
    return write_bytes(path, str(card).encode())


def _newest_with_entries(sections: Sequence[tuple[Section, Row]]) -> list[tuple[Section, Row]]:
    """Of each suite the newest row with image metrics: the Hub would take rows from two machine classes for one result with two values."""
    newest: dict[str, Row] = {}
    for section, row in sorted(sections, key=lambda pair: pair[1].record.created):
        if _entries(section, row):
            newest[row.record.suite.digest] = row
    return [(section, row) for section, row in sections if row is newest.get(row.record.suite.digest)]


def _entries(section: Section, row: Row) -> list[EvalResult]:
    """An entry for each image metric with a value. Latency belongs to a machine, so it is only in the section."""
    record = row.record
    return [
        EvalResult(
            task_type="text-to-image",
            dataset_type=f"{_DATASET_PREFIX}/{record.suite.name}",
            dataset_name=f"{record.suite.title}, {record.n_prompts} prompts",
            dataset_revision=record.suite.digest,
            metric_type=value.name,
            metric_name=grids.metric_title(value),
            metric_value=float(f"{value.value:.6g}"),
            metric_args={"low": value.low, "high": value.high, "n": value.n},
        )
        for metric in standings.metrics(section)
        if (value := record.value(metric.name)) and value.value is not None
    ]


def _section_parts(section: Section, row: Row) -> list[str]:
    teacher = section.teacher if section.teacher != row else None
    shown = [row, *([teacher] if teacher else [])]
    latency = row.record.value(P50)
    lines = [_row(grids.metric_title(value), value, shown) for value in standings.metrics(section)]
    lines += [_row(grids.probe_title(value), value, shown) for value in [*filter(None, [latency]), *standings.probes(section)]]
    measured = f"Suite digest {row.record.suite.digest}, record {row.folder.name}, {row.record.created:%Y-%m-%d}. Intervals are 95 %."
    return [f"### {section.title}", tables.markdown(Grid(("", *(one.name for one in shown)), tuple(lines))), measured]


def _row(title: str, value: Value, shown: list[Row]) -> Line:
    return title, *(probe_cell(row.record, value.name) for row in shown)


def _replace_results(text: str, results: str, path: Path) -> str:
    """The card's text with the results between the markers; a card without markers gets both at its end."""
    markers = re.findall(f"{re.escape(_START)}|{re.escape(_END)}", text)
    if markers not in ([], [_START, _END]):
        raise UserError(
            f"the model card {path} has only one of sdbench's two markers, several of them, or the second first; remove the markers and "
            "what is between them"
        )
    section = f"{_START}\n\n## Results\n\n{results}\n\n{_END}"
    if not markers:
        return f"{text.rstrip()}\n\n{section}\n"
    return re.sub(f"{re.escape(_START)}.*?{re.escape(_END)}", lambda _: section, text, flags=re.DOTALL)
