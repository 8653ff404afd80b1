"""The gate must detect a metric that was made worse, and must never pass what it could not compare."""

import json
import math
import re
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import pytest
from factories import GPU, Measurement, judge_folders, make_measurement, make_record, make_scores, save_record, with_value
from scipy import stats as scipy_stats

from sdbench import api, records, suites
from sdbench.errors import UserError
from sdbench.gate import comparison, floors, policy, weighing
from sdbench.gate.judging import Level
from sdbench.gate.judging import judge as judge_sides
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Policy, Rule
from sdbench.gate.verdicts import Report, Result
from sdbench.records import Machine, NamedTeacher, Record, Scores, SuiteId, Value
from sdbench.records.names import is_probe
from sdbench.score import PROTOCOLS
from sdbench.stats.decisions import decide, paired_mean_bounds
from sdbench.tables import Cell

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
SHIPPED = policy.load(ROOT / "suites" / "gate.toml")
NO_VALUE = {"value": None, "low": None, "high": None, "samples": None}


def judge(candidate: Measurement, baseline: Measurement, tmp_path: Path, rules: Policy = SHIPPED) -> Report:
    return judge_folders(save_record(candidate, tmp_path / "candidate"), save_record(baseline, tmp_path / "baseline"), rules)


def single_rule(name: str, *, direction: Literal["higher", "lower"] = "higher", margin: float = 0.0, required: bool = True) -> Policy:
    return Policy(alpha=0.05, suites={"quality": {name: Rule(direction=direction, margin=margin, required=required)}})


def optional_rule(name: str) -> Policy:
    """A policy with one metric that may be skipped and one that may not."""
    direction: Literal["higher", "lower"] = "lower" if name.startswith(("latency", "memory")) else "higher"
    rules = {
        name: Rule(direction=direction, margin=9, required=False),
        "clip_score.scenes": Rule(direction="higher", margin=9, required=True),
    }
    return Policy(alpha=0.05, suites={"quality": rules})


@pytest.fixture
def teacher() -> Measurement:
    return make_measurement("scenes-teacher", seed=2)


def test_record_passes_against_itself_at_any_margin(teacher: Measurement, tmp_path: Path) -> None:
    folder = save_record(teacher, tmp_path)
    for rules in (
        SHIPPED,
        single_rule("latency.pipeline.p50", direction="lower"),
        single_rule("fd.scenes", direction="lower"),
        single_rule("scene_accuracy"),
    ):
        report = judge_folders(folder, folder, rules)
        assert (report.verdict, report.exit_code) == ("pass", 0), report.why


def test_equal_model_passes(teacher: Measurement, tmp_path: Path) -> None:
    report = judge(make_measurement(), teacher, tmp_path)
    assert (report.verdict, report.exit_code) == ("pass", 0), report.text()
    assert [result.name for result in report.results if result.verdict == "skipped"] == ["memory.peak_allocated"]
    assert [(result.relative, result.margin) for result in report.results if result.verdict == "skipped"] == [(True, 0.05)]
    assert report.why == (
        "scenes-student is as good as scenes-teacher, within the margin, in all 6 metrics compared. Not compared: memory.peak_allocated."
    )


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("fd.scenes", 150),
        ("clip_score.scenes", 2),
        ("preference.scenes", 0.5),
        ("scene_accuracy", 0.2),
        ("latency.pipeline.p50", 0.5),
        ("memory.peak_data", 0.2),
    ],
)
def test_worse_metric_regresses_and_better_metric_passes(name: str, by: float, teacher: Measurement, tmp_path: Path) -> None:
    worse = judge(make_measurement(worse=name, by=by), teacher, tmp_path / "worse")
    assert (worse.verdict, worse.exit_code) == ("regressed", 1)
    assert [result.name for result in worse.results if result.verdict == "regressed"] == [name]
    assert name in worse.why
    better = judge(make_measurement(worse=name, by=-by), teacher, tmp_path / "better")
    assert better.verdict == "pass"


