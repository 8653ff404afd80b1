"""Which two records a gate compares: existing ones are reused, and nothing is run that could not be compared."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from factories import GPU, LAPTOP, make_measurement, make_record, make_scores, save_record

from sdbench import api, suites
from sdbench.api import gating
from sdbench.errors import IncompleteError, UserError
from sdbench.gate import baselines, lookup
from sdbench.models.resolve import resolve
from sdbench.models.spec import ModelSpec
from sdbench.records import Machine, Model, SuiteId
from sdbench.suites import Suite

SUITE = suites.load("quality")
FIRST = make_record().created


@dataclass
class Results:
    """A results folder, and a `run` that writes a record of each model on a laptop and keeps a list of its calls."""

    folder: Path
    runs: list[tuple[list[str], str]] = field(default_factory=list)

    def record(self, name: str, machine: Machine = LAPTOP, day: int = 0, suite: SuiteId = SUITE.id, label: str = "") -> Path:
        created = FIRST + timedelta(days=day)
        model = Model(name=name, architecture="vega", source="embedded", weights_digest="3e16", label=label)
        return save_record((make_record(machine=machine, created=created, suite=suite, model=model), make_scores()), self.folder)

    def run(self, specs: Sequence[ModelSpec], suite: Suite) -> list[Path]:
        self.runs.append(([spec.name for spec in specs], suite.name))
        return [self.record(spec.name, day=99, suite=suite.id) for spec in specs]

    def pair(self, candidate: str | Path, baseline: str | Path, suite: Suite | None = None) -> tuple[Path, Path]:
        reference = lookup.find_baseline(str(baseline), self.folder)
        return lookup.find_or_run_pair(lookup.find_candidate(str(candidate), self.folder), reference, suite, self.folder, self.run)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results")


def test_two_records_are_used_as_given(results: Results) -> None:
    other = SuiteId(name="quality-custom", version=4, digest="0")
    pair = results.record("scenes-vega", suite=other), results.record("scenes-teacher")
    assert results.pair(*pair) == pair, "the gate reports the differences"
    assert results.runs == []


def test_baseline_name_resolves_to_its_record(results: Results) -> None:
    record = results.record("scenes-vega")
    other = results.record("production", GPU)
    baselines.set_baseline("production", record, "a name like that of records", results.folder)
    assert results.pair(record, "production") == (record, record) != (record, other)
    assert results.runs == []


def test_two_names_are_compared_on_the_newest_machine_class_that_has_both(results: Results) -> None:
    old = results.record("scenes-vega", day=1), results.record("scenes-teacher", day=1)
    assert results.pair("scenes-vega", "scenes-teacher") == old
    records = results.record("scenes-vega", GPU, day=2), results.record("scenes-teacher", GPU, day=2)
    assert results.pair("scenes-vega", "scenes-teacher") == records
    newer = results.record("scenes-vega", day=3), results.record("scenes-teacher", day=4)
    assert results.pair("scenes-vega", "scenes-teacher") == newer
    assert results.runs == []


@pytest.mark.parametrize("records", [[], [("scenes-vega", LAPTOP)], [("scenes-vega", LAPTOP), ("scenes-teacher", GPU)]])
def test_two_names_without_records_of_one_machine_class_are_run_together(records: list[tuple[str, Machine]], results: Results) -> None:
    existing = [results.record(*which) for which in records]
    new, old = results.pair("scenes-vega", "scenes-teacher")
    assert results.runs == [(["scenes-vega", "scenes-teacher"], "quality")]
    assert (new.parent.name, old.parent.name) == ("scenes-vega", "scenes-teacher")
    assert not {new, old} & set(existing)


def test_note_before_a_run_names_other_suites_that_both_have_records_of(results: Results) -> None:
    custom, other = (SuiteId(name=name, version=4, digest="0a") for name in ("quality-custom", "other"))
    results.record("scenes-vega", suite=custom)
    pair = [resolve("scenes-vega"), resolve("scenes-teacher")]
    assert lookup.describe_run(pair, SUITE, results.folder).endswith("measuring them now, on this machine")
    for suite in (SUITE.id, custom, other):
        results.record("scenes-teacher", suite=suite)
    note = lookup.describe_run(pair, SUITE, results.folder)
    assert note.endswith("on this machine; to compare their records under quality-custom@4 (digest 0a), name the folders of these")
    assert lookup.describe_run(pair[1:], SUITE, results.folder).endswith("measuring it now, on this machine"), "no pair to compare"


def test_model_against_itself_is_run_once(results: Results) -> None:
    new, old = results.pair("scenes-vega", "scenes-vega")
    assert results.runs == [(["scenes-vega"], "quality")]
    assert new == old


def test_records_of_random_weights_or_other_settings_are_not_reused(results: Results) -> None:
    results.record("scenes-vega")
    results.record("scenes-teacher", label="random weights")
    results.record("scenes-teacher", suite=SUITE.id.model_copy(update={"digest": "0"}))
    results.pair("scenes-vega", "scenes-teacher")
    assert len(results.runs) == 1


def test_checkpoint_is_run_even_if_a_record_has_its_name(results: Results, tiny_pipeline: Path) -> None:
    results.record(tiny_pipeline.name)
    results.record("scenes-teacher")
    results.pair(tiny_pipeline, "scenes-teacher")
    assert results.runs == [([tiny_pipeline.name, "scenes-teacher"], "quality")]


@pytest.mark.parametrize("swapped", [False, True])
def test_record_against_a_name_uses_or_creates_a_record_of_the_same_machine_class(swapped: bool, results: Results) -> None:
    record, elsewhere = results.record("scenes-vega"), results.record("scenes-teacher", GPU, day=5)

    def pair() -> tuple[Path, Path]:
        new, old = results.pair("scenes-teacher", record) if swapped else results.pair(record, "scenes-teacher")
        return (old, new) if swapped else (new, old)

    given, created = pair()
    assert (given, created.parent.name, results.runs) == (record, "scenes-teacher", [(["scenes-teacher"], "quality")])
    assert created != elsewhere
    assert pair() == (record, created)
    assert len(results.runs) == 1, "the record of the first run is reused"


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("quality-custom", "Give --suite quality and again the options, such as --n, that made it"),
        ("quality-sequential", "measure its model again without --until-verdict"),
        ("quality-custom-sequential", "measure its model again without --until-verdict"),
        ("quality", "Name that suite with --suite"),
    ],
)
def test_nothing_is_run_against_a_record_of_other_settings(name: str, advice: str, results: Results) -> None:
    record = results.record("scenes-vega", suite=SuiteId(name=name, version=SUITE.version, digest="0"))
    pairs: list[tuple[Path | str, Path | str]] = [(record, "scenes-teacher"), ("scenes-teacher", record)]
    for candidate, baseline in pairs:
        with pytest.raises(UserError, match=rf"of suite {name}@\d+ \(digest 0\), but this run would be of quality@.*{advice}$"):
            results.pair(candidate, baseline)
    assert results.runs == []


def test_suite_of_a_record_may_be_given(results: Results) -> None:
    few = api.Overrides(n=4, steps=2).apply(SUITE)
    record = results.record("scenes-vega", suite=few.id)
    _, old = results.pair(record, "scenes-teacher", few)
    assert results.runs == [(["scenes-teacher"], "quality-custom")]
    assert old.parent.name == "scenes-teacher"


def test_record_of_a_custom_suite_is_compared_with_one_of_the_same_suite(results: Results) -> None:
    """No options need to be repeated where both were measured with them."""
    few = api.Overrides(n=4, steps=2).apply(SUITE)
    mine, teacher = (results.record(name, suite=few.id) for name in ("my-unet", "scenes-teacher"))
    results.record("scenes-teacher", GPU, suite=few.id, day=1)
    results.record("scenes-teacher", day=2)
    assert results.pair("my-unet", "scenes-teacher") == (mine, teacher)
    assert results.pair("scenes-teacher", mine) == (teacher, mine)
    assert results.runs == []


@pytest.mark.parametrize("candidate", ["scenes-vega", "record"])
def test_nothing_is_run_for_a_misspelt_name(candidate: str, results: Results) -> None:
    named = results.record("scenes-vega") if candidate == "record" else candidate
    with pytest.raises(UserError, match="unknown model 'scenes-techer'; did you mean 'scenes-teacher'"):
        results.pair(named, "scenes-techer")
    results.record("my-unet")
    with pytest.raises(UserError, match=r"unknown model 'my-unit'; .* There are records of 'my-unet'\."):
        results.pair(named, "my-unit")
    with pytest.raises(UserError) as of_a_folder:
        results.pair(named, results.folder)
    assert "name of a baseline" not in str(of_a_folder.value)
    assert results.runs == []


def test_name_of_records_is_looked_up_in_the_results_on_either_side(results: Results) -> None:
    own, other = results.record("my-unet"), results.record("dall-e")
    teacher = results.record("scenes-teacher")
    results.record("my-unet", suite=SuiteId(name="standard", version=1, digest="0"))
    for named, record in (("my-unet", own), ("dall-e", other)):
        assert results.pair(named, teacher) == (record, teacher)
        assert results.pair(named, "scenes-teacher") == (record, teacher)
        assert results.pair(teacher, named) == (teacher, record)
        assert results.pair("scenes-teacher", named) == (teacher, record)
    assert results.pair("my-unet", "dall-e") == (own, other)
    baselines.set_baseline("production", teacher, "release 1", results.folder)
    assert results.pair("my-unet", "production") == (own, teacher)
    newer = results.record("my-unet", day=1)
    assert results.pair("my-unet", "production") == (newer, teacher), "the newest of a row"
    assert results.runs == []


def test_name_of_records_fits_by_the_suite_of_the_other_side(results: Results) -> None:
    few = api.Overrides(n=4, steps=2).apply(SUITE)
    whole, custom = results.record("my-unet"), results.record("my-unet", suite=few.id)
    teacher = results.record("scenes-teacher", suite=few.id)
    assert results.pair("my-unet", teacher) == (custom, teacher)
    assert results.pair("my-unet", "scenes-teacher", few) == (custom, teacher)
    assert results.pair("my-unet", results.record("scenes-vega"))[0] == whole
    old = results.record("scenes-teacher", suite=SuiteId(name="quality", version=3, digest="0"))
    with pytest.raises(UserError) as error:
        results.pair("my-unet", old)
    assert "no record of 'my-unet' is of suite quality@3 (digest 0)" in str(error.value)
    assert f"name one of its existing records: {whole}, {custom}" in str(error.value)
    assert results.runs == []


def test_run_may_be_compared_with_a_name_of_records(results: Results) -> None:
    record = results.record("my-unet")
    asked = gating.Request(gating.load_policy(None), api.Places(results.folder), "cpu", None)
    assert asked.find_baseline("my-unet", SUITE) == record
    with pytest.raises(UserError, match="no record of 'my-unet' is of suite standard@"):
        asked.find_baseline("my-unet", suites.load("standard"))


def test_names_of_records_are_compared_under_the_suite_that_both_have(results: Results) -> None:
    custom = SuiteId(name="quality-custom", version=4, digest="0")
    mine = results.record("mine", suite=custom), results.record("mine-pruned", suite=custom)
    assert results.pair("mine", "mine-pruned") == mine
    default = results.record("mine"), results.record("mine-pruned")
    assert results.pair("mine", "mine-pruned") == default, "of several, the family's own"
    assert results.runs == []


def test_names_of_records_are_compared_on_one_machine_class(results: Results) -> None:
    on_gpu = results.record("mine", GPU), results.record("mine-pruned", GPU)
    results.record("mine", LAPTOP)
    assert results.pair("mine", "mine-pruned") == on_gpu
    assert results.pair(on_gpu[1], "mine") == on_gpu[::-1]
    assert results.runs == []


def test_several_fitting_records_of_a_name_are_listed(results: Results) -> None:
    here, there = results.record("my-unet"), results.record("my-unet", GPU)
    for pair in (("my-unet", "scenes-teacher"), ("scenes-teacher", "my-unet")):
        with pytest.raises(UserError) as error:
            results.pair(*pair)
        assert "there are 2 records of 'my-unet' under quality@4" in str(error.value)
        assert str(here) in str(error.value)
        assert str(there) in str(error.value)
    assert results.runs == []


def test_records_do_not_hide_a_checkpoint_nor_an_unknown_name(
    results: Results, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    record = re.escape(str(results.record("my-unet")))
    for name in ("my-unit", "*", "../my-unet", "my-un?t"):
        with pytest.raises(UserError, match=r"unknown model|no folder or file"):
            lookup.find_candidate(name, results.folder)
    with pytest.raises(UserError, match="unknown model 'my-unet'"):
        lookup.find_candidate("my-unet", results.folder, lora="x.safetensors")
    (tmp_path / "my-unet").symlink_to(tiny_pipeline / "unet")
    with pytest.raises(
        IncompleteError, match=rf"completes it with --base.* record of the name 'my-unet' instead, name its folder: {record}"
    ):
        lookup.find_candidate("my-unet", results.folder)
    (tmp_path / "my-unet").unlink()
    (tmp_path / "my-unet").mkdir()  # say, of the images that were measured
    with pytest.raises(UserError, match=rf"is not a checkpoint.* name its folder: {record}"):
        lookup.find_candidate("my-unet", results.folder)


def test_note_on_a_checkpoint_does_not_deny_that_it_has_a_record(results: Results, tiny_pipeline: Path) -> None:
    own, teacher = resolve(str(tiny_pipeline)), resolve("scenes-teacher")
    results.record(own.name)
    for specs, names in (([own], own.name), ([own, teacher], f"{own.name} and scenes-teacher")):
        note = lookup.describe_run(specs, SUITE, results.folder)
        assert note.startswith(
            f"checking {names} under quality@{SUITE.version} (digest {SUITE.id.digest}) in {results.folder}: what is missing"
        )
        assert "no " not in note
        assert note.endswith("name its folder")
    assert lookup.describe_run([teacher], SUITE, results.folder).startswith("no matching record of scenes-teacher under quality@")


def test_record_of_a_model_is_found_by_suite_digest_and_machine_class(results: Results) -> None:
    save_record(make_measurement("scenes-teacher"), results.folder)  # same suite name, another digest
    record = results.record("scenes-teacher")
    spec = resolve("scenes-teacher")
    assert lookup.newest_record(spec, SUITE.id, LAPTOP.machine_class, results.folder) == record
    assert lookup.newest_record(spec, SUITE.id, GPU.machine_class, results.folder) is None
