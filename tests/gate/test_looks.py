"""Sequential looks stop as soon as a verdict is certain, and no earlier."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from factories import Measurement, make_measurement
from values import absent

from sdbench.gate import looks, words
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Policy, Rule
from sdbench.gate.verdicts import Report
from sdbench.records import Value

RULES = Policy(
    alpha=0.05,
    suites={
        "quality": {
            "clip_score.scenes": Rule(direction="higher", margin=0.5, required=True),
            "fd.scenes": Rule(direction="lower", margin=20, required=True),
        }
    },
)
ALL = looks.LookRules(RULES, "quality", ["fd.scenes"], {})


def single_rule(name: str) -> Policy:
    return Policy(alpha=RULES.alpha, suites={"quality": {name: RULES.suites["quality"][name]}})


def first_rows(measurement: Measurement, n: int, sets: bool) -> Side:
    """One side of a comparison, with the first n images only; with `sets`, set metrics too."""
    record, scores = measurement
    values = tuple(
        value.model_copy(update={"n": n, "value": scores.columns[value.name][:n].mean() if value.kind == "score" else value.value})
        for value in record.values
        if value.name == "clip_score.scenes" or (sets and value.name == "fd.scenes")
    )
    columns = {name: column[:n] for name, column in scores.columns.items()}
    return Side(record.model_copy(update={"values": values, "n_images": n}), scores.keys[:n], columns)


def run_looks(worse: str, by: float, *, sets_from: int = 0) -> tuple[Report, list[int]]:
    """Look after each 24 of 192 images, with set metrics from `sets_from` images on; returns the report and the sizes of the looks."""
    student, teacher, sizes = make_measurement(worse=worse, by=by), make_measurement("scenes-teacher", seed=2), []

    def sides(size: int, sets: bool) -> tuple[Side, Side] | None:
        if sets and size < sets_from:
            return None
        return first_rows(student, size, sets), first_rows(teacher, size, sets)

    for size in range(24, 193, 24):
        sizes.append(size)
        if report := looks.verdict_at(tuple(each / 192 for each in sizes), partial(sides, size), ALL):
            return report, sizes
    raise AssertionError


def test_equal_model_passes_early_but_only_with_its_set_metrics() -> None:
    report, sizes = run_looks("", 0)
    assert report.verdict == "pass"
    assert sizes[-1] == 96
    assert [result.name for result in report.results] == ["clip_score.scenes", "fd.scenes"]
    late, late_sizes = run_looks("", 0, sets_from=144)
    assert (late.verdict, late_sizes[-1]) == ("pass", 144)


def test_fault_that_starts_after_the_first_look_is_found() -> None:
    student, teacher, sizes = make_measurement("scenes-teacher", seed=2), make_measurement("scenes-teacher", seed=2), []
    student[1].columns["clip_score.scenes"][24:] -= 3
    rules = replace(ALL, sets=[], policy=single_rule("clip_score.scenes"))

    def sides(size: int, _: bool) -> tuple[Side, Side]:
        return first_rows(student, size, sets=False), first_rows(teacher, size, sets=False)

    for size in range(24, 193, 24):
        sizes.append(size)
        if report := looks.verdict_at(tuple(each / 192 for each in sizes), partial(sides, size), rules):
            break
    assert report
    assert report.verdict == "regressed"


def test_unchanged_model_passes_at_half_of_the_prompts() -> None:
    measurement = make_measurement()
    rules = replace(ALL, sets=[], policy=single_rule("clip_score.scenes"))
    for share, verdict in ((0.49, None), (0.5, "pass")):
        report = looks.verdict_at(
            (share,), lambda _: (first_rows(measurement, 96, sets=False), first_rows(measurement, 96, sets=False)), rules
        )
        assert (report and report.verdict) == verdict


def test_policy_of_set_metrics_only_is_judged_at_the_last_look() -> None:
    measurement, rules = make_measurement(), replace(ALL, policy=single_rule("fd.scenes"))
    reports = [
        looks.verdict_at(shares, lambda sets: (first_rows(measurement, 96, sets), first_rows(measurement, 96, sets)), rules)
        for shares in ((0.5,), (0.5, 1.0))
    ]
    assert [report and report.verdict for report in reports] == [None, "pass"]


def test_early_look_reserves_a_share_of_alpha_for_set_metrics() -> None:
    """At half of the prompts alpha spends 0.0056, alpha / 2 0.0015; p is 0.003."""
    noise = np.random.default_rng(0).normal(0, 1, 200)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    student, teacher = make_measurement(), make_measurement()
    teacher[1].columns["clip_score.scenes"][:] = 0
    student[1].columns["clip_score.scenes"][:] = noise - 0.5 - 2.75 / np.sqrt(200)
    pair = [
        replace(first_rows(measurement, 200, sets=False), keys=[(f"p{row:04d}", 0) for row in range(200)])
        for measurement in (student, teacher)
    ]
    alone, beside = replace(ALL, sets=[], policy=single_rule("clip_score.scenes")), ALL
    found = [looks.verdict_at((0.5,), lambda _: (pair[0], pair[1]), rules) for rules in (alone, beside)]
    assert [report and report.verdict for report in found] == ["regressed", None]


def test_last_look_corrects_for_its_own_metrics_only() -> None:
    """p is 0.019, below the level of one of two metrics, 0.025."""
    noise = np.random.default_rng(0).normal(0, 1, 200)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    student, teacher = make_measurement(n_prompts=200), make_measurement(n_prompts=200)
    teacher[1].columns["clip_score.scenes"][:] = 0
    student[1].columns["clip_score.scenes"][:] = np.repeat(noise, 2) - 0.5 - 2.1 / np.sqrt(200)
    report = looks.verdict_at((1.0,), lambda sets: (first_rows(student, 400, sets), first_rows(teacher, 400, sets)), ALL)
    assert report
    assert [result.verdict for result in report.results] == ["regressed", "pass"]


@pytest.mark.parametrize(("loss", "share", "verdict"), [(0.0, 0.6, "pass"), (0.3, 0.1, None), (0.5, 0.9, "inconclusive")])
@pytest.mark.parametrize("has_sets", [True, False])
def test_set_metrics_are_measured_only_if_all_else_is_decided(loss: float, share: float, verdict: str | None, *, has_sets: bool) -> None:
    student, teacher, asked = make_measurement(), make_measurement("scenes-teacher", seed=2), []
    difference = student[1].columns["clip_score.scenes"][:40] - teacher[1].columns["clip_score.scenes"][:40]
    student[1].columns["clip_score.scenes"] -= loss + difference.mean()

    def sides(sets: bool) -> tuple[Side, Side]:
        asked.append(sets)
        return first_rows(student, 40, sets), first_rows(teacher, 40, sets)

    rules = ALL if has_sets else replace(ALL, sets=[], policy=single_rule("clip_score.scenes"))
    report = looks.verdict_at((share,), sides, rules)
    assert has_sets or (report and report.verdict) == verdict
    assert asked == ([False, True] if has_sets and verdict else [False])


def test_much_worse_model_stops_at_once() -> None:
    report, sizes = run_looks("clip_score.scenes", 3)
    assert (report.verdict, sizes[-1]) == ("regressed", 24)


def test_first_look_of_a_strict_policy_decides_nothing() -> None:
    student, teacher = make_measurement(worse="clip_score.scenes", by=3), make_measurement("scenes-teacher", seed=2)
    rules = replace(ALL, sets=[], policy=single_rule("clip_score.scenes").model_copy(update={"alpha": 0.001}))
    pair = first_rows(student, 12, sets=False), first_rows(teacher, 12, sets=False)
    assert looks.verdict_at((1 / 16,), lambda _: pair, rules) is None


def test_worse_set_metric_regresses_at_the_last_look() -> None:
    report, sizes = run_looks("fd.scenes", 60)
    assert (report.verdict, sizes[-1]) == ("regressed", 192)


def test_loss_equal_to_the_margin_does_not_pass() -> None:
    report, sizes = run_looks("clip_score.scenes", 0.5)
    assert (report.verdict, sizes[-1]) == ("inconclusive", 168)


def test_incomparable_records_stop_at_the_first_look() -> None:
    student, teacher = make_measurement(), make_measurement("scenes-teacher", seed=2)
    student[1].columns["clip_score.scenes"][3] = np.nan
    report = looks.verdict_at((0.5,), lambda sets: (first_rows(student, 24, sets), first_rows(teacher, 24, sets)), ALL)
    assert report
    assert report.verdict == "incomparable"


@pytest.mark.parametrize(("latency", "score", "ends"), [(0.05, 0.0, True), (0.05, 0.4, True), (0.0, 0.4, False)])
def test_undecided_latency_ends_the_run_since_prompts_cannot_decide_it(latency: float, score: float, ends: bool) -> None:
    rules_of_suite = {
        "clip_score.scenes": Rule(direction="higher", margin=0.5, required=True),
        "latency.pipeline.p50": Rule(direction="lower", margin=0.05, required=True),
    }
    rules = looks.LookRules(Policy(alpha=0.05, suites={"quality": rules_of_suite}), "quality", [], {})
    record, scores = make_measurement(worse="latency.pipeline.p50", by=latency)
    scores.columns["clip_score.scenes"] -= score
    sides = []
    for measurement in ((record, scores), make_measurement("scenes-teacher", seed=2)):
        side, timed = first_rows(measurement, 40, sets=False), measurement[0].value("latency.pipeline.p50")
        sides.append(replace(side, record=side.record.model_copy(update={"values": (*side.record.values, timed)})))
    report = looks.verdict_at((0.2,), lambda _: (sides[0], sides[1]), rules)
    assert (report is not None) == ends
    assert report is None or (report.verdict == "inconclusive" and report.why.endswith(words.UNDECIDABLE))


def test_neither_an_unchanged_count_at_a_margin_of_zero_nor_a_skipped_metric_ends_the_run() -> None:
    count = Value(name="parameters.unet", kind="count", direction="lower", unit="", value=1000, n=1)
    skipped = absent("agreement.ssim", "score", "SSIM", "not_applicable", "made elsewhere", direction="higher")
    rules_of_suite = {
        "clip_score.scenes": Rule(direction="higher", margin=0.5, required=True),
        "parameters.unet": Rule(direction="lower", margin=0, required=True),
        "agreement.ssim": Rule(direction="higher", margin=0.1, required=False),
    }
    rules = looks.LookRules(Policy(alpha=0.05, suites={"quality": rules_of_suite}), "quality", [], {})
    student = make_measurement()
    student[1].columns["clip_score.scenes"] -= 0.4  # undecided
    sides = [first_rows(each, 40, sets=False) for each in (student, make_measurement("scenes-teacher", seed=2))]
    sides = [replace(side, record=side.record.model_copy(update={"values": (*side.record.values, count, skipped)})) for side in sides]
    assert looks.verdict_at((0.2,), lambda _: (sides[0], sides[1]), rules) is None


@pytest.mark.parametrize(("distance", "has_sets", "ends"), [(0, True, True), (60, True, False), (0, False, False)])
def test_run_goes_on_while_a_set_metric_may_still_regress(distance: float, *, has_sets: bool, ends: bool) -> None:
    student, teacher = make_measurement(worse="fd.scenes", by=distance), make_measurement("scenes-teacher", seed=2)
    difference = student[1].columns["clip_score.scenes"][:144] - teacher[1].columns["clip_score.scenes"][:144]
    student[1].columns["clip_score.scenes"] -= 0.5 + difference.mean()  # on its margin

    def sides(sets: bool) -> tuple[Side, Side] | None:
        return (first_rows(student, 144, sets), first_rows(teacher, 144, sets)) if has_sets or not sets else None

    report = looks.verdict_at((0.75,), sides, ALL)
    assert (report is not None) == ends
    assert report is None or (report.verdict == "inconclusive" and report.why.endswith(words.UNDECIDABLE))


@pytest.mark.parametrize("sets", [True, False])
def test_policy_of_a_look_includes_set_metrics_only_if_available(sets: bool) -> None:
    assert ("fd.scenes" in ALL.policy_for_look(sets=sets).rules("quality")) is sets
