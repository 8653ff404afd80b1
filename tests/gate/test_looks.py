"""Stop with a verdict as early as is sure, and not before."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from factories import make_measured

from sdbench.gate import looks
from sdbench.gate.compare import Side
from sdbench.gate.policy import Policy, Rule
from sdbench.gate.verdicts import Report
from sdbench.records import Record, Scores

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


def only(name: str) -> Policy:
    return Policy(alpha=RULES.alpha, suites={"quality": {name: RULES.suites["quality"][name]}})


def first(made: tuple[Record, Scores], n: int, sets: bool) -> Side:
    record, scores = made
    values = tuple(
        value.model_copy(update={"n": n, "value": scores.columns[value.name][:n].mean() if value.kind == "score" else value.value})
        for value in record.values
        if value.name == "clip_score.scenes" or (sets and value.name == "fd.scenes")
    )
    columns = {name: column[:n] for name, column in scores.columns.items()}
    return Side(record.model_copy(update={"values": values, "n_images": n}), scores.keys[:n], columns)


def course(worse: str, by: float, *, sets_from: int = 0) -> tuple[Report, list[int]]:
    """Looks at eighths of 200 pictures; sets can be taken from a look of so many on."""
    student, teacher, looked = make_measured(worse=worse, by=by), make_measured("scenes-teacher", seed=2), []

    def sides(size: int, sets: bool) -> tuple[Side, Side] | None:
        if sets and size < sets_from:
            return None
        return first(student, size, sets), first(teacher, size, sets)

    for size in range(24, 193, 24):
        looked.append(size)
        if report := looks.verdict_at(tuple(each / 192 for each in looked), partial(sides, size), ALL):
            return report, looked
    raise AssertionError


def test_the_same_passes_early_and_only_with_its_sets() -> None:
    report, looked = course("", 0)
    assert report.verdict == "pass"
    assert looked[-1] == 96
    assert [result.name for result in report.results] == ["clip_score.scenes", "fd.scenes"]
    late, waited = course("", 0, sets_from=144)
    assert (late.verdict, waited[-1]) == ("pass", 144)


def test_a_fault_that_the_first_prompts_do_not_show_does_not_pass_on_those() -> None:
    student, teacher, looked = make_measured("scenes-teacher", seed=2), make_measured("scenes-teacher", seed=2), []
    student[1].columns["clip_score.scenes"][24:] -= 3
    rules = replace(ALL, sets=[], policy=only("clip_score.scenes"))
    for size in range(24, 193, 24):
        looked.append(size)
        pair = first(student, size, sets=False), first(teacher, size, sets=False)
        if report := looks.verdict_at(tuple(each / 192 for each in looked), lambda _, pair=pair: pair, rules):
            break
    assert report
    assert report.verdict == "regressed"


def test_what_did_not_change_passes_at_half() -> None:
    made = make_measured()
    rules = replace(ALL, sets=[], policy=only("clip_score.scenes"))
    for share, verdict in ((0.49, None), (0.5, "pass")):
        report = looks.verdict_at((share,), lambda _: (first(made, 96, sets=False), first(made, 96, sets=False)), rules)
        assert (report and report.verdict) == verdict


def test_a_policy_of_sets_alone_is_judged_at_the_last_look() -> None:
    made, rules = make_measured(), replace(ALL, policy=only("fd.scenes"))
    looked = [
        looks.verdict_at(shares, lambda sets: (first(made, 96, sets), first(made, 96, sets)), rules) for shares in ((0.5,), (0.5, 1.0))
    ]
    assert [report and report.verdict for report in looked] == [None, "pass"]


def test_an_early_look_leaves_a_share_of_the_level_to_the_sets_it_cannot_test() -> None:
    """At half of the prompts alpha spends 0.0056, alpha / 2 0.0015; p is 0.003."""
    noise = np.random.default_rng(0).normal(0, 1, 200)
    noise = (noise - noise.mean()) / noise.std(ddof=1)
    student, teacher = make_measured(), make_measured()
    teacher[1].columns["clip_score.scenes"][:] = 0
    student[1].columns["clip_score.scenes"][:] = noise - 0.5 - 2.75 / np.sqrt(200)
    pair = [replace(first(made, 200, sets=False), keys=[(f"p{row:04d}", 0) for row in range(200)]) for made in (student, teacher)]
    alone, beside = replace(ALL, sets=[], policy=only("clip_score.scenes")), ALL
    found = [looks.verdict_at((0.5,), lambda _: (pair[0], pair[1]), rules) for rules in (alone, beside)]
    assert [report and report.verdict for report in found] == ["regressed", None]


def test_what_is_far_worse_stops_at_once() -> None:
    report, looked = course("clip_score.scenes", 3)
    assert report.verdict == "regressed"
    assert looked[-1] <= 48


def test_a_strict_policy_s_first_looks_decide_nothing() -> None:
    student, teacher = make_measured(worse="clip_score.scenes", by=3), make_measured("scenes-teacher", seed=2)
    rules = replace(ALL, sets=[], policy=only("clip_score.scenes").model_copy(update={"alpha": 0.001}))
    pair = first(student, 12, sets=False), first(teacher, 12, sets=False)
    assert looks.verdict_at((1 / 16,), lambda _: pair, rules) is None


def test_a_worse_distance_of_the_set_is_seen_at_the_end() -> None:
    report, looked = course("fd.scenes", 60)
    assert (report.verdict, looked[-1]) == ("regressed", 192)


def test_a_loss_of_the_margin_ends_undecided() -> None:
    verdicts = [course("clip_score.scenes", 0.5)[0]]
    assert {report.verdict for report in verdicts} <= {"inconclusive", "regressed"}


def test_what_cannot_be_compared_stops_the_first_look() -> None:
    student, teacher = make_measured(), make_measured("scenes-teacher", seed=2)
    student[1].columns["clip_score.scenes"][3] = np.nan
    report = looks.verdict_at((0.5,), lambda sets: (first(student, 24, sets), first(teacher, 24, sets)), ALL)
    assert report is None or report.verdict == "incomparable"
    assert report


@pytest.mark.parametrize(("latency", "score", "ends"), [(0.05, 0.0, True), (0.05, 0.4, True), (0.0, 0.4, False)])
def test_a_latency_that_stays_open_ends_it_for_no_prompt_will_decide_it(latency: float, score: float, ends: bool) -> None:
    open_at = {
        "clip_score.scenes": Rule(direction="higher", margin=0.5, required=True),
        "latency.pipeline.p50": Rule(direction="lower", margin=0.05, required=True),
    }
    rules = looks.LookRules(Policy(alpha=0.05, suites={"quality": open_at}), "quality", [], {})
    record, scores = make_measured(worse="latency.pipeline.p50", by=latency)
    scores.columns["clip_score.scenes"] -= score
    sides = []
    for made in ((record, scores), make_measured("scenes-teacher", seed=2)):
        side, timed = first(made, 40, sets=False), made[0].value("latency.pipeline.p50")
        sides.append(replace(side, record=side.record.model_copy(update={"values": (*side.record.values, timed)})))
    report = looks.verdict_at((0.2,), lambda _: (sides[0], sides[1]), rules)
    assert (report is not None) == ends
    assert report is None or (report.verdict == "inconclusive" and report.why.endswith(looks.UNDECIDABLE))


@pytest.mark.parametrize(("distance", "taken", "ends"), [(0, True, True), (60, True, False), (0, False, False)])
def test_it_is_not_given_up_while_a_distance_may_still_say_regressed(distance: float, *, taken: bool, ends: bool) -> None:
    student, teacher = make_measured(worse="fd.scenes", by=distance), make_measured("scenes-teacher", seed=2)
    difference = student[1].columns["clip_score.scenes"][:144] - teacher[1].columns["clip_score.scenes"][:144]
    student[1].columns["clip_score.scenes"] -= 0.5 + difference.mean()  # on its margin

    def sides(sets: bool) -> tuple[Side, Side] | None:
        return (first(student, 144, sets), first(teacher, 144, sets)) if taken or not sets else None

    report = looks.verdict_at((0.75,), sides, ALL)
    assert (report is not None) == ends
    assert report is None or (report.verdict == "inconclusive" and report.why.endswith(looks.UNDECIDABLE))


@pytest.mark.parametrize("sets", [True, False])
def test_the_policy_of_a_look(sets: bool) -> None:
    assert ("fd.scenes" in ALL.policy_for_look(sets=sets).rules("quality")) is sets
