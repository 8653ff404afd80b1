"""The leaderboard as data: one line for each value, for CSV, and nested, for JSON.

A row has its speed-up, because it can't be had from the columns: a ratio of medians has no interval of rounds. Rows with one `run`,
unless it is empty, were timed in turns; only between these does a speed-up have bounds.
"""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from sdbench.leaderboard import standings
from sdbench.leaderboard.speed import SpeedUp
from sdbench.leaderboard.standings import Row, Section
from sdbench.tables import JSON_VERSION, Cell

COLUMNS = (
    "family", "suite", "suite_version", "suite_digest", "machine_class", "model", "label", "architecture", "source", "weights_digest",
    "metric", "kind", "direction", "unit", "state", "reason", "value", "low", "high", "n", "rank", "reference", "note",
    "images", "samples_per_prompt", "run", "speed_up", "speed_up_low", "speed_up_high",
    "sampling", "scheduler", "noise", "commit", "dirty", "record", "created",
)  # fmt: skip  # a table


def lines(board: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """A line for each value of each row, in the order of the leaderboard; a missing value has a state, a reason and no number.

    Sampling, scheduler and noise have several settings each, so their columns hold JSON.
    """
    for section in standings.sections(board):
        for about, row in _rows(section):
            flat = {name: json.dumps(content) if isinstance(content, dict) else content for name, content in about.items()}
            yield from (flat | value for value in _values(section, row))


def _rows(section: Section) -> Iterator[tuple[dict[str, Any], Row]]:
    for row, found in zip(section.rows, section.speed_ups, strict=True):
        yield _about(section, row) | _speed_up(found), row


def _speed_up(found: SpeedUp | Cell) -> dict[str, float | None]:
    ratio = found.ratio if isinstance(found, SpeedUp) else None
    low, high = (ratio.low, ratio.high) if ratio and ratio.has_interval else (None, None)
    return {
        "speed_up": ratio.value if ratio else None,
        "speed_up_low": low,
        "speed_up_high": high if high is None or math.isfinite(high) else None,
    }


def _about(section: Section, row: Row) -> dict[str, Any]:
    record = row.record
    return {
        "family": section.family,
        "suite": record.suite.name,
        "suite_version": record.suite.version,
        "suite_digest": record.suite.digest,
        "machine_class": record.machine.machine_class,
        "model": record.model.name,
        "label": record.model.label,
        "architecture": record.model.architecture,
        "source": record.model.source,
        "weights_digest": record.model.weights_digest,
        "run": record.run,
        "images": record.n_images,
        "samples_per_prompt": record.samples,
        "sampling": record.sampling,
        "scheduler": record.scheduler,
        "noise": record.noise,
        "commit": record.environment.commit,
        "dirty": record.environment.dirty,
        "record": row.folder.name,
        "created": record.created.isoformat(),
    }


def _values(section: Section, row: Row) -> Iterator[dict[str, Any]]:
    for value in row.record.values:
        rank = section.ranks.get(value.name, {}).get(row.name)
        yield {"metric": value.name, **value.model_dump(exclude={"name", "samples"}), "rank": rank}


def csv_text(board: Sequence[Row]) -> str:
    """All lines as CSV with a header; a missing number is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines(board))
    return text.getvalue()


def nested(board: Sequence[Row]) -> list[dict[str, Any]]:
    """A JSON object for each row: the version of this form, the row's description, and its values."""
    return [
        {"schema_version": JSON_VERSION} | about | {"values": list(_values(section, row))}
        for section in standings.sections(board)
        for about, row in _rows(section)
    ]


def json_text(board: Sequence[Row]) -> str:
    """The rows of `nested` as JSON."""
    return json.dumps(nested(board), indent=1, ensure_ascii=False) + "\n"
