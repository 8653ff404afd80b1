"""Differences without a verdict: intervals against scipy's, signs, and what is said of chance."""

import dataclasses
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from factories import GPU, Measurement, make_measurement, make_record, make_scores, save_record, with_value
from scipy import stats as scipy_stats

from sdbench import api, suites
from sdbench.errors import UserError
from sdbench.gate import comparison, floors
from sdbench.gate.comparison import Comparison, Difference
from sdbench.gate.pairing import Side
from sdbench.leaderboard.standings import Row, Section
from sdbench.records import SuiteId, Value
from sdbench.report import wins
from sdbench.score import PROTOCOLS
from sdbench.stats import decisions

GOLDEN = Path(__file__).parents[1] / "golden"
PAIRED = {"clip_score.scenes", "preference.scenes", "scene_accuracy"}


def compare(a: Measurement, b: Measurement, tmp_path: Path) -> Comparison:
    return comparison.compare(save_record(a, tmp_path / "a"), save_record(b, tmp_path / "b"), tmp_path)


def rows(found: Comparison) -> dict[str, Difference]:
    return {each.name: each for each in found.differences}


def of_scores(name: str, columns: dict[str, np.ndarray], direction: str = "higher", *more: Value) -> Measurement:
    """A record of scores with one image for each prompt."""
    n = len(next(iter(columns.values())))
    values = [
        Value.model_validate({"name": metric, "kind": "score", "direction": direction, "unit": "1", "value": column.mean(), "n": n})
        for metric, column in columns.items()
    ]
    return make_record(name, (*values, *more), n_images=n), make_scores(n, 1, **columns)


def count(name: str, value: float) -> Value:
    return Value(name=name, kind="count", direction="lower", unit="parameters", value=value)


@pytest.fixture
def teacher() -> Measurement:
    return make_measurement("scenes-teacher", seed=2)


