"""The gate must find what was made worse, and must never wave through what it could not compare."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from factories import GPU, make_measured, make_record, make_scores, saved, with_value

from sdbench import api, suites
from sdbench.errors import UserError
from sdbench.gate import floors, policy
from sdbench.gate.compare import Side
from sdbench.gate.judging import Report, gate
from sdbench.gate.judging import judge as judge_sides
from sdbench.gate.policy import Policy, Rule
from sdbench.records import Record, Scores, SuiteId, Value
from sdbench.stats.decisions import decide, paired_mean_bounds

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parents[1] / "golden"
SHIPPED = policy.load(ROOT / "suites" / "gate.toml")
NO_VALUE = {"value": None, "low": None, "high": None, "samples": None}
Made = tuple[Record, Scores]


def judge(candidate: Made, baseline: Made, tmp_path: Path, rules: Policy = SHIPPED) -> Report:
    return gate(saved(candidate, tmp_path / "candidate"), saved(baseline, tmp_path / "baseline"), rules)


def weighing(name: str, *, direction: str = "higher", margin: float = 0.0, required: bool = True) -> Policy:
    return Policy(alpha=0.05, suites={"quality": {name: Rule(direction=direction, margin=margin, required=required)}})


def optional(name: str) -> Policy:
    """A metric that may be skipped, beside one that may not."""
    direction = "lower" if name.startswith(("latency", "memory")) else "higher"
    rules = {
        name: Rule(direction=direction, margin=9, required=False),
        "clip_score.scenes": Rule(direction="higher", margin=9, required=True),
    }
    return Policy(alpha=0.05, suites={"quality": rules})


@pytest.fixture
def teacher() -> Made:
    return make_measured("scenes-teacher", seed=2)


def test_a_record_passes_against_itself_at_any_margin(teacher: Made, tmp_path: Path) -> None:
    folder = saved(teacher, tmp_path)
    for rules in (
        SHIPPED,
        weighing("latency.pipeline.p50", direction="lower"),
        weighing("fd.scenes", direction="lower"),
        weighing("scene_accuracy"),
    ):
        report = gate(folder, folder, rules)
        assert (report.verdict, report.exit_code) == ("pass", 0), report.why


def test_an_equal_model_passes(teacher: Made, tmp_path: Path) -> None:
    report = judge(make_measured(), teacher, tmp_path)
    assert (report.verdict, report.exit_code) == ("pass", 0), report.text()
    assert [result.name for result in report.results if result.verdict == "skipped"] == ["memory.peak_allocated"]
    assert "Not compared: memory.peak_allocated." in report.why


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("fd.scenes", 150),
        ("clip_score.scenes", 2),
        ("preference.scenes", 0.5),
        ("scene_accuracy", 0.2),
        ("latency.pipeline.p50", 0.5),
        ("memory.peak_rss", 0.2),
    ],
)
def test_the_one_metric_made_worse_regresses_and_better_passes(name: str, by: float, teacher: Made, tmp_path: Path) -> None:
    worse = judge(make_measured(worse=name, by=by), teacher, tmp_path / "worse")
    assert (worse.verdict, worse.exit_code) == ("regressed", 1)
    assert [result.name for result in worse.results if result.verdict == "regressed"] == [name]
    assert name in worse.why
    better = judge(make_measured(worse=name, by=-by), teacher, tmp_path / "better")
    assert better.verdict == "pass"


def test_too_few_prompts_are_inconclusive_and_the_number_asked_for_decides(tmp_path: Path) -> None:
    rules = weighing("clip_score.scenes", margin=0.03)
    few, few_teacher = make_measured(n_prompts=6), make_measured("scenes-teacher", seed=2, n_prompts=6)
    report = judge(few, few_teacher, tmp_path / "few", rules)
    assert (report.verdict, report.exit_code) == ("inconclusive", 3)
    needed = report.results[0].needed_n
    assert needed is not None
    assert report.why.startswith(
        "scenes-student is neither surely as good as scenes-teacher nor surely worse: clip_score.scenes: 6 prompts "
    )
    assert f"6 prompts do not decide it; about {needed} would" in report.why
    repeats = -(-needed // 6)

    def longer(made: Made) -> Made:
        columns = {name: np.tile(column, repeats) for name, column in made[1].columns.items()}
        n = 12 * repeats
        return with_value((made[0].model_copy(update={"n_images": n}), make_scores(6 * repeats, 2, **columns)), "clip_score.scenes", n=n)

    assert judge(longer(few), longer(few_teacher), tmp_path / "many", rules).verdict in ("pass", "regressed")


def test_samples_of_one_prompt_are_not_independent(tmp_path: Path) -> None:
    def made(samples: int, seed: int) -> Made:
        column = np.repeat(np.random.default_rng(seed).normal(30, 1, 50), samples)
        value = Value(name="clip_score.scenes", kind="score", direction="higher", unit="100 cos", value=column.mean(), n=len(column))
        return make_record(f"model-{seed}", (value,), n_images=len(column)), make_scores(50, samples, **{"clip_score.scenes": column})

    once, copied = (
        judge(made(samples, 1), made(samples, 2), tmp_path / str(samples), weighing("clip_score.scenes")).results[0] for samples in (1, 4)
    )
    assert once.low == pytest.approx(copied.low)
    assert once.high == pytest.approx(copied.high)


def test_a_single_round_regression_of_many_metrics_must_survive_holm(tmp_path: Path) -> None:
    def made(means: list[float]) -> Made:
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

    # 2 standard errors beyond the margin: p = 0.024, enough alone, too much for one of four.
    candidate, baseline = made([-0.7, 0, 0, 0]), made([0, 0, 0, 0])
    assert judge(candidate, baseline, tmp_path / "alone", rules(1)).verdict == "regressed"
    among = judge(candidate, baseline, tmp_path / "among", rules(4))
    assert among.verdict == "inconclusive"
    assert "Holm" in among.why


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"family": "sdxl"}, "family is 'scenes' against 'sdxl'"),
        ({"suite": SuiteId(name="standard", version=1, digest="5017e")}, "suite is 'quality' against 'standard'"),
        ({"suite": SuiteId(name="quality", version=2, digest="5017e")}, "suite version is 1 against 2"),
        ({"suite": SuiteId(name="quality", version=1, digest="07e4")}, "suite digest is '5017e' against '07e4'"),
        ({"n_images": 100}, "number of images is 200 against 100"),
    ],
)
def test_unlike_records_are_refused(change: dict[str, object], said: str, teacher: Made, tmp_path: Path) -> None:
    other = Record.model_validate({**teacher[0].model_dump(), **change}), teacher[1]
    report = judge(make_measured(), other, tmp_path)
    assert (report.verdict, report.exit_code, report.results) == ("incomparable", 2, ())
    assert report.differences == (said,)
    assert said in report.why


def test_other_prompts_and_protocols_are_refused(teacher: Made, tmp_path: Path) -> None:
    record, scores = teacher
    renamed = Scores(["other", *scores.prompt_ids[1:]], scores.samples, scores.columns)
    report = judge(make_measured(), (record, renamed), tmp_path / "keys")
    assert report.differences == (
        "prompts and samples differ: 1 only in the candidate (('p0000', 0)), 1 only in the baseline (('other', 0))",
    )
    extra = Value(name="hps.v2", kind="score", direction="higher", unit="1", value=1, n=200)
    report = judge(make_measured(), (record.model_copy(update={"values": (*record.values, extra)}), scores), tmp_path / "protocol")
    assert report.differences == ("protocols differ: 1 only in the baseline (hps.v2)",)


@pytest.mark.parametrize(("reference", "said"), [("07e4", "07e4"), (None, "a reference that its record does not name")])
def test_a_metric_against_another_reference_is_refused_and_the_others_are_not(
    reference: str | None, said: str, teacher: Made, tmp_path: Path
) -> None:
    other = with_value(teacher, "fd.scenes", reference=reference)
    report = judge(make_measured(), other, tmp_path / "weighed")
    assert (report.verdict, [result.name for result in report.results if result.verdict == "incomparable"]) == (
        "incomparable",
        ["fd.scenes"],
    )
    assert f"fd.scenes: the candidate was measured against 4ef, the baseline against {said}; run both again" in report.why
    assert judge(make_measured(), other, tmp_path / "not-weighed", weighing("clip_score.scenes", margin=1)).verdict == "pass"


def test_rows_in_another_order_are_paired_by_key(teacher: Made, tmp_path: Path) -> None:
    record, scores = teacher
    order = np.random.default_rng(0).permutation(len(scores.keys))
    shuffled = Scores(
        [scores.prompt_ids[i] for i in order], [scores.samples[i] for i in order], {k: v[order] for k, v in scores.columns.items()}
    )
    report = judge((record, shuffled), teacher, tmp_path, weighing("clip_score.scenes"))
    assert (report.verdict, report.results[0].low, report.results[0].high) == ("pass", 0, 0)


def test_another_machine_class_skips_probes_unless_required(teacher: Made, tmp_path: Path) -> None:
    elsewhere = make_measured(worse="latency.pipeline.p50", by=3.0, machine=GPU)
    optional = {
        name: rule.model_copy(update={"required": not name.startswith("latency")}) for name, rule in SHIPPED.rules("quality").items()
    }
    optional |= {name: rule for name, rule in SHIPPED.rules("quality").items() if name.startswith("memory")}
    report = judge(elsewhere, teacher, tmp_path / "optional", Policy(alpha=0.05, suites={"quality": optional}))
    assert report.verdict == "pass"
    skipped = {result.name: result.reason for result in report.results if result.verdict == "skipped"}
    assert skipped.keys() == {"latency.pipeline.p50", "memory.peak_rss", "memory.peak_allocated"}
    assert "different machine classes: Some GPU 80GB" in skipped["latency.pipeline.p50"]
    report = judge(elsewhere, teacher, tmp_path / "shipped")
    assert (report.verdict, report.exit_code) == ("incomparable", 2)
    assert (
        "different machine classes: Some GPU 80GB, driver 550, torch 2.11, CUDA 12.8, Some CPU 3000 against Some CPU 3000 (8 cores), torch 2.11"
        in report.why
    )


def test_a_gate_that_skipped_everything_does_not_pass(teacher: Made, tmp_path: Path) -> None:
    rules = weighing("latency.pipeline.p50", direction="lower", margin=9, required=False)
    report = judge(make_measured(machine=GPU), teacher, tmp_path, rules)
    assert (report.verdict, report.exit_code) == ("incomparable", 2)
    assert "nothing was compared" in report.why


@pytest.mark.parametrize("state", ["missing", "failed", "not_applicable"])
@pytest.mark.parametrize("side", ["candidate", "baseline"])
def test_a_value_that_is_not_there_never_passes(state: str, side: str, teacher: Made, tmp_path: Path) -> None:
    sides = {"candidate": make_measured(), "baseline": teacher}
    sides[side] = with_value(sides[side], "scene_accuracy", state=state, reason="out of ink", **NO_VALUE)
    report = judge(sides["candidate"], sides["baseline"], tmp_path)
    assert (report.verdict, report.exit_code) == ("incomparable", 2)
    assert f"{side} is {state.replace('_', ' ')}: out of ink" in report.why


@pytest.mark.parametrize("machine", [GPU, None])
def test_a_failed_probe_does_not_pass_even_where_it_may_be_skipped(machine: object, teacher: Made, tmp_path: Path) -> None:
    where = {"machine": machine} if machine else {}
    failed = with_value(make_measured(**where), "latency.pipeline.p50", state="failed", reason="out of memory", **NO_VALUE)
    assert judge(failed, teacher, tmp_path, optional("latency.pipeline.p50")).exit_code == 2


@pytest.mark.parametrize(("state", "verdict"), [("missing", "incomparable"), ("failed", "incomparable"), ("not_applicable", "skipped")])
def test_only_what_cannot_apply_is_skipped_where_it_may_be(state: str, verdict: str, teacher: Made, tmp_path: Path) -> None:
    absent = with_value(make_measured(), "scene_accuracy", state=state, reason="out of ink", **NO_VALUE)
    report = judge(absent, teacher, tmp_path, optional("scene_accuracy"))
    assert {result.name: result.verdict for result in report.results} == {"scene_accuracy": verdict, "clip_score.scenes": "pass"}
    assert report.exit_code == (0 if verdict == "skipped" else 2)


@pytest.mark.parametrize("side", ["candidate", "baseline"])
def test_a_probe_that_one_record_lacks_is_skipped_only_if_its_machine_is_another(side: str, teacher: Made, tmp_path: Path) -> None:
    def judged(**where: object) -> str:
        sides = {"candidate": make_measured(**where), "baseline": teacher}
        record, scores = sides[side]
        sides[side] = record.model_copy(update={"values": tuple(v for v in record.values if v.name != "memory.peak_rss")}), scores
        report = judge(sides["candidate"], sides["baseline"], tmp_path / f"{len(where)}", optional("memory.peak_rss"))
        assert side in report.results[0].reason
        return report.results[0].verdict

    assert (judged(), judged(machine=GPU)) == ("incomparable", "skipped")


def test_of_several_looks_scores_are_tested_at_the_look_s_level_and_probes_at_their_own(teacher: Made, tmp_path: Path) -> None:
    sides = Side.read(saved(make_measured(), tmp_path)), Side.read(saved(teacher, tmp_path))
    once, looking = (judge_sides(*sides, SHIPPED, {}, nominal).results for nominal in (None, lambda level: level / 100))
    width = {one.name: (other.high - other.low) / (one.high - one.low) for one, other in zip(once, looking, strict=True) if one.high}
    assert {name for name, wider in width.items() if wider > 1.5} == {
        "fd.scenes",
        "clip_score.scenes",
        "preference.scenes",
        "scene_accuracy",
    }
    assert (width["latency.pipeline.p50"], width["memory.peak_rss"]) == (1, 1)


def test_a_failure_outranks_a_regression(teacher: Made, tmp_path: Path) -> None:
    broken = with_value(make_measured(worse="clip_score.scenes", by=9), "fd.scenes", state="failed", reason="singular", **NO_VALUE)
    report = judge(broken, teacher, tmp_path)
    assert {result.name: result.verdict for result in report.results}["clip_score.scenes"] == "regressed"
    assert report.exit_code == 2


@pytest.mark.parametrize(("name", "column"), [("clip_score.scenes", "clip_score.scenes"), ("fd.scenes", "fd.scenes:influence")])
def test_nan_or_no_column_never_passes(name: str, column: str, teacher: Made, tmp_path: Path) -> None:
    record, scores = make_measured()
    scores.columns[column][7] = np.nan
    report = judge((record, scores), teacher, tmp_path / "nan")
    assert (report.exit_code, report.why.count("1 of 200 scores of the candidate are missing or NaN")) == (2, 1)
    del scores.columns[column]
    report = judge((record, scores), teacher, tmp_path / "none")
    assert report.exit_code == 2
    assert f"{name}: the scores of the candidate have no column {column!r}" in report.why


@pytest.mark.parametrize("required", [True, False])
def test_a_misspelt_metric_is_no_reason_to_pass(required: bool, teacher: Made, tmp_path: Path) -> None:
    report = judge(make_measured(), teacher, tmp_path, weighing("latency.pipline.p50", direction="lower", margin=9, required=required))
    assert report.exit_code == 2
    assert "in neither record: unknown metric 'latency.pipline.p50'; did you mean 'latency.pipeline.p50'?" in report.why


def test_a_record_without_probes_is_told_as_such(teacher: Made, tmp_path: Path) -> None:
    record, scores = make_measured()
    record = record.model_copy(update={"values": tuple(value for value in record.values if value.kind != "probe")})
    report = judge((record, scores), teacher, tmp_path)
    assert report.exit_code == 2
    assert "latency.pipeline.p50: not in the record of the candidate; measure candidate and baseline alike" in report.why
    rendered = record.model_copy(update={"model": record.model.model_copy(update={"source": "rendered", "weights_digest": None})})
    folders = [str(saved(made, tmp_path)) for made in ((rendered, scores), teacher)]
    report = api.compare(*folders, None, api.Places(tmp_path))
    assert (report.verdict, report.notes) == (
        "pass",
        ("not measured, so not weighed: latency.pipeline.p50, memory.peak_rss, memory.peak_allocated",),
    )


def test_the_policy_must_agree_on_where_better_lies(teacher: Made, tmp_path: Path) -> None:
    report = judge(make_measured(), teacher, tmp_path, weighing("fd.scenes", direction="higher", margin=99))
    assert report.exit_code == 2
    assert "the policy says higher is better, the records say lower" in report.why


def test_values_of_another_unit_or_n_are_refused(teacher: Made, tmp_path: Path) -> None:
    for change, said in (({"unit": "cos"}, "score in cos"), ({"n": 199}, "n is 199 against 200")):
        report = judge(with_value(make_measured(), "clip_score.scenes", **change), teacher, tmp_path)
        assert report.exit_code == 2
        assert said in report.why


@pytest.mark.parametrize("ends", [{}, {"low": None, "high": None}])  # too few calls for an interval make a p99 no surer
def test_a_probe_without_raw_samples_is_refused(ends: dict[str, None], teacher: Made, tmp_path: Path) -> None:
    bare = [with_value(made, "latency.pipeline.p50", samples=None, **ends) for made in (make_measured(), teacher)]
    report = judge(*bare, tmp_path)
    assert report.exit_code == 2
    assert "no raw samples on both sides" in report.why


@pytest.mark.parametrize(
    ("direction", "verdicts"),
    [
        ("lower", {900: "pass", 1099: "pass", 1101: "regressed"}),
        ("higher", {1100: "pass", 901: "pass", 899: "regressed"}),
    ],
)
def test_counts_are_exact_and_margins_are_shares_of_the_baseline(direction: str, verdicts: dict[int, str], tmp_path: Path) -> None:
    def made(number: float) -> Made:
        value = Value(name="parameters.unet", kind="count", direction=direction, unit="parameters", value=number)
        return make_record(f"model{number}", (value,)), make_scores()

    for number, verdict in verdicts.items():
        report = judge(made(number), made(1000), tmp_path, weighing("parameters.unet", direction=direction, margin=0.1))
        assert report.verdict == verdict
        assert report.results[0].difference == pytest.approx(number / 1000 - 1)
    whole = judge(made(999), made(1000), tmp_path, weighing("parameters.unet", direction=direction, margin=1.0))
    assert whole.verdict == ("pass" if direction == "lower" else "incomparable")
    assert direction == "lower" or "margin is 100 % of the baseline" in whole.why


def test_few_equal_shares_of_other_pictures_are_no_pass(tmp_path: Path) -> None:
    rules, made = (
        weighing("scene_accuracy", margin=0.084),
        [make_measured(n_prompts=2), make_measured("scenes-teacher", seed=2, n_prompts=2)],
    )
    assert (made[0][1].columns["scene_accuracy"] == made[1][1].columns["scene_accuracy"]).all()
    assert judge(*made, tmp_path / "other", rules).verdict == "inconclusive"
    same = make_measured("scenes-student-again", n_prompts=2)
    assert judge(made[0], same, tmp_path / "same", rules).verdict == "pass"


def test_one_call_has_no_bounds_and_its_json_is_strict(teacher: Made, tmp_path: Path) -> None:
    once, teacher = (
        with_value(made, "latency.pipeline.p50", samples=((time,),), value=time) for made, time in ((make_measured(), 0.5), (teacher, 0.6))
    )
    report = judge(once, teacher, tmp_path, weighing("latency.pipeline.p50", direction="lower", margin=0.1))
    assert (report.verdict, report.results[0].needed_n) == ("inconclusive", None)
    assert "measure more rounds" in report.why
    said = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert (said["exit_code"], said["verdict"], said["results"][0]["high"]) == (3, "inconclusive", None)


@pytest.mark.parametrize(("own", "its"), [(1, 8), (8, 1), (7, 8)])
def test_rounds_that_failed_on_one_side_are_no_comparison(own: int, its: int, teacher: Made, tmp_path: Path) -> None:
    def measured(made: Made, rounds: int) -> Made:
        value = made[0].value("latency.pipeline.p50")
        assert value
        assert value.samples
        return with_value(made, "latency.pipeline.p50", samples=value.samples[:rounds])

    report = judge(
        measured(make_measured(), own), measured(teacher, its), tmp_path, weighing("latency.pipeline.p50", direction="lower", margin=9)
    )
    assert report.exit_code == 2
    assert f"rounds measured: {own} for the candidate, {its} for the baseline" in report.why


def test_a_changed_record_is_an_error(teacher: Made, tmp_path: Path) -> None:
    folder = saved(teacher, tmp_path)
    path = folder / "record.json"
    path.write_text(path.read_text().replace('"steps": 20', '"steps": 21'))
    with pytest.raises(UserError, match="changed"):
        gate(folder, folder, SHIPPED)


def test_other_sampling_and_the_notes_of_weighed_values_are_told(teacher: Made, tmp_path: Path) -> None:
    candidate = with_value(make_measured(sampling={"steps": 20, "guidance_scale": 5.0, "scheduler": "euler"}), "fd.scenes", note="n < 5 d")
    report = judge(candidate, teacher, tmp_path)
    assert report.notes == ("sampling differs: scheduler is 'euler' against 'ddim'", "fd.scenes of the candidate: n < 5 d")


def with_agreement(made: Made, cosine: float) -> Made:
    record, scores = made
    value = Value(name="agreement.clip.scenes", kind="score", direction="higher", unit="cos", value=cosine, n=len(scores.prompt_ids))
    column = np.full(len(scores.prompt_ids), cosine)
    return record.model_copy(update={"values": (*record.values, value)}), Scores(
        scores.prompt_ids, scores.samples, {**scores.columns, value.name: column}
    )


def test_agreement_with_the_teacher_is_told_but_not_weighed_unless_the_policy_names_it(teacher: Made, tmp_path: Path) -> None:
    near, far = with_agreement(make_measured(), 0.875), with_agreement(make_measured(), 0.75)
    report = judge(far, near, tmp_path / "told")
    assert (report.verdict, report.notes) == (
        "pass",
        ("agreement with the teacher, not weighed, with two-sided bounds: agreement.clip.scenes -0.125",),
    )
    weighed = judge(far, near, tmp_path / "weighed", weighing("agreement.clip.scenes", margin=0.1, required=False))
    assert (weighed.verdict, weighed.notes) == ("regressed", ())
    of_the_teacher = {**NO_VALUE, "state": "not_applicable", "reason": "the teacher is what the others are compared with"}
    assert judge(far, with_value(with_agreement(teacher, 1.0), "agreement.clip.scenes", **of_the_teacher), tmp_path / "teacher").notes == ()


def test_the_report_reads_as_agreed(teacher: Made, tmp_path: Path) -> None:
    candidate = with_value(make_measured(), "memory.peak_rss", samples=((1125.0,),) * 3, value=1125)
    candidate = with_value(candidate, "latency.pipeline.p50", samples=((1.0, 1.0),) * 3, value=1.0)
    baseline = with_value(teacher, "memory.peak_rss", samples=((900.0,),) * 3, value=900)
    baseline = with_value(baseline, "latency.pipeline.p50", samples=((0.5, 0.5),) * 3, value=0.5)
    rules = {name: rule for name, rule in SHIPPED.suites["quality"].items() if name.startswith(("latency", "memory", "scene"))}
    report = judge(candidate, baseline, tmp_path, Policy(alpha=0.05, suites={"quality": rules}))
    assert report.text(width=140) == (GOLDEN / "gate.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alfa = 0.05\n[suites]", "unknown key 'alfa'; did you mean 'alpha'?"),
        ("alpha = 0.05\n[suites.quality]\nx = { direction = 'lower', margn = 1, margin = 1, required = true }", "did you mean 'margin'?"),
        ("alpha = 0.05\n[suites.quality]\nx = { direction = 'lower', margin = -1, required = true }", "suites.quality.x.margin"),
        ("alpha = 0.05\n[suites.quality]\nx = { direction = 'lower', margin = nan, required = true }", "suites.quality.x.margin"),
        ("alpha = 0.05\n[suites.quality]\nx = { direction = 'down', margin = 1, required = true }", "'down'"),
        ("alpha = 0.05\n[suites.quality]\nx = { direction = 'lower', margin = 1 }", "required"),
        ("alpha = ", "cannot read"),
    ],
)
def test_a_policy_says_what_is_wrong_with_it(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "gate.toml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        policy.load(path)
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_a_policy_that_is_not_there_or_weighs_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        policy.load(tmp_path / "none.toml")
    with pytest.raises(
        UserError,
        match=r"gate\.toml has no table \[suites\.few\].*'few-custom' \(it has coco-30k, few-step, hpdv2, quality, standard\); add one, .*--policy FILE",
    ):
        SHIPPED.rules("few-custom")
    with pytest.raises(UserError, match="no metric"):
        Policy(alpha=0.05, suites={"quality": {}}).rules("quality")


def test_a_suite_changed_on_the_command_line_is_weighed_as_the_one_it_was_made_from() -> None:
    assert SHIPPED.rules("quality-custom") == SHIPPED.rules("quality")
    own = Policy(alpha=0.05, suites={**SHIPPED.suites, "quality-custom": SHIPPED.suites["standard"]})
    assert own.rules("quality-custom") == SHIPPED.rules("standard")


def test_margins_and_floors_of_the_suite_that_it_was_made_from_are_said_to_be_so(tmp_path: Path) -> None:
    named = {"suite": SuiteId(name="quality-custom", version=1, digest="5017e"), "run": ""}
    sides = make_measured(**named), make_measured("scenes-teacher", seed=2, **named)
    first, between = judge(*sides, tmp_path).notes
    assert first.startswith("suite 'quality-custom' is weighed by the margins of the suite it was made from; no noise floor")
    assert "measure both with one `sdbench run`" in between
    assert "sdbench noise" not in between
    own = Policy(alpha=0.05, suites={"quality-custom": SHIPPED.rules("quality")})
    assert not any("made from" in note for note in judge(*sides, tmp_path / "own", own).notes)


@pytest.mark.parametrize("name", sorted(SHIPPED.suites))
def test_the_shipped_policy_weighs_what_its_suite_measures(name: str) -> None:
    suite = suites.load(name)
    assert suite.family
    required = {metric for metric, rule in SHIPPED.rules(name).items() if rule.required}
    assert required - {"latency.pipeline.p50"} <= set(suite.metrics[suite.family])
    assert bool(suite.probes) == ("latency.pipeline.p50" in required)


@pytest.mark.parametrize("name", sorted(SHIPPED.suites.keys() - {"quality"}))
def test_at_full_size_margins_stand_on_the_published_noise_and_a_model_passes_against_itself(name: str) -> None:
    prompts = suites.load(name).prompts
    assert prompts
    published = {"clip_score.vit-l-14": 0.04, "fid.clean": 0.19}  # BK-SDM's, of 30,000 images
    rules, random = SHIPPED.rules(name), np.random.default_rng(0)
    stated = {metric: rule.noise for metric, rule in rules.items() if rule.noise}
    assert stated == {metric: pytest.approx(published[metric] * math.sqrt(30_000 / prompts.n), rel=0.01) for metric in stated}
    assert stated.keys() == published.keys() & rules.keys()
    a_prompt = {metric: noise * math.sqrt(prompts.n) for metric, noise in stated.items()} | {"pickscore.v1": 2.8}
    for metric in a_prompt.keys() & rules.keys():
        bounds = [paired_mean_bounds(random.normal(0, a_prompt[metric], prompts.n), 0.95) for _ in range(200)]
        passed = np.mean([decide(found, rules[metric].margin) == "pass" for found in bounds])
        assert passed >= 0.97, f"{metric}: {passed}"


def test_the_shipped_margins_stand_on_the_floor_that_was_measured() -> None:
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


@pytest.mark.parametrize("module", ["gate.judging", "leaderboard.writing"])
def test_readers_of_records_do_without_torch(module: str) -> None:
    code = f"import sys, sdbench.{module}; print(sorted({{'torch', 'diffusers', 'transformers'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
