"""A run that stops when sure: the same pictures as any run, looks that are written down, a way to go on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from stand_ins import METRICS, SUITE, never, prepare_in, stand_in

from sdbench import records, suites
from sdbench.errors import UserError
from sdbench.gate.policy import Policy, Rule
from sdbench.models.spec import ModelSpec
from sdbench.run import runner, until_verdict
from sdbench.store import Store

pytestmark = pytest.mark.usefixtures("stand_ins")

RULES = Policy(
    alpha=0.05,
    suites={
        "own": {
            "fd.scenes": Rule(direction="lower", margin=1, required=True),
            "clip_score.scenes": Rule(direction="higher", margin=1, required=True),
        }
    },
)
SIX = SUITE.model_copy(update={"prompts": SUITE.prompts.model_copy(update={"n": 6}) if SUITE.prompts else None})


def ask(spec: ModelSpec, baseline: Path, folder: Path, rules: Policy = RULES, suite: suites.Suite = SIX) -> tuple[Path, Any]:
    return until_verdict.run_until_verdict(until_verdict.SequentialTest(spec, prepare_in(folder, suite), baseline, rules, {}))


def test_the_same_model_stops_past_half_with_the_pictures_of_a_whole_run(teacher: ModelSpec, tmp_path: Path) -> None:
    (baseline,) = runner.run([teacher], prepare_in(tmp_path, SIX))
    path, report = ask(replace(teacher, name="student"), baseline, tmp_path)
    assert (report.verdict, report.notes[0]) == ("pass", "stopped after 4 of 6 prompts, at look 2")
    assert {result.name for result in report.results} == {"fd.scenes", "clip_score.scenes"}
    record, scores = records.read(path)
    assert (record.suite.name, record.n_images, record.looks) == (
        "own-sequential",
        4,
        records.Looks(baseline=baseline.name, verdict="pass", prompts=(2, 4), of=6),
    )
    whole = records.read(baseline)[1]
    assert scores.keys == sorted((name, 0) for name in suites.look_order(whole.prompt_ids, 2)[:4])
    assert scores.keys != whole.keys[:4]
    rows = [whole.keys.index(key) for key in scores.keys]
    assert scores.columns["clip_score.scenes"].tolist() == whole.columns["clip_score.scenes"][rows].tolist()
    pictures = {file.name: file.read_bytes() for file in (baseline / "images").iterdir()}
    assert {file.name: file.read_bytes() for file in (path / "images").iterdir()}.items() <= pictures.items()


def test_what_was_looked_at_is_a_suite_that_can_be_run_again(teacher: ModelSpec, tmp_path: Path) -> None:
    (baseline,) = runner.run([teacher], prepare_in(tmp_path, SIX))
    path, _ = ask(replace(teacher, name="student"), baseline, tmp_path)
    record, scores = records.read(path)
    assert SIX.prompts
    again = SIX.model_copy(update={"name": "own-sequential", "prompts": SIX.prompts.model_copy(update={"looked": 4})})
    assert (again.id, list(again.prompt_list())) == (record.suite, list(scores.prompt_ids))


def test_a_sorted_list_is_looked_at_in_a_mixed_order_that_stays() -> None:
    ids = [f"{place:05d}" for place in range(400)]
    mixed = suites.look_order(ids, 1)
    assert mixed[:2] == ["00331", "00399"]
    assert 30 <= sum(each < "00100" for each in mixed[:160]) <= 50


def test_batches_stay_together_and_a_short_one_stays_last() -> None:
    ids = [f"{place:05d}" for place in range(11)]
    mixed = suites.look_order(ids, 4)
    assert mixed[8:] == ids[8:]
    assert sorted([mixed[:4], mixed[4:8]]) == [ids[:4], ids[4:8]]


def test_without_the_baseline_s_pictures_the_distance_waits_for_all_prompts(teacher: ModelSpec, tmp_path: Path) -> None:
    (baseline,) = runner.run([teacher], prepare_in(tmp_path / "elsewhere", SIX))
    path, report = ask(replace(teacher, name="student"), baseline, tmp_path)
    assert (report.verdict, report.notes[0]) == ("pass", "stopped after 6 of 6 prompts, at look 3")
    record, _ = records.read(path)
    assert (record.suite, record.looks and record.looks.prompts) == (SIX.id, (2, 4, 6))


def test_a_policy_of_distances_alone_looks_at_everything(teacher: ModelSpec, tmp_path: Path) -> None:
    (baseline,) = runner.run([teacher], prepare_in(tmp_path, SIX))
    rules = RULES.model_copy(update={"suites": {"own": {"fd.scenes": RULES.suites["own"]["fd.scenes"]}}})
    _, report = ask(replace(teacher, name="student"), baseline, tmp_path, rules)
    assert (report.verdict, report.notes[0]) == ("pass", "stopped after 6 of 6 prompts, at look 3")


def test_a_killed_run_goes_on_and_a_finished_one_makes_nothing(
    teacher: ModelSpec,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (baseline,) = runner.run([teacher], prepare_in(tmp_path / "elsewhere", SIX))
    student, put, made = replace(teacher, name="student"), Store.put, []

    def tired(store: Store, image: str, pixels: Any) -> None:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(image)
        put(store, image, pixels)

    monkeypatch.setattr(Store, "put", tired)
    with pytest.raises(KeyboardInterrupt):
        ask(student, baseline, tmp_path)
    monkeypatch.setattr(Store, "put", put)
    path, report = ask(student, baseline, tmp_path)
    assert report.verdict == "pass"
    monkeypatch.setattr(Store, "put", never)
    assert ask(student, baseline, tmp_path)[1] == report
    theirs = records.read(baseline)[1].columns
    assert records.read(path)[1].columns["clip_score.scenes"].tolist() == theirs["clip_score.scenes"].tolist()


def test_a_metric_that_fails_ends_it_and_is_no_pass(teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (baseline,) = runner.run([teacher], prepare_in(tmp_path, SIX))

    def broken(*_: object) -> None:
        raise ZeroDivisionError("no light")

    stand_in(monkeypatch, "clip.scenes", texts=broken)
    _, report = ask(replace(teacher, name="student"), baseline, tmp_path)
    assert (report.verdict, report.exit_code) == ("incomparable", 2)
    assert "ZeroDivisionError: no light" in report.why


def test_a_baseline_of_another_suite_is_refused_before_any_work(
    teacher: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (baseline,) = runner.run([teacher], prepare_in(tmp_path))
    monkeypatch.setattr(runner, "load", never)
    with pytest.raises(UserError, match="run the baseline under this suite"):
        ask(replace(teacher, name="student"), baseline, tmp_path)


@pytest.mark.parametrize(("n", "batch", "expected"), [(512, 32, list(range(32, 513, 32))), (6, 2, [2, 4, 6]), (5, 4, [4, 5]), (3, 8, [3])])
def test_looks_are_at_whole_batches_and_at_the_end(n: int, batch: int, expected: list[int]) -> None:
    assert until_verdict.look_sizes(n, batch) == expected


def test_an_early_record_has_its_win_rate_and_agreement_with_the_whole_suite_s_teacher(teacher: ModelSpec, tmp_path: Path) -> None:
    suite = SIX.model_copy(update={"metrics": {"scenes": (*METRICS, "agreement.clip.scenes")}})
    (baseline,) = runner.run([teacher], prepare_in(tmp_path, suite))
    path, _ = ask(replace(teacher, name="student"), baseline, tmp_path, suite=suite)
    record, _ = records.read(path)
    assert record.n_images == 4
    found = [(value.value, value.n) for name in ("win_rate.preference.scenes", "agreement.clip.scenes") if (value := record.value(name))]
    assert found == [(0.5, 4), (pytest.approx(1), 4)]


def test_a_policy_may_weigh_a_win_rate_without_its_judge(teacher: ModelSpec, tmp_path: Path) -> None:
    win_rate = "win_rate.preference.scenes"
    runner.run([teacher], prepare_in(tmp_path, SIX))
    (baseline,) = runner.run([replace(teacher, name="other")], prepare_in(tmp_path, SIX))
    rules = Policy(alpha=0.05, suites={"own": {win_rate: Rule(direction="higher", margin=0.1, required=True)}})
    _, report = ask(replace(teacher, name="student"), baseline, tmp_path, rules)
    assert [(result.name, result.verdict, result.candidate, result.baseline) for result in report.results] == [(win_rate, "pass", 0.5, 0.5)]