def test_interval_of_a_score_without_skewness_is_that_of_the_paired_t_test(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    half = random.normal(0, 1, 20)
    a = random.normal(30, 4, 40)
    b = a + 0.3 + np.concatenate([half, -half])  # as far above 0.3 as below
    (found,) = compare(of_scores("a", {"clip": a}), of_scores("b", {"clip": b}), tmp_path).differences
    expected = scipy_stats.ttest_rel(b, a)
    ends = expected.confidence_interval(0.95)
    assert (found.difference, found.low, found.high) == pytest.approx((0.3, ends.low, ends.high))
    assert (found.a, found.b) == pytest.approx((a.mean(), b.mean()))
    assert (found.outcome == "better", found.could_be_chance) == (expected.pvalue < 0.05, False)


@pytest.mark.parametrize(
    ("name", "by", "difference"),
    [
        ("clip_score.scenes", 2, -2),
        ("fd.scenes", 150, +150),
        ("latency.pipeline.p50", 0.5, +0.5),
        ("memory.peak_data", 0.2, +0.2),
    ],
)
def test_a_difference_is_b_minus_a_and_its_outcome_follows_the_direction(
    name: str, by: float, difference: float, teacher: Measurement, tmp_path: Path
) -> None:
    worse = make_measurement(worse=name, by=by)
    there, back = rows(compare(teacher, worse, tmp_path / "1"))[name], rows(compare(worse, teacher, tmp_path / "2"))[name]
    assert there.difference == pytest.approx(difference, rel=0.1)
    assert there.low < there.difference < there.high
    assert (there.outcome, back.outcome) == ("worse", "better")
    assert not there.could_be_chance
    if there.kind == "probe":
        ratios = [1 + end for end in (there.difference, there.low, there.high)]
        assert (back.difference, back.high, back.low) == pytest.approx([1 / ratio - 1 for ratio in ratios], rel=0.05)
    else:
        assert (back.difference, back.high, back.low) == pytest.approx([-end for end in (there.difference, there.low, there.high)])


def test_lower_scores_are_better_where_the_record_says_so(tmp_path: Path) -> None:
    a = np.random.default_rng(0).normal(0.3, 0.1, 50)
    columns = {"agreement.lpips": a}, {"agreement.lpips": a - 0.1}
    (found,) = compare(of_scores("a", columns[0], "lower"), of_scores("b", columns[1], "lower"), tmp_path).differences
    assert found.difference == pytest.approx(-0.1)
    assert found.outcome == "better"


def test_counts_are_exact_and_take_no_part_in_the_correction(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    a, noise = random.normal(30, 4, 50), random.normal(0, 1, 50)
    scores = {"clip": a}, {"clip": a + noise - noise.mean() + 2.3 * noise.std(ddof=1) / np.sqrt(50)}  # p = 0.026
    counts = [(*(count(f"flops.{n}", 7) for n in range(9)), count("parameters.unet", n)) for n in (400, 100)]
    a_side, b_side = (of_scores("x", columns, "higher", *more) for columns, more in zip(scores, counts, strict=True))
    found = rows(compare(a_side, b_side, tmp_path))
    unet, same = found["parameters.unet"], found["flops.0"]
    assert (unet.difference, unet.low, unet.high, unet.outcome) == (-0.75, -0.75, -0.75, "better")
    assert (same.difference, same.low, same.high, same.outcome) == (0, 0, 0, "no difference seen")
    assert (found["clip"].outcome, found["clip"].could_be_chance) == ("better", False)


def test_what_could_be_chance_is_what_holm_rejects_by_the_p_values_of_paired_t_tests(tmp_path: Path) -> None:
    random = np.random.default_rng(4)
    half = random.normal(0, 1, (12, 30))
    noise = np.concatenate([half, -half], axis=1)  # without skewness, so that the bounds are Student's
    shifts = np.linspace(0, 5, 12)[:, None] * noise.std(axis=1, ddof=1, keepdims=True) / np.sqrt(60)  # t from 0 to 5
    a = random.normal(30, 4, (12, 60))
    columns = [{f"m{row}": values for row, values in enumerate(side)} for side in (a, a + noise + shifts)]
    found = compare(of_scores("a", columns[0]), of_scores("b", columns[1]), tmp_path)
    p = [scipy_stats.ttest_rel(columns[1][each.name], columns[0][each.name]).pvalue for each in found.differences]
    survives = decisions.holm(p, 0.05)
    outcomes = [(each.outcome, each.could_be_chance) for each in found.differences]
    assert outcomes == [
        ("better", not sure) if each < 0.05 else ("no difference seen", False) for each, sure in zip(p, survives, strict=True)
    ]
    assert {("better", True), ("better", False), ("no difference seen", False)} == set(outcomes)
    assert found.notes == (
        "of 12 intervals of 95 %, some exclude 0 by chance; what could be chance does not survive Holm's correction over all 12",
    )


def test_equal_notes_are_told_once_for_both_sides_and_all_metrics(teacher: Measurement, tmp_path: Path) -> None:
    by_side: tuple[dict[str, str], ...] = (
        {"fd.scenes": "n < d", "clip_score.scenes": "n < d", "scene_accuracy": "few", "latency.pipeline.p50": "drift +6%"},
        {"fd.scenes": "n < d", "clip_score.scenes": "n < d", "scene_accuracy": "n < d", "latency.pipeline.p50": "drift +7%"},
    )
    sides = [teacher, make_measurement()]
    for place, notes in enumerate(by_side):
        for name, note in notes.items():
            sides[place] = with_value(sides[place], name, note=note)
    told = (
        "fd.scenes and clip_score.scenes of both: n < d",
        "scene_accuracy of the candidate: n < d",
        "latency.pipeline.p50 of the candidate: drift +7%",
        "scene_accuracy of the baseline: few",
        "latency.pipeline.p50 of the baseline: drift +6%",
    )
    old, new = (save_record(side, tmp_path) for side in sides)
    assert comparison.compare(old, new, tmp_path).notes[:5] == told
    assert api.gate(new, old, places=tmp_path).notes[:5] == told


def test_record_against_itself_differs_in_nothing(teacher: Measurement, tmp_path: Path) -> None:
    folder = save_record(teacher, tmp_path)
    found = comparison.compare(folder, folder, tmp_path).differences
    assert {(each.difference, each.low, each.high, each.outcome, each.could_be_chance) for each in found} == {
        (0, 0, 0, "no difference seen", False)
    }


def test_direct_win_rate_is_that_of_the_pages_matrix(teacher: Measurement, tmp_path: Path) -> None:
    student = make_measurement(worse="preference.scenes", by=0.03)
    folders = save_record(teacher, tmp_path), save_record(student, tmp_path)
    found = comparison.compare(*folders, tmp_path)
    section = Section("scenes", "quality@1", (Row(folders[1], student[0]), Row(folders[0], teacher[0])))
    matrix = wins.matrix(section, "preference.scenes")
    assert matrix
    win = matrix.rows[0][1]
    assert win
    rate = found.wins["preference.scenes"].estimate
    assert (rate.value, rate.low, rate.high) == (win.share, win.low, win.high)
    assert rate.value < 0.5
    assert set(found.wins) == {"preference.scenes"}
    assert {f"win_rate.{judge}" for judge in comparison.JUDGES} == {name for name in PROTOCOLS if name.startswith("win_rate.")}


def test_unlike_records_are_refused_with_every_difference(teacher: Measurement, tmp_path: Path) -> None:
    other = make_measurement(n_prompts=90, family="sdxl", suite=SuiteId(name="standard", version=2, digest="0"))
    with pytest.raises(UserError) as error:
        compare(teacher, other, tmp_path)
    message = str(error.value)
    assert message.startswith(
        "the records of scenes-student (candidate) and scenes-teacher (baseline) cannot be compared: family is 'sdxl' "
    )
    for what in ("suite is 'standard' against 'quality'", "suite version is 2 against 1", "number of images is 180 against 200", "prompts"):
        assert what in message


def test_separate_runs_are_widened_by_the_noise_between_runs_or_it_is_said_that_it_is_unknown(teacher: Measurement, tmp_path: Path) -> None:
    apart = make_measurement(run="another")
    name = "latency.pipeline.p50"
    values = [record.value(name) for record in (apart[0], teacher[0])]
    own, of_teacher = (value.samples for value in values if value and value.samples)
    bounds = decisions.ratio_bounds(own, of_teacher, 0.975)
    unknown = compare(teacher, apart, tmp_path / "apart")
    assert (rows(unknown)[name].low, rows(unknown)[name].high) == pytest.approx((math.expm1(bounds.low), math.expm1(bounds.high)))
    assert any("were measured in separate runs, and it is not known how much runs of one model vary" in note for note in unknown.notes)
    runs = [
        Side(*each[:1], each[1].keys, each[1].columns)
        for each in (make_measurement(seed=seed, worse=name, by=seed / 10) for seed in (1, 2, 3))
    ]
    floors.write(floors.estimate(runs, [1, 2, 3], teacher[0].suite), tmp_path / "known")
    known = compare(teacher, apart, tmp_path / "known")
    assert rows(known)[name].high > rows(unknown)[name].high
    assert not any("separate runs" in note for note in known.notes)


def test_what_cannot_be_compared_is_named_with_the_reason(teacher: Measurement, tmp_path: Path) -> None:
    no_value = {"value": None, "low": None, "high": None}
    student = with_value(make_measurement(machine=GPU), "scene_accuracy", state="failed", reason="3 scores are NaN", **no_value)
    condition = Value(name="machine.drift", kind="probe", direction="neither", unit="share", value=0.1)
    extra = count("parameters.unet", 3)
    sides = [
        (record.model_copy(update={"values": (*record.values, condition, *more)}), scores)
        for (record, scores), more in ((teacher, ()), (student, (extra,)))
    ]
    found = compare(sides[0], sides[1], tmp_path)
    assert set(rows(found)) == {"fd.scenes", "clip_score.scenes", "preference.scenes"}
    (classes,) = [reason for reason in found.not_compared if reason.startswith("different machine classes")]
    assert found.not_compared == {
        "candidate is failed: 3 scores are NaN": ("scene_accuracy",),
        classes: ("latency.pipeline.p50", "memory.peak_data"),
        "only in the record of the candidate": ("parameters.unet",),
    }
    assert "not compared: latency.pipeline.p50, memory.peak_data: different machine classes" in str(found)
    probes_only = [(record.model_copy(update={"values": record.values[-3:-2]}), scores) for record, scores in sides]
    with pytest.raises(UserError, match=r"no metric of scenes-student .* can be compared"):
        compare(probes_only[0], probes_only[1], tmp_path / "probes")


def test_suite_that_no_policy_knows_is_compared(tmp_path: Path) -> None:
    suite = SuiteId(name="mine", version=1, digest="0a")
    folders = [save_record(make_measurement(name, seed=seed, suite=suite), tmp_path) for seed, name in enumerate(("before", "after"))]
    found = api.compare("before", "after", places=api.Places(tmp_path))
    assert found == api.compare(folders[0], folders[1], places=api.Places(tmp_path))
    assert (found.a, found.b, found.suite) == ("before", "after", "mine@1 (digest 0a)")
    with pytest.raises(UserError, match="has no table"):
        api.gate(folders[1], folders[0], places=api.Places(tmp_path))
    assert "mine" not in suites.names()


def test_comparison_is_printed_as_a_table(tmp_path: Path) -> None:
    def make(name: str, seed: int, speed: float, parameters: float, loss: float) -> Measurement:
        measurement = make_measurement(name, seed=seed, worse="clip_score.scenes", by=loss)
        measurement = with_value(
            measurement, "latency.pipeline.p50", samples=((speed,), ((1 + seed / 200) * speed,), (0.99 * speed,)), value=speed
        )
        measurement = with_value(measurement, "fd.scenes", value=50 + loss)
        record, scores = with_value(measurement, "memory.peak_data", samples=None)
        return record.model_copy(update={"values": (*record.values, count("parameters.unet", parameters))}), scores

    found = compare(make("before", 2, 1.5, 2.5e6, 0.0), make("after", 3, 1.0, 1.5e6, 2.0), tmp_path)
    text = re.sub(r"/[0-9a-f]{16}\)", "/<digest>)", found.text(width=120).replace(f"{tmp_path}/", ""))  # pyarrow writes the scores' bytes
    assert text == (GOLDEN / "compare.txt").read_text(encoding="utf-8")
    assert found._repr_markdown_().startswith("### after compared with before\n\n- A, the baseline: before (")
    assert "| clip_score.scenes (100 cos) ↑ | worse | -1.98 (-2.04..-1.92) | 30.06 | 28.08 |" in found._repr_markdown_().replace("\\", "")


def test_several_models_stand_side_by_side_with_their_differences_from_one(teacher: Measurement, tmp_path: Path) -> None:
    early = with_value(make_measurement("step-500", worse="clip_score.scenes", by=2), "fd.scenes", note="few")
    late = with_value(make_measurement("step-1000", seed=7), "fd.scenes", note="few")
    drifted = with_value(teacher, "latency.pipeline.p50", note="drift +6%")
    folders = [save_record(each, tmp_path) for each in (drifted, early, late)]
    found = [comparison.compare(folders[0], folder, tmp_path) for folder in folders[1:]]
    without_speed = dataclasses.replace(found[1], differences=tuple(each for each in found[1].differences if each.kind != "probe"))
    text = comparison.side_by_side([found[0], without_speed], width=140)
    lines = {line.split()[0]: re.split(r"  +", line.strip()) for line in text.splitlines() if line.startswith(" ")}
    assert lines["metric"] == ["metric", "A", "step-500", "step-1000"]
    clip, same = (rows(own)["clip_score.scenes"] for own in found)
    assert (clip.outcome, same.outcome) == ("worse", "no difference seen")
    assert lines["clip_score.scenes"] == ["clip_score.scenes (100 cos) ↑", clip.cells[3], f"{clip.change.text} worse", same.change.text]
    assert lines["latency.pipeline.p50"][-1] == "not compared"
    remarks = [line for line in text.splitlines() if line.startswith("- ")]
    assert [line[: line.index(" by ")] for line in remarks[:2]] == [
        "- step-500 as B: win rate of B over A",
        "- step-1000 as B: win rate of B over A",
    ]
    assert remarks[2:4] == ["- fd.scenes of the candidate: few", "- latency.pipeline.p50 of the baseline: drift +6%"], "once for both"


def test_models_side_by_side_are_compared_with_one_record(tmp_path: Path) -> None:
    found = [compare(make_measurement("a", seed=seed), make_measurement(name), tmp_path) for seed, name in ((1, "b"), (2, "c"))]
    with pytest.raises(UserError, match=r"b is comparable with another record of a \(.*\) than c \(.*\); choose a suite with --suite"):
        comparison.side_by_side(found)


def test_comparison_as_json_has_null_for_an_infinite_bound(tmp_path: Path) -> None:
    sides = [with_value(make_measurement(seed=seed), "latency.pipeline.p50", samples=((float(seed),),), value=seed) for seed in (1, 2)]
    content = json.loads(json.dumps(compare(sides[0], sides[1], tmp_path).to_json(), allow_nan=False))
    (latency,) = [each for each in content["differences"] if each["name"] == "latency.pipeline.p50"]
    assert (latency["a"], latency["b"], latency["difference"], latency["high"], latency["outcome"]) == (1, 2, 1, None, "no difference seen")
    assert content["schema_version"] == 1
    assert set(content["wins"]["preference.scenes"]) == {"share", "low", "high", "wins", "ties", "losses"}