def test_too_few_prompts_are_inconclusive_and_the_reported_number_decides(tmp_path: Path) -> None:
    rules = single_rule("clip_score.scenes", margin=0.03)
    few, few_teacher = make_measurement(n_prompts=6), make_measurement("scenes-teacher", seed=2, n_prompts=6)
    report = judge(few, few_teacher, tmp_path / "few", rules)
    assert (report.verdict, report.exit_code) == ("inconclusive", 3)
    needed = report.results[0].needed_n
    assert needed is not None
    assert report.results[0].reason == (
        f"6 prompts do not decide it; about {needed} prompts would, with a probability of 80 %, if the true difference is the measured one"
    )
    worse = make_measurement(n_prompts=6, worse="clip_score.scenes", by=0.08)
    report = judge(worse, few_teacher, tmp_path / "nearly", rules)
    nearly = report.results[0]
    shown = re.search(r"about (\d+) prompts would", nearly.reason)
    assert nearly.needed_n
    assert shown
    assert nearly.needed_n > 1000
    assert nearly.needed_n < int(shown[1]) < 1.1 * nearly.needed_n
    assert report.why == (
        f"the data show neither that scenes-student is as good as scenes-teacher nor that it is worse in clip_score.scenes; it needs about "
        f"{shown[1]} prompts."
    )
    assert int(shown[1]) % 100 == 0
    repeats = -(-needed // 6)

    def repeat_prompts(measurement: Measurement) -> Measurement:
        columns = {name: np.tile(column, repeats) for name, column in measurement[1].columns.items()}
        n = 12 * repeats
        return with_value(
            (measurement[0].model_copy(update={"n_images": n}), make_scores(6 * repeats, 2, **columns)), "clip_score.scenes", n=n
        )

    assert judge(repeat_prompts(few), repeat_prompts(few_teacher), tmp_path / "many", rules).verdict in ("pass", "regressed")


def test_samples_of_one_prompt_are_not_independent(tmp_path: Path) -> None:
    def measure(samples: int, seed: int) -> Measurement:
        column = np.repeat(np.random.default_rng(seed).normal(30, 1, 50), samples)
        value = Value(name="clip_score.scenes", kind="score", direction="higher", unit="100 cos", value=column.mean(), n=len(column))
        return make_record(f"model-{seed}", (value,), n_images=len(column)), make_scores(50, samples, **{"clip_score.scenes": column})

    once, copied = (
        judge(measure(samples, 1), measure(samples, 2), tmp_path / str(samples), single_rule("clip_score.scenes")).results[0]
        for samples in (1, 4)
    )
    assert once.low == pytest.approx(copied.low)
    assert once.high == pytest.approx(copied.high)


def test_regression_in_one_of_several_metrics_must_survive_holm(tmp_path: Path) -> None:
    def measure(means: list[float]) -> Measurement:
        noise = np.random.default_rng(3).normal(0, 1, 100)
        noise = (noise - noise.mean()) / noise.std(ddof=1)
        columns = {f"metric{i}": mean + noise * (mean != 0) for i, mean in enumerate(means)}
        values = tuple(
            Value(name=name, kind="score", direction="higher", unit="1", value=column.mean(), n=100) for name, column in columns.items()
        )
        return make_record(f"model{means[0]}", values, n_images=100), make_scores(100, 1, **columns)

    def rules(count: int) -> Policy:
        return Policy(
            alpha=0.05, suites={"quality": {f"metric{i}": Rule(direction="higher", margin=0.5, required=True) for i in range(count)}}
        )

    # 1.8 standard errors beyond the margin: p = 0.037, enough alone, too much for one of two or more.
    candidate, baseline = measure([-0.68, 0, 0, 0]), measure([0, 0, 0, 0])
    assert judge(candidate, baseline, tmp_path / "alone", rules(1)).verdict == "regressed"
    among = judge(candidate, baseline, tmp_path / "among", rules(4))
    assert among.verdict == "inconclusive"
    assert "Holm" in among.results[0].reason
    quantiles = sum(map(NormalDist().inv_cdf, (1 - 0.05 / 4, 0.8)))  # of Holm's first step, and of the chance that is promised
    assert among.results[0].needed_n == pytest.approx(100 * (quantiles / 1.8) ** 2, rel=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"family": "sdxl"}, "family is 'scenes' against 'sdxl'"),
        ({"suite": SuiteId(name="standard", version=1, digest="5017e")}, "suite is 'quality' against 'standard'"),
        ({"suite": SuiteId(name="quality", version=2, digest="5017e")}, "suite version is 1 against 2"),
        ({"suite": SuiteId(name="quality", version=1, digest="07e4")}, "suite digest is '5017e' against '07e4'"),
        ({"n_images": 100}, "number of images is 200 against 100"),
    ],
)
def test_records_of_another_family_suite_or_size_are_incomparable(
    change: dict[str, object], message: str, teacher: Measurement, tmp_path: Path
) -> None:
    other = Record.model_validate({**teacher[0].model_dump(), **change}), teacher[1]
    report = judge(make_measurement(), other, tmp_path)
    assert (report.verdict, report.exit_code, report.results) == ("incomparable", 2, ())
    assert report.differences == (message,)
    assert message in report.why


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sampling": {"steps": 20, "guidance_scale": 5.0, "scheduler": "lcm"}}, ["scheduler is 'ddim' against 'lcm'"]),
        (
            {"sampling": {"steps": 4, "guidance_scale": 5.0, "scheduler": "ddim", "eta": 0.5}},
            ["steps is 20 against 4", "eta is None against 0.5"],
        ),
        ({"noise": {"kind": "per_image", "seed": 7}}, ["noise seed is 1 against 7"]),
        ({"prompts": "64 of other.tsv"}, ["source of the prompts is '64 of some.tsv' against '64 of other.tsv'"]),
        (
            {"teacher": NamedTeacher(model="sdxl", suite=SuiteId(name="standard", version=1, digest="0"))},
            ["teacher is 'vega under standard@1 (digest 0)' against 'sdxl under standard@1 (digest 0)'"],
        ),
        ({"noise": {}, "sampling": {}, "prompts": "", "teacher": None}, ["suite digest is '5017e' against '07e4'"]),
        ({"suite": SuiteId(name="quality", version=2, digest="07e4")}, ["suite version is 1 against 2"]),
    ],
)
def test_settings_that_differ_are_named_in_place_of_the_digests(
    changes: dict[str, object], expected: list[str], teacher: Measurement, tmp_path: Path
) -> None:
    full = {
        "noise": {"kind": "per_image", "seed": 1},
        "prompts": "64 of some.tsv",
        "teacher": NamedTeacher(model="vega", suite=SuiteId(name="standard", version=1, digest="0")),
    }
    own, other = (
        (record.model_copy(update={**full, **own_changes}), scores)
        for (record, scores), own_changes in (
            (make_measurement(), {}),
            (teacher, {"suite": SuiteId(name="quality", version=1, digest="07e4"), **changes}),
        )
    )
    assert list(judge(own, other, tmp_path).differences) == expected


def test_records_with_other_prompts_or_protocols_are_incomparable(teacher: Measurement, tmp_path: Path) -> None:
    record, scores = teacher
    renamed = Scores(["other", *scores.prompt_ids[1:]], scores.samples, scores.columns)
    report = judge(make_measurement(), (record, renamed), tmp_path / "keys")
    assert report.differences == (
        "prompts and samples differ: 1 only in the candidate (('p0000', 0)), 1 only in the baseline (('other', 0))",
    )
    extra = Value(name="hps.v2", kind="score", direction="higher", unit="1", value=1, n=200)
    report = judge(make_measurement(), (record.model_copy(update={"values": (*record.values, extra)}), scores), tmp_path / "protocol")
    assert report.differences == ("protocols differ: 1 only in the baseline (hps.v2)",)


