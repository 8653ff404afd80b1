"""Which two records are compared where nothing may be run."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from factories import GPU, LAPTOP, make_record, make_scores, save_record

from sdbench import suites
from sdbench.errors import UserError
from sdbench.gate import baselines, recorded
from sdbench.records import Machine, Model, SuiteId

QUALITY = suites.load("quality").id
CUSTOM = SuiteId(name="quality-custom", version=4, digest="0a")
FIRST = make_record().created


@dataclass
class Results:
    folder: Path

    def record(self, name: str, suite: SuiteId = QUALITY, machine: Machine = LAPTOP, day: int = 0, label: str = "") -> Path:
        model = Model(name=name, architecture="vega", source="embedded", weights_digest="3e16", label=label)
        record = make_record(model=model, suite=suite, machine=machine, created=FIRST + timedelta(days=day))
        return save_record((record, make_scores()), self.folder)

    def pair(self, first: str | Path, second: str | Path, suite: str | None = None) -> tuple[Path, Path]:
        return recorded.find_pair(str(first), str(second), suite, self.folder)


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path / "results")


def test_folders_names_and_baselines_stand_for_their_records(results: Results) -> None:
    vega, mine = results.record("scenes-vega"), results.record("mine")
    baselines.set_baseline("production", vega, "release 1", results.folder)
    for first in (vega, "scenes-vega", "production"):
        assert results.pair(first, mine) == results.pair(first, "mine") == (vega, mine)
    other = results.record("other", CUSTOM)
    assert results.pair(vega, other) == results.pair("scenes-vega", "other") == (vega, other), "the comparison names what differs"


def test_suite_is_the_one_that_both_have_or_the_familys_or_the_chosen_one(results: Results) -> None:
    custom = results.record("scenes-vega", CUSTOM), results.record("mine", CUSTOM)
    assert results.pair("scenes-vega", "mine") == custom
    results.record("scenes-vega")
    assert results.pair("scenes-vega", "mine") == custom
    whole = results.record("scenes-vega", day=1), results.record("mine", day=1)
    assert results.pair("scenes-vega", "mine") == whole
    assert results.pair("scenes-vega", custom[1]) == custom
    for suite in ("quality-custom", "quality-custom@4", "0a"):
        assert results.pair("scenes-vega", "mine", suite) == custom
    quality_file = str(Path(__file__).parents[2] / "suites" / "quality.toml")
    assert results.pair("scenes-vega", "mine", "quality") == results.pair("scenes-vega", "mine", quality_file) == whole
    with pytest.raises(UserError) as error:
        results.pair("scenes-vega", "mine", "qualty")
    assert str(error.value).startswith(
        "scenes-vega and mine have no records under one suite 'qualty': scenes-vega has quality-custom@4 (digest 0a), quality@4 (digest "
    )
    with pytest.raises(UserError, match="have no records under one suite 'quality'"):
        results.pair(custom[0], custom[1], "quality")


def test_several_suites_without_the_familys_are_listed(results: Results) -> None:
    again = CUSTOM.model_copy(update={"digest": "0b"})
    for suite in (CUSTOM, again):
        for name in ("scenes-vega", "mine"):
            results.record(name, suite)
    for chosen in (None, "quality-custom"):
        with pytest.raises(
            UserError, match=r"both have records under quality-custom@4 \(digest 0a\), quality-custom@4 \(digest 0b\); choose"
        ):
            results.pair("scenes-vega", "mine", chosen)
    assert recorded.find_pair("scenes-vega", "mine", "0b", results.folder) == (
        results.record("scenes-vega", again),
        results.record("mine", again),
    )


def test_records_are_the_newest_of_one_machine_class_and_of_the_models_own_weights(results: Results) -> None:
    here = results.record("scenes-vega", day=1), results.record("mine", day=1)
    assert results.pair("scenes-vega", "mine") == here
    there = results.record("scenes-vega", machine=GPU, day=2)
    assert results.pair("scenes-vega", "mine") == here
    results.record("scenes-vega", machine=GPU, day=9, label="random weights")
    both = there, results.record("mine", machine=GPU, day=3)
    assert results.pair("scenes-vega", "mine") == both
    alone = Results(results.folder.parent / "alone")
    apart = alone.record("scenes-vega", machine=GPU, label="random weights"), alone.record("mine")
    assert alone.pair("scenes-vega", "mine") == apart


def test_name_without_a_record_says_how_to_make_one(results: Results, tiny_pipeline: Path) -> None:
    record = results.record("mine")
    for name in ("scenes-vega", str(tiny_pipeline), "owner/name"):
        with pytest.raises(UserError) as error:
            results.pair(record, name)
        assert str(error.value).startswith(
            f"{name} is a model, and only records are compared: name one by its folder or, if there is one under "
        )
        assert str(error.value).endswith(f"to make one: sdbench run --model {name}")
    with pytest.raises(
        UserError, match=r"unknown model 'scenes-veg'; did you mean 'scenes-vega'.* Nor is it the name of a record or of a baseline"
    ):
        results.pair("scenes-veg", record)
    with pytest.raises(UserError, match=r"--base.* Only records are compared"):
        results.pair(tiny_pipeline / "unet", record)
    with pytest.raises(UserError, match=r"is not a record\. It holds one; name that"):
        results.pair(record.parent, record)
