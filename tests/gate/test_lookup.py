"""Which two records a gate compares: nothing is run that is there, and nothing at all that no verdict could compare."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from factories import GPU, LAPTOP, make_measured, make_record, make_scores, saved

from sdbench import api, suites
from sdbench.errors import UserError
from sdbench.gate import baselines, lookup
from sdbench.gate.policy import Policy
from sdbench.models.spec import ModelSpec
from sdbench.records import Machine, Model, SuiteId
from sdbench.suites import Suite

SUITE = suites.load("quality")
POLICY = api._policy(None)
FIRST = make_record().created


@dataclass
class Desk:
    """Results, and a `run` that writes a record of each model on a laptop and notes what it was asked for."""

    results: Path
    asked: list[tuple[list[str], str]] = field(default_factory=list)

    def record(self, name: str, machine: Machine = LAPTOP, day: int = 0, suite: SuiteId = SUITE.id, label: str = "") -> Path:
        created = FIRST + timedelta(days=day)
        model = Model(name=name, architecture="vega", source="embedded", weights_digest="3e16", label=label)
        return saved((make_record(machine=machine, created=created, suite=suite, model=model), make_scores()), self.results)

    def run(self, specs: Sequence[ModelSpec], suite: Suite) -> list[Path]:
        self.asked.append(([spec.name for spec in specs], suite.name))
        return [self.record(spec.name, day=99, suite=suite.id) for spec in specs]

    def pair(self, candidate: str | Path, baseline: str | Path, suite: Suite | None = None, policy: Policy = POLICY) -> tuple[Path, Path]:
        theirs = lookup.find_baseline(str(baseline), self.results)
        return lookup.find_or_run_pair(lookup.find_candidate(str(candidate)), theirs, suite, policy, self.results, self.run)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path / "results")


def test_two_records_are_taken_as_they_are(desk: Desk) -> None:
    other = SuiteId(name="quality-custom", version=4, digest="0")
    pair = desk.record("scenes-vega", suite=other), desk.record("scenes-teacher")
    assert desk.pair(*pair) == pair, "what differs is for the gate to say"
    assert desk.asked == []


def test_a_baseline_s_name_is_its_record(desk: Desk) -> None:
    record = desk.record("scenes-vega")
    baselines.set_baseline("scenes-teacher", record, "a name like a model's", desk.results)
    assert desk.pair(record, "scenes-teacher") == (record, record)
    assert desk.asked == []


def test_two_names_are_compared_on_the_newest_machine_class_that_has_both(desk: Desk) -> None:
    old = desk.record("scenes-vega", day=1), desk.record("scenes-teacher", day=1)
    assert desk.pair("scenes-vega", "scenes-teacher") == old
    there = desk.record("scenes-vega", GPU, day=2), desk.record("scenes-teacher", GPU, day=2)
    assert desk.pair("scenes-vega", "scenes-teacher") == there
    newer = desk.record("scenes-vega", day=3), desk.record("scenes-teacher", day=4)
    assert desk.pair("scenes-vega", "scenes-teacher") == newer
    assert desk.asked == []


@pytest.mark.parametrize("there", [[], [("scenes-vega", LAPTOP)], [("scenes-vega", LAPTOP), ("scenes-teacher", GPU)]])
def test_two_names_without_records_of_one_machine_class_are_run_together(there: list[tuple[str, Machine]], desk: Desk) -> None:
    kept = [desk.record(*which) for which in there]
    new, old = desk.pair("scenes-vega", "scenes-teacher")
    assert desk.asked == [(["scenes-vega", "scenes-teacher"], "quality")]
    assert (new.parent.name, old.parent.name) == ("scenes-vega", "scenes-teacher")
    assert not {new, old} & set(kept)


def test_a_name_against_itself_is_run_once(desk: Desk) -> None:
    new, old = desk.pair("scenes-vega", "scenes-vega")
    assert desk.asked == [(["scenes-vega"], "quality")]
    assert new == old


def test_random_weights_and_other_settings_are_no_record_of_a_name(desk: Desk) -> None:
    desk.record("scenes-vega")
    desk.record("scenes-teacher", label="random weights")
    desk.record("scenes-teacher", suite=SUITE.id.model_copy(update={"digest": "0"}))
    desk.pair("scenes-vega", "scenes-teacher")
    assert len(desk.asked) == 1


def test_a_checkpoint_is_run_even_where_a_record_has_its_name(desk: Desk, made: Path) -> None:
    desk.record(made.name)
    desk.record("scenes-teacher")
    desk.pair(made, "scenes-teacher")
    assert desk.asked == [([made.name, "scenes-teacher"], "quality")]


@pytest.mark.parametrize("swapped", [False, True])
def test_opposite_a_record_a_name_s_record_of_that_machine_class_is_taken_or_made(swapped: bool, desk: Desk) -> None:
    record, elsewhere = desk.record("scenes-vega"), desk.record("scenes-teacher", GPU, day=5)

    def pair() -> tuple[Path, Path]:
        new, old = desk.pair("scenes-teacher", record) if swapped else desk.pair(record, "scenes-teacher")
        return (old, new) if swapped else (new, old)

    mine, made = pair()
    assert (mine, made.parent.name, desk.asked) == (record, "scenes-teacher", [(["scenes-teacher"], "quality")])
    assert made != elsewhere
    assert pair() == (record, made)
    assert len(desk.asked) == 1, "what was run is a record by now"


@pytest.mark.parametrize("name", ["quality-custom", "quality-sequential", "quality"])
def test_nothing_is_run_against_a_record_of_other_settings(name: str, desk: Desk) -> None:
    record = desk.record("scenes-vega", suite=SuiteId(name=name, version=SUITE.version, digest="0"))
    for pair in ((record, "scenes-teacher"), ("scenes-teacher", record)):
        with pytest.raises(
            UserError, match=rf"of suite {name}@\d+ \(digest 0\), and this run would be of quality@.*Name the suite with --suite"
        ):
            desk.pair(*pair, policy=POLICY.model_copy(update={"suites": {name: POLICY.suites["quality"]}}))
    assert desk.asked == []


def test_the_suite_that_a_record_is_of_may_be_named(desk: Desk) -> None:
    few = api.Overrides(n=4, steps=2).apply(SUITE)
    record = desk.record("scenes-vega", suite=few.id)
    policy = POLICY.model_copy(update={"suites": {few.name: POLICY.suites["quality"]}})
    _, old = desk.pair(record, "scenes-teacher", few, policy)
    assert desk.asked == [(["scenes-teacher"], "quality-custom")]
    assert old.parent.name == "scenes-teacher"


@pytest.mark.parametrize("candidate", ["scenes-vega", "record"])
def test_nothing_is_run_for_a_misspelt_name_or_a_policy_that_weighs_nothing(candidate: str, desk: Desk) -> None:
    named = desk.record("scenes-vega") if candidate == "record" else candidate
    with pytest.raises(UserError, match="unknown model 'scenes-techer'; did you mean 'scenes-teacher'"):
        desk.pair(named, "scenes-techer")
    with pytest.raises(UserError, match=r"has no table \[suites\.quality\]"):
        desk.pair(named, "scenes-teacher", policy=Policy(alpha=0.05, suites={}))
    assert desk.asked == []


def test_records_of_a_model_are_those_of_its_name(desk: Desk) -> None:
    saved(make_measured("scenes-teacher"), desk.results)  # of a suite of that name with another digest
    record = desk.record("scenes-teacher")
    spec = lookup.resolve("scenes-teacher")
    assert lookup.find_or_run(spec, SUITE, LAPTOP.machine_class, desk.results, desk.run) == record
    assert lookup.find_or_run(spec, SUITE, GPU.machine_class, desk.results, desk.run) != record
    assert desk.asked == [(["scenes-teacher"], "quality")]