@pytest.mark.parametrize(("reference", "message"), [("07e4", "07e4"), (None, "a reference that its record does not name")])
def test_only_the_metric_with_another_reference_is_incomparable(
    reference: str | None, message: str, teacher: Measurement, tmp_path: Path
) -> None:
    other = with_value(teacher, "fd.scenes", reference=reference)
    report = judge(make_measurement(), other, tmp_path / "weighed")
    assert (report.verdict, [result.name for result in report.results if result.verdict == "incomparable"]) == (
        "incomparable",
        ["fd.scenes"],
    )
    assert f"fd.scenes: the candidate was measured against 4ef, the baseline against {message}; run both again" in report.why
    not_weighed = judge(make_measurement(), other, tmp_path / "not-weighed", single_rule("clip_score.scenes", margin=1))
    assert not_weighed.why == "scenes-student is as good as scenes-teacher, within the margin, in the one metric compared."


def test_rows_in_another_order_are_paired_by_key(teacher: Measurement, tmp_path: Path) -> None:
    record, scores = teacher
    order = np.random.default_rng(0).permutation(len(scores.keys))
    shuffled = Scores(
        [scores.prompt_ids[i] for i in order], [scores.samples[i] for i in order], {k: v[order] for k, v in scores.columns.items()}
    )
    report = judge((record, shuffled), teacher, tmp_path, single_rule("clip_score.scenes"))
    assert (report.verdict, report.results[0].low, report.results[0].high) == ("pass", 0, 0)


def test_probes_of_another_machine_class_are_skipped_unless_required(teacher: Measurement, tmp_path: Path) -> None:
    elsewhere = make_measurement(worse="latency.pipeline.p50", by=3.0, machine=GPU)
    optional = {
        name: rule.model_copy(update={"required": not name.startswith("latency")}) for name, rule in SHIPPED.rules("quality").items()
    }
    optional |= {name: rule for name, rule in SHIPPED.rules("quality").items() if name.startswith("memory")}
    report = judge(elsewhere, teacher, tmp_path / "optional", Policy(alpha=0.05, suites={"quality": optional}))
    assert report.verdict == "pass"
    skipped = {result.name: result.reason for result in report.results if result.verdict == "skipped"}
    assert skipped.keys() == {"latency.pipeline.p50", "memory.peak_data", "memory.peak_allocated"}
    assert "different machine classes: Some GPU 80GB" in skipped["latency.pipeline.p50"]
    report = judge(elsewhere, teacher, tmp_path / "shipped")
    assert (report.verdict, report.exit_code) == ("incomparable", 2)
    assert (
        "different machine classes: Some GPU 80GB, driver 550, torch 2.11, CUDA 12.8, Some CPU 3000 "
        "against Some CPU 3000 (8 cores), torch 2.11" in report.why
    )


def test_probes_of_other_threads_are_refused(teacher: Measurement, tmp_path: Path) -> None:
    """The machine class has the cores only; on half the threads everything takes up to twice as long."""
    one, two = (Value(name="machine.threads", kind="probe", direction="neither", unit="threads", value=n) for n in (1, 2))
    record, scores = make_measurement()
    sides = [(side.model_copy(update={"values": (*side.values, n)}), of) for (side, of), n in ((teacher, two), ((record, scores), one))]
    report = judge(sides[1], sides[0], tmp_path / "other")
    assert (report.verdict, report.exit_code) == ("incomparable", 2)
    assert "latency.pipeline.p50: PyTorch's threads are 1 against 2; set OMP_NUM_THREADS alike and run again" in report.why
    assert judge((record, scores), sides[0], tmp_path / "unknown").verdict != "incomparable", "older records do not say"
    optional = judge(sides[1], sides[0], tmp_path / "optional", optional_rule("latency.pipeline.p50"))
    assert [result.verdict for result in optional.results] == ["skipped", "pass"]
    on_gpu = [(side.model_copy(update={"machine": GPU}), of) for side, of in sides]
    assert judge(on_gpu[1], on_gpu[0], tmp_path / "gpu").verdict != "incomparable", "threads decide on a CPU only"


def test_other_limits_of_the_gpus_power_are_noted_beside_probes(tmp_path: Path) -> None:
    """One card has one machine class before and after `nvidia-smi -pl 250`."""
    record, scores = make_measurement(machine=GPU)
    limits = (Value(name="machine.power_limit", kind="probe", direction="neither", unit="W", value=watts) for watts in (250.0, 400.0))
    low, high, unknown = (
        save_record((record.model_copy(update={"values": (*record.values, *added)}), scores), tmp_path)
        for added in (*((limit,) for limit in limits), ())  # older records do not say
    )

    def notes(new: Path, old: Path, rules: Policy = SHIPPED) -> str:
        return " ".join(weighing.judge(Side.read(new), Side.read(old), rules, {}).notes)

    note = "power limit of the GPU was 250 W for the candidate and 400 W for the baseline"
    assert note in notes(low, high)
    assert note in " ".join(comparison.compare(high, low, tmp_path).notes)
    assert not any(
        "power limit" in each for each in (notes(low, low), notes(low, unknown), notes(low, high, single_rule("clip_score.scenes")))
    )


def test_gate_that_skipped_everything_does_not_pass(teacher: Measurement, tmp_path: Path) -> None:
    rules = single_rule("latency.pipeline.p50", direction="lower", margin=9, required=False)
    report = judge(make_measurement(machine=GPU), teacher, tmp_path, rules)
    assert (report.verdict, report.exit_code) == ("incomparable", 2)
    assert "nothing was compared" in report.why


