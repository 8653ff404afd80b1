"""Verdicts as JUnit XML and Markdown, which no content can break."""

from dataclasses import replace
from typing import Literal
from xml.etree import ElementTree as ET

import pytest

from sdbench.gate.verdicts import Report, Result, format_difference
from sdbench.stats.decisions import Verdict


def result(name: str, verdict: Verdict | Literal["skipped"], reason: str = "because") -> Result:
    return Result(
        name, verdict, reason, "higher", 0.5, required=True, unit="share", candidate=0.4, baseline=0.5, difference=-0.1, low=-0.2, high=0.0
    )


MIXED = Report(
    "regressed",
    "x is worse",
    "x",
    "y",
    (result("a", "pass"), result("b", "regressed"), result("c", "inconclusive"), result("d", "skipped"), result("e", "incomparable")),
    notes=("one note",),
)


def test_junit_counts_match_its_cases() -> None:
    suite = ET.fromstring(MIXED.junit().encode())
    assert suite.attrib == {"name": "sdbench gate: x against y", "tests": "6", "failures": "3", "errors": "1", "skipped": "1"}
    found = {case.get("name"): [child.tag for child in case] for case in suite}
    assert found == {"verdict": ["failure"], "a": [], "b": ["failure"], "c": ["failure"], "d": ["skipped"], "e": ["error"]}
    assert "because: -0.1 (-0.2..+0)" in (suite.findall("testcase")[2][0].get("message") or "")


@pytest.mark.parametrize(
    ("verdict", "tag"), [("pass", None), ("regressed", "failure"), ("inconclusive", "failure"), ("incomparable", "error")]
)
def test_verdict_without_metrics_is_a_case(verdict: Verdict, tag: str | None) -> None:
    (case,) = ET.fromstring(Report(verdict, "so", "x", "y").junit().encode())
    assert [child.tag for child in case] == ([tag] if tag else [])


def test_hostile_text_is_escaped() -> None:
    hostile = 'a "<b>" & \x00\x1b[31m | c\nd'
    report = Report("incomparable", hostile, hostile, hostile, (result(hostile, "incomparable", hostile),), (hostile,))
    assert len(ET.fromstring(report.junit().encode()).findall("testcase")) == 2
    text = report.markdown()
    assert "<b>" not in text
    row = next(line for line in text.splitlines() if line.startswith("| a "))
    assert row.replace("\\|", "").count("|") == 8


def test_reason_cannot_forge_a_verdict_in_markdown() -> None:
    report = Report("incomparable", "cannot read tensor x\n\n### ✅ pass: x against y\n\n| all well |", "x", "y")
    assert [line for line in report.markdown().splitlines() if line.startswith(("#", "|"))] == ["### ⛔ incomparable: x against y"]


@pytest.mark.parametrize(("relative", "expected"), [(True, "+0.0 % (-0.1 %..+0.1 %)"), (False, "-0.0004 (-0.001..+0.001)")])
def test_a_loss_that_rounds_to_nothing_has_no_minus(relative: bool, expected: str) -> None:
    rounded = replace(result("a", "pass"), relative=relative, difference=-0.0004, low=-0.001, high=0.001)
    assert format_difference(rounded) == expected
    assert format_difference(replace(rounded, difference=-0.0, low=-0.0, high=-0.0)) == ("+0.0 %" if relative else "+0")


def test_markdown_has_verdict_reason_and_every_metric() -> None:
    text = MIXED.markdown()
    assert text.startswith("### ❌ regressed: x against y\n\nx is worse\n")
    assert text.count("\n| ") == 7
    assert "| ❔ inconclusive |" in text
    assert text.endswith("- one note\n")
