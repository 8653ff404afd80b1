"""The gate's report, and how it is written: for a terminal, as Markdown for CI pages, as JUnit XML, as JSON."""

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal
from xml.etree import ElementTree as ET

from sdbench import tables
from sdbench.stats.decisions import Verdict
from sdbench.tables import Cell, Grid, Line

EXIT_CODES: dict[Verdict, int] = {"pass": 0, "regressed": 1, "incomparable": 2, "inconclusive": 3}
_MARKS = {"pass": "✅", "regressed": "❌", "incomparable": "⛔", "inconclusive": "❔", "skipped": "▫️"}
_OVER_ROUNDS = "mean over paired rounds, so it can differ, even in sign, from that of the two medians"
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 cannot hold


@dataclass(frozen=True)
class Result:
    """The verdict on one weighed metric.

    Attributes:
        reason: why, in words.
        relative: whether difference, low, high and margin are shares of the baseline, not in `unit`.
        difference, low, high: candidate minus baseline, and its one-sided bounds, at the level of the policy, or of the look where a run
            stops when sure.
        needed_n: number of prompts (rounds for a probe) that would decide it with a probability of 80 %; only where it is inconclusive and
            there is such a number.
    """

    name: str
    verdict: Verdict | Literal["skipped"]
    reason: str
    direction: Literal["higher", "lower"]
    margin: float
    required: bool
    unit: str = ""
    relative: bool = False
    candidate: float | None = None
    baseline: float | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    needed_n: int | None = None

    @property
    def units(self) -> str:
        """What `needed_n` counts."""
        return "rounds" if self.relative else "prompts"


@dataclass(frozen=True)
class Inputs:
    """What was judged, and by which policy, for readers who do not know the command behind a report.

    Attributes:
        candidate, baseline: record folders.
        baseline_asked: the baseline as the user named it, such as its name in `baselines.toml`.
        suite: name, version and digest.
        policy: the policy's file.
        alpha: the policy's one-sided error rate of each bound.
    """

    candidate: str
    baseline: str
    baseline_asked: str
    suite: str
    policy: str
    alpha: float


@dataclass(frozen=True)
class Report:
    """The verdict on a candidate, and the reasons for it.

    Attributes:
        why: the reason for the verdict, in a sentence.
        differences: what makes the records incomparable as a whole.
        notes: what a reader should know although the gate does not weigh it.
        inputs: None where the gate failed before it had any.
    """

    verdict: Verdict
    why: str
    candidate: str
    baseline: str
    results: tuple[Result, ...] = ()
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    inputs: Inputs | None = None

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regressed, 2 incomparable, 3 inconclusive."""
        return EXIT_CODES[self.verdict]

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON types, and the version of this form; an infinite bound is null."""
        results = [{key: finite_or_none(item) for key, item in asdict(result).items()} for result in self.results]
        return {
            "schema_version": tables.JSON_VERSION,
            **asdict(self),
            "results": results,
            "differences": list(self.differences),
            "notes": list(self.notes),
            "exit_code": self.exit_code,
        }

    def grid(self, *, marks: bool = False) -> Grid:
        """The metrics, a row each, the reasons as notes; with `marks`, an emoji before each verdict.

        Where a run stops when sure, the bounds are wider: they hold at all looks together with the confidence that the title states.
        """
        level = f" {100 * (1 - self.inputs.alpha):g} %" if self.inputs else ""
        header = ("metric", "verdict", f"difference (one-sided{level} bounds)", "margin", "candidate", "baseline")
        return Grid(header, tuple(_row(result, f"{_MARKS[result.verdict]} " if marks else "") for result in self.results))

    def text(self, width: int = 160) -> str:
        """The report for a terminal: the reason, then the metrics."""
        table = tables.text(self.grid(), width) if self.results else ""
        return "\n\n".join(filter(None, [f"{self.verdict}: {self.why}", table, _bullets(self)])) + "\n"

    def markdown(self) -> str:
        """The report as Markdown, for CI pages and pull requests."""
        title = " ".join(f"### {_MARKS[self.verdict]} {self.verdict}: {self.candidate} against {self.baseline}".split())
        inputs = "\n".join(f"- {key}: {value}" for key, value in _input_texts(self).items())
        title, why, notes, inputs = map(tables.escape_markdown, (title, " ".join(self.why.split()), _bullets(self), inputs))
        table = tables.markdown(self.grid(marks=True)) if self.results else ""
        return "\n\n".join(filter(None, [title, why, table, notes, inputs])) + "\n"

    __str__ = text
    _repr_markdown_ = markdown  # what a notebook shows

    def junit(self) -> str:
        """The report as JUnit XML: a case for the whole verdict and one for each metric; "inconclusive" counts as a failure."""
        name = f"sdbench gate: {self.candidate} against {self.baseline}"
        suite = ET.Element("testsuite", name=_xml_safe(name))
        if inputs := _input_texts(self):
            properties = ET.SubElement(suite, "properties")
            for key, value in inputs.items():
                ET.SubElement(properties, "property", name=key, value=_xml_safe(value))
        cases = [
            _add_case(suite, "verdict", self.verdict, self.why),
            *(_add_case(suite, result.name, result.verdict, f"{result.reason}: {format_difference(result)}") for result in self.results),
        ]
        for key, kind in (("tests", None), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            suite.set(key, str(sum(kind is None or case.find(kind) is not None for case in cases)))
        ET.indent(suite)
        return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(suite, encoding="unicode")}\n'