@pytest.mark.parametrize("state", ["missing", "failed", "not_applicable"])
@pytest.mark.parametrize("side", ["candidate", "baseline"])
def test_value_without_a_number_never_passes(state: str, side: str, teacher: Measurement, tmp_path: Path) -> None:
    sides = {"candidate": make_measurement(), "baseline": teacher}
    sides[side] = with_value(sides[side], "scene_accuracy", state=state, reason="out of ink", **NO_VALUE)
    report = judge(sides["candidate"], sides["baseline"], tmp_path)
    assert (report.verdict, report.exit_code) == ("incomparable", 2)
    assert f"{side} is {state.replace('_', ' ')}: out of ink" in report.why


@pytest.mark.parametrize("machine", [GPU, None])
def test_failed_optional_probe_does_not_pass(machine: Machine | None, teacher: Measurement, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"machine": machine} if machine else {}
    failed = with_value(make_measurement(**changes), "latency.pipeline.p50", state="failed", reason="out of memory", **NO_VALUE)
    assert judge(failed, teacher, tmp_path, optional_rule("latency.pipeline.p50")).exit_code == 2


@pytest.mark.parametrize(("state", "verdict"), [("missing", "incomparable"), ("failed", "incomparable"), ("not_applicable", "skipped")])
def test_optional_metric_is_skipped_only_if_not_applicable(state: str, verdict: str, teacher: Measurement, tmp_path: Path) -> None:
    absent = with_value(make_measurement(), "scene_accuracy", state=state, reason="out of ink", **NO_VALUE)
    report = judge(absent, teacher, tmp_path, optional_rule("scene_accuracy"))
    assert {result.name: result.verdict for result in report.results} == {"scene_accuracy": verdict, "clip_score.scenes": "pass"}
    assert report.exit_code == (0 if verdict == "skipped" else 2)


@pytest.mark.parametrize("side", ["candidate", "baseline"])
def test_probe_missing_from_one_record_is_skipped_only_on_another_machine(side: str, teacher: Measurement, tmp_path: Path) -> None:
    def verdict(**changes: Any) -> str:
        sides = {"candidate": make_measurement(**changes), "baseline": teacher}
        record, scores = sides[side]
        sides[side] = record.model_copy(update={"values": tuple(v for v in record.values if v.name != "memory.peak_data")}), scores
        report = judge(sides["candidate"], sides["baseline"], tmp_path / f"{len(changes)}", optional_rule("memory.peak_data"))
        assert side in report.results[0].reason
        return report.results[0].verdict

    assert (verdict(), verdict(machine=GPU)) == ("incomparable", "skipped")


def test_a_look_tests_scores_at_its_own_level_and_probes_at_alpha(teacher: Measurement, tmp_path: Path) -> None:
    def width(result: Result) -> float:
        assert result.low is not None
        assert result.high is not None
        return result.high - result.low

    sides = Side.read(save_record(make_measurement(), tmp_path)), Side.read(save_record(teacher, tmp_path))
    once, looking = (judge_sides(*sides, SHIPPED, {}, nominal).results for nominal in (None, lambda level: level / 100))
    ratios = {one.name: width(other) / width(one) for one, other in zip(once, looking, strict=True) if one.high}
    assert {name for name, wider in ratios.items() if wider > 1.5} == {
        "fd.scenes",
        "clip_score.scenes",
        "preference.scenes",
        "scene_accuracy",
    }
    assert (ratios["latency.pipeline.p50"], ratios["memory.peak_data"]) == (1, 1)


def test_a_look_too_strict_to_decide_says_that_one_judgement_would(teacher: Measurement, tmp_path: Path) -> None:
    sides = Side.read(save_record(make_measurement(), tmp_path)), Side.read(save_record(teacher, tmp_path))

    def compare(nominal: Level | None, margin: float) -> Result:
        return judge_sides(*sides, single_rule("clip_score.scenes", margin=margin), {}, nominal).results[0]

    def strict(level: float) -> float:
        return level / 100

    once, looking = compare(None, 0.1), compare(strict, 0.1)
    assert once.low is not None
    assert looking.low is not None
    between = -(once.low + looking.low) / 2
    assert compare(None, between).verdict == "pass"
    undecided = compare(strict, between)
    assert undecided.verdict == "inconclusive"
    assert undecided.needed_n is not None
    assert f"about {undecided.needed_n} prompts, judged once rather than at several looks, would" in undecided.reason


def test_equal_shares_of_too_few_prompts_do_not_claim_that_fewer_would_decide(tmp_path: Path) -> None:
    student, teacher = make_measurement(n_prompts=33), make_measurement("scenes-teacher", seed=2, n_prompts=33)
    (result,) = judge(student, teacher, tmp_path, single_rule("scene_accuracy", margin=0.084)).results
    assert (result.verdict, result.difference, result.needed_n) == ("inconclusive", 0, None)
    assert result.reason == "33 prompts do not decide it, and it is not known how many would"


def test_failure_outranks_regression(teacher: Measurement, tmp_path: Path) -> None:
    broken = with_value(make_measurement(worse="clip_score.scenes", by=9), "fd.scenes", state="failed", reason="singular", **NO_VALUE)
    report = judge(broken, teacher, tmp_path)
    assert {result.name: result.verdict for result in report.results}["clip_score.scenes"] == "regressed"
    assert report.exit_code == 2


@pytest.mark.parametrize(("name", "column"), [("clip_score.scenes", "clip_score.scenes"), ("fd.scenes", "fd.scenes:influence")])
def test_nan_or_missing_column_never_passes(name: str, column: str, teacher: Measurement, tmp_path: Path) -> None:
    record, scores = make_measurement()
    scores.columns[column][7] = np.nan
    report = judge((record, scores), teacher, tmp_path / "nan")
    assert (report.exit_code, report.why.count("1 of 200 scores of the candidate are missing or NaN")) == (2, 1)
    del scores.columns[column]
    report = judge((record, scores), teacher, tmp_path / "none")
    assert report.exit_code == 2
    assert f"{name}: the scores of the candidate have no column {column!r}" in report.why


