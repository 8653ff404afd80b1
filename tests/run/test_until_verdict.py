"""A sequential run: the same images as a full run, recorded looks, and resuming after a kill."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import AutoencoderKL
from fakes import LATENCY, METRICS, RULES, SUITE, colours, fail_if_called, prepare_in, replace_probes, replace_towers

from sdbench import records, suites
from sdbench.arrays import F32, U8
from sdbench.encoders import inference
from sdbench.errors import UserError
from sdbench.gate.judging import judge
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Policy, Rule
from sdbench.generate import generate
from sdbench.models.spec import ModelSpec
from sdbench.run import runner, until_verdict
from sdbench.settings import Probes
from sdbench.stats import sequential
from sdbench.stats.decisions import BetweenRuns
from sdbench.store import Store
from sdbench.suites import Prompts

pytestmark = pytest.mark.usefixtures("fake_evaluators")

SIX_PROMPTS = SUITE.model_copy(update={"prompts": Prompts(n=6)})


def run_sequentially(
    spec: ModelSpec, baseline: Path, folder: Path, rules: Policy = RULES, suite: suites.Suite = SIX_PROMPTS
) -> tuple[Path, Any]:
    return until_verdict.run_until_verdict(spec, prepare_in(folder, suite), baseline, rules, {})


def test_identical_model_stops_early_with_the_images_of_a_full_run(teacher: ModelSpec, student: ModelSpec, tmp_path: Path) -> None:
    (baseline,) = runner.run([teacher], prepare_in(tmp_path, SIX_PROMPTS))
    path, report = run_sequentially(student, baseline, tmp_path)
    assert (report.verdict, report.notes[0]) == ("pass", "stopped after 4 of 6 prompts, at the 2nd look")
    assert {result.name for result in report.results} == {"fd.scenes", "clip_score.scenes"}
    record, scores = records.read(path)
    assert (record.suite.name, record.n_images, record.looks) == (
        "own-sequential",
        4,
        records.Looks(baseline=baseline.name, verdict="pass", prompts=(2, 4), of=6),
    )
    full = records.read(baseline)[1]
    assert scores.keys == sorted((name, 0) for name in suites.look_order(full.prompt_ids, 2)[:4])
    assert scores.keys != full.keys[:4]
    rows = [full.keys.index(key) for key in scores.keys]
    assert scores.columns["clip_score.scenes"].tolist() == full.columns["clip_score.scenes"][rows].tolist()
    images = {file.name: file.read_bytes() for file in (baseline / "images").iterdir()}
    assert {file.name: file.read_bytes() for file in (path / "images").iterdir()}.items() <= images.items()
    again = SIX_PROMPTS.model_copy(update={"name": "own-sequential", "prompts": SIX_PROMPTS.prompts.model_copy(update={"looked": 4})})
    assert (again.id, list(again.prompt_list())) == (record.suite, list(scores.prompt_ids)), "its prompts form a suite that can be rerun"


def test_distance_waits_for_all_prompts_without_the_baselines_images(teacher: ModelSpec, student: ModelSpec, tmp_path: Path) -> None:
    (baseline,) = runner.run([teacher], prepare_in(tmp_path / "elsewhere", SIX_PROMPTS))
    path, report = run_sequentially(student, baseline, tmp_path)
    assert (report.verdict, report.notes[0]) == ("pass", "stopped after 6 of 6 prompts, at the 3rd look")
    record, _ = records.read(path)
    assert (record.suite, record.looks and record.looks.prompts) == (SIX_PROMPTS.id, (2, 4, 6))


def test_each_side_has_the_values_of_its_own_images_and_the_worse_one_regresses(
    teacher: ModelSpec, tiny_pipeline: Path, tmp_path: Path
) -> None:
    bleached = replace(teacher, name="bleached", location=str(shutil.copytree(tiny_pipeline, tmp_path / "bleached")))
    vae = AutoencoderKL.from_pretrained(tmp_path / "bleached" / "vae")
    vae.decoder.conv_out.bias.data.fill_(2)  # images are white
    vae.save_pretrained(tmp_path / "bleached" / "vae")
    baselines = runner.run([teacher, bleached], prepare_in(tmp_path, SIX_PROMPTS))
    ways = (teacher, baselines[1]), (bleached, baselines[0])

    lax = {name: rule.model_copy(update={"margin": 1e6}) for name, rule in RULES.suites["own"].items()}
    rules = RULES.model_copy(update={"suites": {"own": lax}})
    (one, of_teacher), (other, of_bleached) = (run_sequentially(*way, tmp_path, rules) for way in ways)
    for report, new, old in ((of_teacher, one, other), (of_bleached, other, one)):
        assert report.notes[0] == "stopped after 4 of 6 prompts, at the 2nd look"
        at_look = judge(Side.read(new), Side.read(old), rules, {}, lambda level: sequential.nominal_levels((2 / 6, 4 / 6), level)[-1])
        for found, expected in zip(report.results, at_look.results, strict=True):
            of_run, of_records = ([each.candidate, each.baseline, each.low, each.high] for each in (found, expected))
            assert of_run == pytest.approx(of_records)
            assert found.candidate != pytest.approx(found.baseline, rel=0.01)

    strict = RULES.model_copy(update={"suites": {"own": {"clip_score.scenes": RULES.suites["own"]["clip_score.scenes"]}}})
    assert [run_sequentially(*way, tmp_path, strict)[1].verdict for way in ways] == ["pass", "regressed"]


def test_software_behind_the_baseline_is_reported_where_it_differs(teacher: ModelSpec, student: ModelSpec, tmp_path: Path) -> None:
    (baseline,) = runner.run([teacher], prepare_in(tmp_path, SIX_PROMPTS))
    record, scores = records.read(baseline)
    older = record.environment.model_copy(update={"packages": record.environment.packages | {"diffusers": "0.1"}})
    baseline = records.write(record.model_copy(update={"environment": older}), scores, {}, tmp_path / "older")
    _, report = run_sequentially(student, baseline, tmp_path)
    assert any("drawn with different software" in note and note.endswith("against '0.1'") for note in report.notes)


def test_killed_run_resumes_and_a_finished_run_generates_nothing(
    teacher: ModelSpec, student: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (baseline,) = runner.run([teacher], prepare_in(tmp_path / "elsewhere", SIX_PROMPTS))
    put, stored = Store.put, list[str]()

    def interrupt_fourth(store: Store, image: str, pixels: Any) -> None:
        if len(stored) == 3:
            raise KeyboardInterrupt
        stored.append(image)
        put(store, image, pixels)

    monkeypatch.setattr(Store, "put", interrupt_fourth)
    with pytest.raises(KeyboardInterrupt):
        run_sequentially(student, baseline, tmp_path)
    monkeypatch.setattr(Store, "put", put)
    path, report = run_sequentially(student, baseline, tmp_path)
    assert report.verdict == "pass"
    monkeypatch.setattr(Store, "put", fail_if_called)
    assert run_sequentially(student, baseline, tmp_path)[1] == report
    expected = records.read(baseline)[1].columns
    assert records.read(path)[1].columns["clip_score.scenes"].tolist() == expected["clip_score.scenes"].tolist()


def test_failing_metric_stops_the_run_without_a_pass(
    teacher: ModelSpec, student: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (baseline,) = runner.run([teacher], prepare_in(tmp_path, SIX_PROMPTS))

    def broken(*_: object) -> None:
        raise ZeroDivisionError("no light")

    replace_towers(monkeypatch, "clip.scenes", texts=broken)
    _, report = run_sequentially(student, baseline, tmp_path)
    assert (report.verdict, report.exit_code) == ("incomparable", 2)
    assert "ZeroDivisionError: no light" in report.why


@pytest.mark.parametrize(
    ("seconds", "between_runs", "verdict", "stopped"),
    [
        (0.5, {}, "pass", "stopped after 4 of 6 prompts, at the 2nd look"),
        (1.0, {}, "regressed", "stopped after 2 of 6 prompts, at the 1st look"),
        # More prompts cannot help.
        (1.0, {LATENCY.name: BetweenRuns(1.0, 9)}, "inconclusive", "stopped after 2 of 6 prompts, at the 1st look"),
    ],
)
def test_latency_is_weighed_too_against_how_far_runs_lie_apart(
    seconds: float,
    between_runs: dict[str, BetweenRuns],
    verdict: str,
    stopped: str,
    teacher: ModelSpec,
    student: ModelSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite = SIX_PROMPTS.model_copy(update={"probes": Probes(rounds=3, calls=2, warmup=0)})
    replace_probes(monkeypatch, LATENCY.model_copy(update={"value": 0.5, "samples": ((0.49, 0.51),) * 3}))
    (baseline,) = runner.run([teacher], prepare_in(tmp_path, suite, None))
    replace_probes(monkeypatch, LATENCY.model_copy(update={"value": seconds, "samples": ((seconds - 0.01, seconds + 0.01),) * 3}))
    clip, latency = RULES.suites["own"]["clip_score.scenes"], Rule(direction="lower", margin=0.05, required=True)
    rules = RULES.model_copy(update={"suites": {"own": {"clip_score.scenes": clip, LATENCY.name: latency}}})
    path, report = until_verdict.run_until_verdict(student, prepare_in(tmp_path, suite, None), baseline, rules, between_runs)
    assert (report.verdict, report.notes[0]) == (verdict, stopped)
    record = records.read_record(path)
    assert (record.run, value.value if (value := record.value(LATENCY.name)) else None) == ("turns", seconds)


def test_images_are_drawn_without_the_evaluators_of_the_look_before(
    teacher: ModelSpec, student: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both together may not fit where a whole run does, which draws all images before it scores any."""
    monkeypatch.setattr(inference, "_EVALUATORS", [])
    network, drawn = inference.evaluator(SimpleNamespace), list[bool]()

    def encode(images: U8) -> F32:
        network()
        return colours(images)

    def note_evaluators_and_generate(*arguments: Any) -> None:
        drawn.append(bool(network.cache_info().currsize))
        generate(*arguments)

    (baseline,) = runner.run([teacher], prepare_in(tmp_path, SIX_PROMPTS))
    replace_towers(monkeypatch, "clip.scenes", images=encode)
    monkeypatch.setattr(runner, "generate", note_evaluators_and_generate)
    run_sequentially(replace(student, name="other"), baseline, tmp_path)
    assert network.cache_info().currsize, "the last look's, until the command ends"
    assert drawn == [False, False]


