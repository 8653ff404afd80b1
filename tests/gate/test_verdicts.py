"""Verdicts as text, Markdown and JUnit XML, which no content can break."""

from dataclasses import replace
from typing import Literal
from xml.etree import ElementTree as ET

import pytest

from sdbench.gate import words
from sdbench.gate.verdicts import Inputs, Report, Result, format_difference
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
    assert row.replace("\\|", "").count("|") == 7


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
    assert "| ❔ inconclusive ¹ |" in text
    assert text.endswith("¹ because\n\n- one note\n")


def test_row_says_which_direction_is_better_and_its_margin_is_a_difference() -> None:
    loss, time = result("accuracy", "pass"), result("latency", "regressed")
    slower, free = replace(time, direction="lower", margin=0.05, relative=True, unit="s"), replace(loss, margin=0)
    rows = Report("regressed", "so", "x", "y", (loss, slower, free)).grid().rows
    assert [(row[0], row[3]) for row in rows] == [("accuracy (share) ↑", "-0.5"), ("latency (s) ↓", "+5 %"), ("accuracy (share) ↑", "+0")]


@pytest.mark.parametrize(("alpha", "shown"), [(0.05, "95 %"), (0.025, "97.5 %"), (0.1, "90 %")])
def test_bounds_have_the_level_of_the_policy(alpha: float, shown: str) -> None:
    report = replace(MIXED, inputs=Inputs("a", "b", "b", "quality@1", "gate.toml", alpha))
    assert f"difference (one-sided {shown} bounds)" in report.markdown()
    assert "difference (one-sided bounds)" in MIXED.markdown()


@pytest.mark.parametrize(
    ("needed", "shown"),
    [
        (
            (("prompts", 2853), ("prompts", 940), ("rounds", 12)),
            "a, b and c; the most that one of these needs: about 2900 prompts and 12 rounds",
        ),
        ((("prompts", 100), ("prompts", None)), "a and b; the most that one of these needs: about 100 prompts"),
        ((("rounds", 101),), "a; it needs about 110 rounds"),
        ((("rounds", None), ("prompts", None)), "a and b"),
    ],
)
def test_reasons_of_an_inconclusive_verdict_are_told_once(needed: tuple[tuple[str, int | None], ...], shown: str) -> None:
    undecided = [
        replace(result(name, "inconclusive", f"{number} {unit} of {name} would"), relative=unit == "rounds", needed_n=number)
        for name, (unit, number) in zip("abc", needed, strict=False)
    ]
    results = (*undecided, result("fine", "pass"), result("z", "skipped"))
    report = Report("inconclusive", words.explain("inconclusive", "x", "y", results), "x", "y", results)
    expected = f"the data show neither that x is as good as y nor that it is worse in {shown}. Not compared: z."
    assert report.text().startswith(f"inconclusive: {expected}\n\n")
    assert ET.fromstring(report.junit().encode())[0][0].get("message") == expected
    for each in undecided:
        assert report.text().count(each.reason) == report.markdown().count(each.reason) == 1


def test_metrics_that_share_a_reason_are_named_together_wherever_the_verdict_is_explained() -> None:
    reason = "candidate is failed: CUDA out of memory; 80 GiB"
    failed = [result(f"metric.{number}", "incomparable", reason) for number in range(12)]
    results = (*failed, result("other", "incomparable", "n is 1 against 2"), result("fine", "pass", reason), result("z", "skipped"))
    report = Report("incomparable", words.explain("incomparable", "x", "y", results), "x", "y", results)
    expected = (
        "x and y cannot be compared: metric.0, metric.1, metric.2, metric.3, metric.4 and 7 more: candidate is failed: CUDA out of memory; "
        "80 GiB; other: n is 1 against 2. Not compared: z."
    )
    assert report.text().startswith(f"incomparable: {expected}\n\n")
    assert f"\n\n{expected}\n\n" in report.markdown()
    assert report.to_json()["why"] == expected
    assert ET.fromstring(report.junit().encode())[0][0].get("message") == expected
    assert report.text().count(reason) == 2  # once more below the table