@pytest.mark.parametrize("required", [True, False])
def test_misspelt_metric_does_not_pass(required: bool, teacher: Measurement, tmp_path: Path) -> None:
    report = judge(
        make_measurement(), teacher, tmp_path, single_rule("latency.pipline.p50", direction="lower", margin=9, required=required)
    )
    assert report.exit_code == 2
    assert "in neither record: unknown metric of these records 'latency.pipline.p50'; did you mean 'latency.pipeline.p50'?" in report.why


def test_record_without_probes_is_reported(teacher: Measurement, tmp_path: Path) -> None:
    record, scores = make_measurement()
    record = record.model_copy(update={"values": tuple(value for value in record.values if value.kind != "probe")})
    report = judge((record, scores), teacher, tmp_path)
    assert report.exit_code == 2
    assert "latency.pipeline.p50, memory.peak_data: not in the candidate's record; measure both models in the same way" in report.why
    rendered = record.model_copy(update={"model": record.model.model_copy(update={"source": "rendered", "weights_digest": None})})
    candidate, baseline = (save_record(measurement, tmp_path) for measurement in ((rendered, scores), teacher))
    report = api.gate(candidate, baseline, places=api.Places(tmp_path))
    assert (report.verdict, report.notes) == (
        "pass",
        ("not measured, so not weighed: latency.pipeline.p50, memory.peak_data, memory.peak_allocated",),
    )
    assert report.to_json()["inputs"]["baseline_asked"] == str(baseline)
    with pytest.raises(UserError, match="unknown value of `only` 'probes'"):
        api.gate(candidate, baseline, places=api.Places(tmp_path), only="probes")


def without(measurement: Measurement, *, image_metrics: bool) -> Measurement:
    """A record of the other half of its suite, made with `--only`."""
    record, scores = measurement
    return record.model_copy(update={"values": tuple(each for each in record.values if each.is_image_metric != image_metrics)}), scores


def test_what_was_not_measured_is_not_called_unknown(teacher: Measurement, tmp_path: Path) -> None:
    for image_metrics, names, advice in (
        (False, "latency.pipeline.p50", "run without --only quality, or gate with --only quality"),
        (True, "fd.scenes, clip_score.scenes, preference.scenes, scene_accuracy", "run without --only probes"),
    ):
        halves = [without(measurement, image_metrics=image_metrics) for measurement in (make_measurement(), teacher)]
        report = judge(halves[0], halves[1], tmp_path / str(image_metrics))
        assert report.exit_code == 2
        assert f"{names}: not measured in either record; {advice}" in report.why
        assert "unknown" not in report.why
    only_quality = without(make_measurement(), image_metrics=False)
    skipped = judge(only_quality, only_quality, tmp_path / "optional", optional_rule("memory.peak_data")).results[0]
    assert (skipped.verdict, skipped.reason.partition(";")[0]) == ("skipped", "not measured in either record")


def test_gate_on_quality_alone_weighs_every_image_metric_and_names_what_it_leaves_out(teacher: Measurement, tmp_path: Path) -> None:
    slow = make_measurement(worse="latency.pipeline.p50", by=9)
    worse, failed = (
        make_measurement(worse="clip_score.scenes", by=2),
        with_value(make_measurement(), "fd.scenes", state="failed", reason="x", **NO_VALUE),
    )
    old = save_record(teacher, tmp_path)

    def compare(candidate: Measurement, baseline: Path = old, policy_file: Path | None = None) -> Report:
        return api.gate(
            str(save_record(candidate, tmp_path)), str(baseline), policy=policy_file, places=api.Places(tmp_path), only="quality"
        )

    report = compare(slow)
    assert (report.verdict, [result.name for result in report.results]) == (
        "pass",
        ["fd.scenes", "clip_score.scenes", "preference.scenes", "scene_accuracy"],
    )
    assert report.notes[-2:] == (
        "not measured, so not weighed: memory.peak_allocated",
        "left out, as only image metrics are weighed: latency.pipeline.p50, memory.peak_data",
    )
    unmeasured = [without(measurement, image_metrics=False) for measurement in (make_measurement(), teacher)]
    report = compare(unmeasured[0], save_record(unmeasured[1], tmp_path))
    assert (report.verdict, report.notes[-1]) == (
        "pass",
        "not measured, so not weighed: latency.pipeline.p50, memory.peak_data, memory.peak_allocated",
    )
    assert compare(worse).verdict == "regressed"
    assert compare(failed).verdict == "incomparable"
    assert compare(without(make_measurement(), image_metrics=True)).verdict == "incomparable"
    only_latency = tmp_path / "latency.toml"
    only_latency.write_text(
        'alpha = 0.05\n[suites.quality]\n"latency.pipeline.p50" = { direction = "lower", margin = 0.05, required = true }', encoding="utf-8"
    )
    with pytest.raises(UserError, match=r"weighs no image metric of suite 'quality', only latency\.pipeline\.p50; without"):
        compare(slow, policy_file=only_latency)


def test_policy_and_records_must_agree_on_the_direction(teacher: Measurement, tmp_path: Path) -> None:
    report = judge(make_measurement(), teacher, tmp_path, single_rule("fd.scenes", direction="higher", margin=99))
    assert report.exit_code == 2
    assert "the policy says higher is better, the records say lower" in report.why


def test_values_of_another_unit_or_n_are_incomparable(teacher: Measurement, tmp_path: Path) -> None:
    for change, message in (({"unit": "cos"}, "score in cos"), ({"n": 199}, "n is 199 against 200")):
        report = judge(with_value(make_measurement(), "clip_score.scenes", **change), teacher, tmp_path)
        assert report.exit_code == 2
        assert message in report.why