def format_difference(result: Result) -> str:
    """The difference and its bounds, such as `+1.2 (+0.9..+1.5)`."""
    if result.difference is None or result.low is None or result.high is None:
        return "none"
    return format_change(result.difference, result.low, result.high, relative=result.relative)


def format_change(difference: float, low: float, high: float, *, relative: bool) -> str:
    """A signed difference and its ends, where these are apart; relative: as shares, in percent."""
    ends = [_format_signed(end, relative) for end in (difference, low, high)]
    return ends[0] if low == high else f"{ends[0]} ({ends[1]}..{ends[2]})"


def change_cell(change: Sequence[float], a: float | None, b: float | None, *, relative: bool) -> Cell:
    """The cell of a difference and its ends between the values a and b; with a note where it is not what these two give.

    Rounds that were measured in turns are compared one by one, so the mean of their ratios is not the ratio of the two medians.
    """
    shown = format_change(*change, relative=relative)
    if not (relative and a and b) or _format_signed(b / a - 1, relative) == _format_signed(change[0], relative):
        return Cell(shown)
    return Cell(shown, _OVER_ROUNDS)


def _row(result: Result, mark: str) -> Line:
    name = (f"{result.name} ({result.unit})" if result.unit else result.name) + tables.ARROWS[result.direction]
    verdict = Cell(f"{mark}{result.verdict}", result.reason)
    if result.difference is None or result.low is None or result.high is None:
        difference = Cell("none")
    else:
        change = (result.difference, result.low, result.high)
        difference = change_cell(change, result.baseline, result.candidate, relative=result.relative)
    loss = -result.margin if result.direction == "higher" else result.margin  # as a difference
    margin = f"{100 * loss:+zg} %" if result.relative else f"{loss:+zg}"
    values = (tables.format_number(value) if value is not None else "none" for value in (result.candidate, result.baseline))
    return name, verdict, difference, margin, *values


def _bullets(report: Report) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in (*report.differences, *report.notes))


def _input_texts(report: Report) -> dict[str, str]:
    """The value of each input, by its name."""
    return {key.replace("_", " "): str(value) for key, value in asdict(report.inputs).items()} if report.inputs else {}


def _add_case(suite: ET.Element, name: str, verdict: str, reason: str) -> ET.Element:
    case = ET.SubElement(suite, "testcase", classname="sdbench.gate", name=_xml_safe(name))
    if verdict != "pass":
        kind = {"incomparable": "error", "skipped": "skipped"}.get(verdict, "failure")
        ET.SubElement(case, kind, type=verdict, message=_xml_safe(reason))
    return case


def _xml_safe(text: str) -> str:
    return _NOT_XML.sub("�", text)


def _format_signed(number: float, relative: bool) -> str:
    return f"{100 * number:+z.1f} %" if relative else f"{number:+z.3g}"


def finite_or_none(item: Any) -> Any:
    """None for a number that JSON lacks; anything else unchanged."""
    return None if isinstance(item, float) and not math.isfinite(item) else item
