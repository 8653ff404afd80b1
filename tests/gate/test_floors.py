"""The noise floor: how far two runs of one model differ, and how the gate uses it."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import GPU, judge_folders, make_measurement, save_record, with_value

from sdbench.errors import UserError
from sdbench.gate import floors
from sdbench.gate.pairing import Side
from sdbench.gate.policy import Policy, Rule
from sdbench.records import SuiteId, Value
from sdbench.stats.decisions import BetweenRuns

SUITE = SuiteId(name="quality", version=1, digest="5017e")


def make_sides(tmp_path: Path, *seeds: int) -> list[Side]:
    return [Side.read(save_record(make_measurement(seed=seed), tmp_path)) for seed in seeds]


def test_scores_use_the_paired_error_and_probes_the_spread_between_runs(tmp_path: Path) -> None:
    runs = make_sides(tmp_path, 1, 2, 3, 4)
    floor = floors.estimate(runs, (1, 2, 3, 4), SUITE)
    # noise of standard deviation 0.3 on each side, 2 samples per prompt, 100 prompts
    assert floor.metrics["clip_score.scenes"].noise == pytest.approx(math.sqrt(2) * 0.3 / math.sqrt(2) / 10, rel=0.1)
    latency = [value.value for run in runs if (value := run.record.value("latency.pipeline.p50")) and value.value]
    assert floor.metrics["latency.pipeline.p50"].noise == pytest.approx(math.sqrt(2) * np.std(np.log(latency), ddof=1))
    assert floor.metrics["latency.pipeline.p50"].values == tuple(latency)
    assert floors.read(floors.write(floor, tmp_path)) == floor


def test_fixed_latent_adds_its_common_shift_to_the_noise(tmp_path: Path) -> None:
    measurements = [
        make_measurement(seed=1),
        make_measurement(seed=2, worse="clip_score.scenes", by=3.0),
    ]  # another latent, all images worse
    for kind, noise in (("per_image", 0.03), ("fixed", 3.0)):
        runs = [
            Side.read(save_record((record.model_copy(update={"noise": {"kind": kind}}), scores), tmp_path))
            for record, scores in measurements
        ]
        assert floors.estimate(runs, (1, 2), SUITE).metrics["clip_score.scenes"].noise == pytest.approx(noise, rel=0.2)


def test_floor_needs_two_runs_and_skips_metrics_missing_from_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 2 runs"):
        floors.estimate(make_sides(tmp_path, 1), (1,), SUITE)
    no_value = {"value": None, "low": None, "high": None, "samples": None, "state": "failed", "reason": "out of ink"}
    other = Side.read(save_record(with_value(make_measurement(seed=2), "clip_score.scenes", **no_value), tmp_path))
    assert "clip_score.scenes" not in floors.estimate([*make_sides(tmp_path, 1), other], (1, 2), SUITE).metrics


def test_set_metric_without_influences_and_probe_at_zero_have_no_floor(tmp_path: Path) -> None:
    runs = []
    for seed in (1, 2):
        record, scores = with_value(make_measurement(seed=seed), "memory.peak_data", value=0.0, samples=((0.0,),))
        del scores.columns["fd.scenes:influence"]
        runs.append(Side.read(save_record((record, scores), tmp_path)))
    metrics = floors.estimate(runs, (1, 2), SUITE).metrics
    assert metrics.keys() == {"clip_score.scenes", "preference.scenes", "scene_accuracy", "latency.pipeline.p50"}
    assert all(math.isfinite(spread.noise) for spread in metrics.values())


def test_machine_conditions_have_no_floor(tmp_path: Path) -> None:
    drift = Value(name="machine.drift", kind="probe", direction="neither", unit="share", value=-0.02, n=1, samples=((-0.02,),))
    measurements = [make_measurement(seed=seed) for seed in (1, 2)]
    runs = [
        Side.read(save_record((record.model_copy(update={"values": (*record.values, drift)}), scores), tmp_path))
        for record, scores in measurements
    ]
    metrics = floors.estimate(runs, (1, 2), SUITE).metrics
    assert "machine.drift" not in metrics
    assert all(math.isfinite(spread.noise) for spread in metrics.values())


def test_unreadable_floor_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "floor.toml"
    path.write_text("family = 1", encoding="utf-8")
    with pytest.raises(UserError, match="sdbench noise"):
        floors.read(path)


def test_folder_of_floors_that_cannot_be_read_does_not_count_as_none(tmp_path: Path) -> None:
    record, folder = make_measurement()[0], tmp_path / "noise" / "scenes" / SUITE.title
    assert floors.between_runs(record, tmp_path) == {}
    folder.parent.mkdir(parents=True)
    folder.touch()  # chmod would not stop root
    with pytest.raises(NotADirectoryError, match=re.escape(str(folder))):
        floors.between_runs(record, tmp_path)


def test_floor_file_with_a_single_run_is_rejected(tmp_path: Path) -> None:
    path = floors.write(floors.estimate(make_sides(tmp_path, 1, 2), (1, 2), SUITE), tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("    2,\n", ""), encoding="utf-8")
    with pytest.raises(UserError, match="sdbench noise"):
        floors.read(path)


def test_only_floors_of_the_same_machine_class_are_used(tmp_path: Path) -> None:
    runs = make_sides(tmp_path, 1, 2)
    path = floors.write(floors.estimate(runs, (1, 2), SUITE), tmp_path)
    assert floors.between_runs(runs[0].record, tmp_path).keys() == {"latency.pipeline.p50", "memory.peak_data"}
    assert floors.between_runs(make_measurement(machine=GPU)[0], tmp_path) == {}
    wider = floors.read(path).model_copy(
        update={"model": "other", "metrics": {"memory.peak_data": floors.Spread(noise=9.0, values=(1.0,), unit="")}}
    )
    floors.write(wider, tmp_path)
    assert floors.between_runs(runs[0].record, tmp_path)["memory.peak_data"] == BetweenRuns(9.0, 2)


def test_floor_keeps_the_half_that_was_not_measured_again_of_the_same_weights_and_seeds(tmp_path: Path) -> None:
    whole = floors.estimate(make_sides(tmp_path, 1, 2), (1, 2), SUITE)
    half = whole.model_copy(update={"metrics": {"clip_score.scenes": floors.Spread(noise=9.0, values=(1.0, 2.0), unit="")}})
    path = floors.write(whole, tmp_path)
    assert floors.write(half, tmp_path) == path
    assert floors.read(path).metrics == whole.metrics | half.metrics
    for change in ({"weights_digest": "0"}, {"seeds": (1, 3)}):
        floors.write(half.model_copy(update=change), tmp_path)
        assert floors.read(path).metrics == half.metrics
        path.unlink()
        floors.write(whole, tmp_path)


@pytest.mark.parametrize("change", [{"digest": "07e4"}, {"version": 2}, {"name": "standard"}])
def test_floor_of_a_suite_with_other_settings_is_not_used(change: dict[str, Any], tmp_path: Path) -> None:
    runs, other = make_sides(tmp_path, 1, 2), SUITE.model_copy(update=change)
    floors.write(floors.estimate(runs, (1, 2), SUITE), tmp_path)
    assert floors.between_runs(make_measurement(suite=other)[0], tmp_path) == {}
    floors.write(floors.estimate(runs, (1, 2), other), tmp_path)
    for suite in (SUITE, other):
        assert floors.between_runs(make_measurement(suite=suite)[0], tmp_path).keys() == {"latency.pipeline.p50", "memory.peak_data"}


def test_latency_of_another_run_is_judged_with_the_noise_between_runs(tmp_path: Path) -> None:
    rules = Policy(alpha=0.05, suites={"quality": {"latency.pipeline.p50": Rule(direction="lower", margin=0.05, required=True)}})
    slower = save_record(make_measurement(worse="latency.pipeline.p50", by=0.15, run="another"), tmp_path)
    together = save_record(make_measurement(worse="latency.pipeline.p50", by=0.15), tmp_path)
    teacher = save_record(make_measurement("scenes-teacher", seed=2), tmp_path)
    between_runs = {"latency.pipeline.p50": BetweenRuns(0.1, 4)}
    assert judge_folders(together, teacher, rules, between_runs).verdict == "regressed"
    apart = judge_folders(slower, teacher, rules, between_runs)
    assert (apart.verdict, apart.notes, apart.results[0].needed_n) == ("inconclusive", (), None)
    assert "measure both models in one `sdbench run`" in apart.results[0].reason
    without_floor = judge_folders(slower, teacher, rules)
    assert without_floor.verdict == "regressed"
    assert "measured in separate runs" in without_floor.notes[0]


def test_record_passes_against_itself_whatever_the_noise_between_runs(tmp_path: Path) -> None:
    rules = Policy(alpha=0.05, suites={"quality": {"latency.pipeline.p50": Rule(direction="lower", margin=0.05, required=True)}})
    itself = save_record(make_measurement(run=""), tmp_path)
    assert judge_folders(itself, itself, rules, {"latency.pipeline.p50": BetweenRuns(0.25, 4)}).verdict == "pass"


def test_margin_below_its_noise_floor_is_rejected() -> None:
    assert Rule(direction="higher", margin=0.2, required=True, noise=0.2).margin == 0.2
    with pytest.raises(ValueError, match="is below the noise floor"):
        Rule(direction="higher", margin=0.1, required=True, noise=0.2)