@pytest.mark.parametrize("ends", [{}, {"low": None, "high": None}])  # without an interval too, as a p99 of too few calls has none
def test_probe_without_raw_samples_is_incomparable(ends: dict[str, None], teacher: Measurement, tmp_path: Path) -> None:
    candidate, baseline = (
        with_value(measurement, "latency.pipeline.p50", samples=None, **ends) for measurement in (make_measurement(), teacher)
    )
    report = judge(candidate, baseline, tmp_path)
    assert report.exit_code == 2
    assert "not both records hold raw samples" in report.why


@pytest.mark.parametrize(
    ("direction", "verdicts"),
    [
        ("lower", {900: "pass", 1099: "pass", 1101: "regressed"}),
        ("higher", {1100: "pass", 901: "pass", 899: "regressed"}),
    ],
)
def test_counts_are_exact_and_margins_are_shares_of_the_baseline(
    direction: Literal["higher", "lower"], verdicts: dict[int, str], tmp_path: Path
) -> None:
    def measure(number: float) -> Measurement:
        value = Value(name="parameters.unet", kind="count", direction=direction, unit="parameters", value=number)
        return make_record(f"model{number}", (value,)), make_scores()

    for number, verdict in verdicts.items():
        report = judge(measure(number), measure(1000), tmp_path, single_rule("parameters.unet", direction=direction, margin=0.1))
        assert report.verdict == verdict
        assert report.results[0].difference == pytest.approx(number / 1000 - 1)
    report = judge(measure(999), measure(1000), tmp_path, single_rule("parameters.unet", direction=direction, margin=1.0))
    assert report.verdict == ("pass" if direction == "lower" else "incomparable")
    assert direction == "lower" or "margin is 100 % of the baseline" in report.why


def test_equal_shares_on_few_prompts_are_inconclusive_for_other_images(tmp_path: Path) -> None:
    rules = single_rule("scene_accuracy", margin=0.084)
    student, teacher = make_measurement(n_prompts=2), make_measurement("scenes-teacher", seed=2, n_prompts=2)
    assert (student[1].columns["scene_accuracy"] == teacher[1].columns["scene_accuracy"]).all()
    assert judge(student, teacher, tmp_path / "other", rules).verdict == "inconclusive"
    partly = {**student[1].columns, "clip_score.scenes": teacher[1].columns["clip_score.scenes"]}
    alike = student[0], Scores(student[1].prompt_ids, student[1].samples, partly)
    assert judge(alike, teacher, tmp_path / "alike", rules).verdict == "inconclusive", "equal by one score, and other images all the same"
    same = make_measurement("scenes-student-again", n_prompts=2)
    assert judge(student, same, tmp_path / "same", rules).verdict == "pass"


def test_single_call_has_no_bounds_and_its_json_is_strict(teacher: Measurement, tmp_path: Path) -> None:
    once, teacher = (
        with_value(measurement, "latency.pipeline.p50", samples=((time,),), value=time)
        for measurement, time in ((make_measurement(), 0.5), (teacher, 0.6))
    )
    report = judge(once, teacher, tmp_path, single_rule("latency.pipeline.p50", direction="lower", margin=0.1))
    assert (report.verdict, report.results[0].needed_n) == ("inconclusive", None)
    assert report.results[0].reason == "a single round shows no spread; measure more rounds"
    answer = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (answer["schema_version"], answer["exit_code"], answer["verdict"], answer["results"][0]["high"]) == (1, 3, "inconclusive", None)


def test_loss_of_just_the_margin_is_not_promised_a_number_of_prompts(teacher: Measurement, tmp_path: Path) -> None:
    record, scores = teacher
    loss = np.tile([0.0, 0.0, 1.0, 1.0], 50)
    lost = Scores(scores.prompt_ids, scores.samples, {**scores.columns, "scene_accuracy": scores.columns["scene_accuracy"] - loss})
    (result,) = judge((record, lost), teacher, tmp_path, single_rule("scene_accuracy", margin=0.5)).results
    assert (result.verdict, result.needed_n) == ("inconclusive", None)
    assert result.reason == "100 prompts do not decide it, and it is not known how many would"


@pytest.mark.parametrize(("candidate_rounds", "baseline_rounds"), [(1, 8), (8, 1), (7, 8)])
def test_different_numbers_of_rounds_are_incomparable(
    candidate_rounds: int, baseline_rounds: int, teacher: Measurement, tmp_path: Path
) -> None:
    def with_rounds(measurement: Measurement, rounds: int) -> Measurement:
        value = measurement[0].value("latency.pipeline.p50")
        assert value
        assert value.samples
        return with_value(measurement, "latency.pipeline.p50", samples=value.samples[:rounds])

    report = judge(
        with_rounds(make_measurement(), candidate_rounds),
        with_rounds(teacher, baseline_rounds),
        tmp_path,
        single_rule("latency.pipeline.p50", direction="lower", margin=9),
    )
    assert report.exit_code == 2
    assert f"rounds measured: {candidate_rounds} for the candidate, {baseline_rounds} for the baseline" in report.why


def test_changed_record_is_rejected(teacher: Measurement, tmp_path: Path) -> None:
    folder = save_record(teacher, tmp_path)
    path = folder / "record.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"steps": 20', '"steps": 21'), encoding="utf-8")
    with pytest.raises(UserError, match="changed"):
        judge_folders(folder, folder, SHIPPED)


def test_different_sampling_and_notes_of_compared_values_are_reported(teacher: Measurement, tmp_path: Path) -> None:
    candidate = with_value(
        make_measurement(sampling={"steps": 20, "guidance_scale": 5.0, "scheduler": "euler", "eta": 0.5}), "fd.scenes", note="n < 5 d"
    )
    report = judge(candidate, teacher, tmp_path)
    assert report.notes == (
        "sampling differs: scheduler is 'euler' against 'ddim'",
        "sampling differs: eta is 0.5 against None",
        "fd.scenes of the candidate: n < 5 d",
    )