def test_baseline_of_another_suite_is_rejected_before_any_work(
    teacher: ModelSpec, student: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (baseline,) = runner.run([teacher], prepare_in(tmp_path))
    monkeypatch.setattr(runner, "load", fail_if_called)
    with pytest.raises(UserError, match="run the baseline under this suite"):
        run_sequentially(student, baseline, tmp_path)


def test_baseline_without_a_required_value_is_rejected_before_any_work(
    teacher: ModelSpec, student: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (baseline,) = runner.run([teacher], prepare_in(tmp_path, SIX_PROMPTS))
    monkeypatch.setattr(runner, "load", fail_if_called)
    rules = RULES.model_copy(update={"suites": {"own": {LATENCY.name: Rule(direction="lower", margin=0.05, required=True)}}})
    with pytest.raises(UserError, match=f"has no value of {LATENCY.name}, which the policy requires"):
        run_sequentially(student, baseline, tmp_path, rules)


@pytest.mark.parametrize(("n", "batch", "expected"), [(512, 32, list(range(32, 513, 32))), (6, 2, [2, 4, 6]), (5, 4, [4, 5]), (3, 8, [3])])
def test_looks_are_after_whole_batches_and_at_the_end(n: int, batch: int, expected: list[int]) -> None:
    assert until_verdict.look_sizes(n, batch) == expected


def test_early_stopped_record_is_compared_with_the_full_suites_teacher(teacher: ModelSpec, student: ModelSpec, tmp_path: Path) -> None:
    suite = SIX_PROMPTS.model_copy(update={"metrics": {"scenes": (*METRICS, "agreement.clip.scenes")}})
    (baseline,) = runner.run([teacher], prepare_in(tmp_path, suite))
    path, _ = run_sequentially(student, baseline, tmp_path, suite=suite)
    record, _ = records.read(path)
    assert record.n_images == 4
    found = [(value.value, value.n) for name in ("win_rate.preference.scenes", "agreement.clip.scenes") if (value := record.value(name))]
    assert found == [(0.5, 4), (pytest.approx(1), 4)]


def test_policy_may_use_a_win_rate_without_its_judge(teacher: ModelSpec, student: ModelSpec, tmp_path: Path) -> None:
    win_rate = "win_rate.preference.scenes"
    runner.run([teacher], prepare_in(tmp_path, SIX_PROMPTS))
    (baseline,) = runner.run([replace(teacher, name="other")], prepare_in(tmp_path, SIX_PROMPTS))
    rules = Policy(alpha=0.05, suites={"own": {win_rate: Rule(direction="higher", margin=0.1, required=True)}})
    _, report = run_sequentially(student, baseline, tmp_path, rules)
    assert [(result.name, result.verdict, result.candidate, result.baseline) for result in report.results] == [(win_rate, "pass", 0.5, 0.5)]