def test_other_software_behind_the_images_is_reported(teacher: Measurement, tmp_path: Path) -> None:
    record, scores = make_measurement()
    packages = record.environment.packages | {"diffusers": "0.38.0", "pyarrow": "1"}
    upgraded = record.model_copy(update={"environment": record.environment.model_copy(update={"packages": packages})})
    (note,) = judge((upgraded, scores), teacher, tmp_path).notes
    assert note == (
        "the images were drawn with different software or on different devices, which may explain a difference: diffusers is '0.38.0' "
        "against '0.37.0'"
    )


def test_sampling_of_images_made_elsewhere_is_said_to_be_unknown(teacher: Measurement, tmp_path: Path) -> None:
    record, scores = make_measurement(sampling={})
    elsewhere = record.model_copy(update={"model": record.model.model_copy(update={"source": "images:folder", "weights_digest": None})})
    report = judge((elsewhere, scores), teacher, tmp_path)
    assert report.notes == ("the images of scenes-student (images:folder) were made elsewhere; how they were sampled is not known",)


def with_agreement(measurement: Measurement, cosine: float) -> Measurement:
    record, scores = measurement
    value = Value(name="agreement.clip.scenes", kind="score", direction="higher", unit="cos", value=cosine, n=len(scores.prompt_ids))
    column = np.full(len(scores.prompt_ids), cosine)
    return record.model_copy(update={"values": (*record.values, value)}), Scores(
        scores.prompt_ids, scores.samples, {**scores.columns, value.name: column}
    )


def test_agreement_with_the_teacher_is_reported_but_compared_only_if_the_policy_names_it(teacher: Measurement, tmp_path: Path) -> None:
    near, far = with_agreement(make_measurement(), 0.875), with_agreement(make_measurement(), 0.75)
    report = judge(far, near, tmp_path / "told")
    assert (report.verdict, report.notes) == (
        "pass",
        ("agreement with the teacher (not weighed; two-sided bounds): agreement.clip.scenes -0.125",),
    )
    near[1].columns["agreement.clip.scenes"][:] += np.repeat(np.random.default_rng(0).normal(0, 0.1, 100), 2)
    by_prompt = (far[1].columns["agreement.clip.scenes"] - near[1].columns["agreement.clip.scenes"])[::2]
    ends = scipy_stats.ttest_1samp(by_prompt, 0).confidence_interval(0.95)
    (note,) = judge(far, near, tmp_path / "spread").notes
    assert note.endswith(f"agreement.clip.scenes {by_prompt.mean():+.3g} ({ends.low:+.3g}..{ends.high:+.3g})")
    weighed = judge(far, near, tmp_path / "weighed", single_rule("agreement.clip.scenes", margin=0.1, required=False))
    assert (weighed.verdict, weighed.notes) == ("regressed", ())
    not_applicable = {**NO_VALUE, "state": "not_applicable", "reason": "the teacher is what the others are compared with"}
    assert judge(far, with_value(with_agreement(teacher, 1.0), "agreement.clip.scenes", **not_applicable), tmp_path / "teacher").notes == ()


def test_report_text_matches_the_golden_file(teacher: Measurement, tmp_path: Path) -> None:
    candidate = with_value(make_measurement(), "memory.peak_data", samples=((1125.0,),) * 3, value=1125)
    candidate = with_value(candidate, "latency.pipeline.p50", samples=((1.0, 1.0),) * 3, value=1.0)
    baseline = with_value(teacher, "memory.peak_data", samples=((900.0,),) * 3, value=900)
    baseline = with_value(baseline, "latency.pipeline.p50", samples=((0.5, 0.5),) * 3, value=0.5)
    rules = {name: rule for name, rule in SHIPPED.suites["quality"].items() if name.startswith(("latency", "memory", "scene"))}
    report = judge(candidate, baseline, tmp_path, Policy(alpha=0.05, suites={"quality": rules}))
    assert report.text(width=140) == (GOLDEN / "gate.txt").read_text(encoding="utf-8")


def test_one_reason_for_many_metrics_is_told_once(teacher: Measurement, tmp_path: Path) -> None:
    candidate = make_measurement()
    for name in ("fd.scenes", "clip_score.scenes", "scene_accuracy"):
        candidate = with_value(candidate, name, state="failed", reason="CUDA out of memory", value=None, low=None, high=None)
    report = judge(candidate, teacher, tmp_path)
    assert report.why == (
        "scenes-student and scenes-teacher cannot be compared: fd.scenes, clip_score.scenes, scene_accuracy: candidate is failed: "
        "CUDA out of memory. Not compared: memory.peak_allocated."
    )


@pytest.mark.parametrize(("run", "shown"), [("c411", "-18.4 % "), ("another", "+5.0 % ")])
def test_a_difference_over_paired_rounds_that_is_not_that_of_the_medians_says_so(run: str, shown: str, tmp_path: Path) -> None:
    """Rounds of 1, 2, 3 s against 0.5, 2.1, 3.1 s: the medians rise by 5 %, and the mean ratio is (0.5 x 1.05 x 31/30)^(1/3), 0.816."""
    name = "latency.pipeline.p50"
    sides = [
        with_value(make_measurement(run=own), name, samples=tuple((seconds,) for seconds in rounds), value=rounds[1])
        for own, rounds in (("c411", (1.0, 2.0, 3.0)), (run, (0.5, 2.1, 3.1)))
    ]
    folders = [save_record(side, tmp_path / side[0].run / str(place)) for place, side in enumerate(sides)]
    report = judge_folders(folders[1], folders[0], single_rule(name, direction="lower", margin=0.05))
    compared = comparison.compare(folders[0], folders[1], tmp_path)
    cells = next(each.cells for each in compared.differences if each.name == name)
    for cell in (report.grid().rows[0][2], cells[2]):
        assert isinstance(cell, Cell)
        assert cell.text.startswith(shown)
        assert cell.note.endswith("differ, even in sign, from that of the two medians") == (run == "c411")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("alfa = 0.05\n[suites]", "unknown key 'alfa'; did you mean 'alpha'?"),
        ("alpha = 0.05\n[suites.quality]\nx = { direction = 'lower', margn = 1, margin = 1, required = true }", "did you mean 'margin'?"),
        ("alpha = 0.05\n[suites.quality]\nx = { direction = 'lower', margin = -1, required = true }", "suites.quality.x.margin"),
        ("alpha = 0.05\n[suites.quality]\nx = { direction = 'lower', margin = nan, required = true }", "suites.quality.x.margin"),
        ("alpha = 0.05\n[suites.quality]\nx = { direction = 'down', margin = 1, required = true }", "'down'"),
        ("alpha = 0.05\n[suites.quality]\nx = { direction = 'lower', margin = 1 }", "required"),
        ("alpha = ", "is not valid TOML"),
    ],
)
def test_invalid_policy_is_rejected_with_the_reason(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        policy.load(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_missing_or_empty_policy_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        policy.load(tmp_path / "none.toml")
    with pytest.raises(
        UserError,
        match=r"gate\.toml has no table \[suites\.few\].*'few-custom' \(it has coco-30k, few-step, hpdv2, quality, standard\); add one, "
        r".*--policy FILE",
    ):
        SHIPPED.rules("few-custom")
    with pytest.raises(UserError, match="policy made in Python names no metric"):
        Policy(alpha=0.05, suites={"quality": {}}).rules("quality")


def test_custom_suite_uses_the_rules_of_the_suite_it_was_made_from() -> None:
    assert SHIPPED.rules("quality-custom") == SHIPPED.rules("quality-custom-sequential") == SHIPPED.rules("quality")
    own = Policy(alpha=0.05, suites={**SHIPPED.suites, "quality-custom": SHIPPED.suites["standard"]})
    assert own.rules("quality-custom") == SHIPPED.rules("standard")


def test_report_notes_margins_taken_from_the_original_suite(tmp_path: Path) -> None:
    named: dict[str, Any] = {"suite": SuiteId(name="quality-custom", version=1, digest="5017e"), "run": ""}
    sides = make_measurement(**named), make_measurement("scenes-teacher", seed=2, **named)
    first, between = judge(*sides, tmp_path).notes
    assert first.startswith(
        "suite 'quality-custom' is judged by the margins of the suite it was derived from, which may lie below the noise"
    )
    assert "measure both in one `sdbench run`" in between
    assert "sdbench noise" not in between
    own = Policy(alpha=0.05, suites={"quality-custom": SHIPPED.rules("quality")})
    assert not any("derived from" in note for note in judge(*sides, tmp_path / "own", own).notes)


def test_probes_are_told_from_image_metrics_by_name() -> None:
    assert not any(map(is_probe, PROTOCOLS))
    measured = [records.read_record(folder) for folder in records.folders(ROOT / "results")]
    assert {is_probe(value.name) == value.is_image_metric for record in measured for value in record.values} == {False}


@pytest.mark.parametrize("name", sorted(SHIPPED.suites))
def test_shipped_policy_weighs_only_metrics_that_its_suite_measures(name: str) -> None:
    suite, rules = suites.load(name), SHIPPED.rules(name)
    assert {metric for metric in rules if not is_probe(metric)} <= {*suite.own_metrics}
    probes = {metric: rule for metric, rule in rules.items() if is_probe(metric)}
    assert {metric for metric, rule in probes.items() if rule.required} == ({"latency.pipeline.p50"} if suite.probes else set())
    assert {rule.margin for rule in probes.values()} <= {0.05}


@pytest.mark.parametrize("name", sorted(SHIPPED.suites.keys() - {"quality"}))
def test_full_size_margins_follow_the_published_noise_and_equal_models_pass(name: str) -> None:
    prompts = suites.load(name).prompts
    published = {"clip_score.vit-l-14": 0.04, "fid.clean": 0.19}  # BK-SDM, 30,000 images
    rules, random = SHIPPED.rules(name), np.random.default_rng(0)
    noise_in_policy = {metric: rule.noise for metric, rule in rules.items() if rule.noise}
    assert noise_in_policy == {
        metric: pytest.approx(published[metric] * math.sqrt(30_000 / prompts.n), rel=0.01) for metric in noise_in_policy
    }
    assert noise_in_policy.keys() == published.keys() & rules.keys()
    assert all(4 <= rules[metric].margin / noise < 4.3 for metric, noise in noise_in_policy.items())
    if "pickscore.v1" in rules:
        assert rules["pickscore.v1"].margin * math.sqrt(prompts.n / 3200) == pytest.approx(0.2, rel=0.02)
    noise_per_prompt = {metric: noise * math.sqrt(prompts.n) for metric, noise in noise_in_policy.items()} | {"pickscore.v1": 2.8}
    for metric in noise_per_prompt.keys() & rules.keys():
        bounds = [paired_mean_bounds(random.normal(0, noise_per_prompt[metric], prompts.n), 0.95) for _ in range(200)]
        passed = np.mean([decide(found, rules[metric].margin) == "pass" for found in bounds])
        assert passed >= 0.97, f"{metric}: {passed}"


def test_shipped_margins_follow_the_measured_noise_floor() -> None:
    (path,) = (ROOT / "results" / "noise" / "scenes").glob("quality@*/scenes-vega-*.toml")
    floor = floors.read(path)
    assert str(path.relative_to(ROOT)) in (ROOT / "suites" / "gate.toml").read_text(encoding="utf-8")
    quality = {name: rule for name, rule in SHIPPED.rules("quality").items() if rule.noise}
    assert quality.keys() == {
        name for name in floor.metrics if name in SHIPPED.rules("quality") and not name.startswith(("latency.", "memory."))
    }
    for name, rule in quality.items():
        assert rule.noise == pytest.approx(floor.metrics[name].noise, rel=0.01)
        assert 4 <= rule.margin / floor.metrics[name].noise < 4.3
