"""The Python API takes models, suites and folders by name or as objects, everywhere alike."""

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_measurement, save_record
from PIL import Image

import sdbench
from sdbench import api, cli, suites
from sdbench.api.places import NamedPlaces
from sdbench.errors import UserError
from sdbench.models.resolve import resolve
from sdbench.run import external, runner, until_verdict
from sdbench.run.context import RunContext
from sdbench.suites.folders import SHIPPED

VEGA, QUALITY, FILE = resolve("scenes-vega"), suites.load("quality"), Path(__file__).parents[1] / "suites" / "quality.toml"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """Model and suite of each call that would draw an image; the call then stops."""
    calls: list[Any] = []

    def stop(specs: Any, context: Any, *_: Any) -> None:
        calls.append((specs if isinstance(specs, list) else [specs], context.suite.name, context.suite.prompts.n))
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    for module, name in ((runner, "run"), (runner, "draw"), (until_verdict, "run_until_verdict")):
        monkeypatch.setattr(module, name, stop)
    return calls


def until_a_verdict(model: Any, suite: Any) -> None:
    record = save_record(make_measurement("scenes-teacher", suite=QUALITY.id), Path("results"))
    api.until_verdict(model, suite, baseline=record, device="cpu", only="quality")


@pytest.mark.parametrize(
    "measure",
    [
        lambda model, suite: api.run(model, suite, device="cpu"),
        lambda model, suite: api.run([model], suite, device="cpu"),
        lambda model, suite: api.draw(model, suite, part=(1, 2), device="cpu"),
        lambda model, suite: api.noise(model, suite, seeds=2, device="cpu"),
        lambda model, suite: sdbench.evaluate(model, suite, device="cpu"),
        until_a_verdict,
    ],
    ids=["run", "run several", "draw", "noise", "evaluate", "until_verdict"],
)
def test_models_and_suites_are_taken_by_name_or_as_objects(measure: Callable[[Any, Any], None], runs: list[Any]) -> None:
    for model in ("scenes-vega", VEGA):
        for suite in ("quality", str(FILE), FILE, QUALITY, None):
            with pytest.raises(KeyboardInterrupt):
                measure(model, suite)
    assert runs == [([VEGA], "quality", 512)] * 10


def test_folder_of_a_model_may_be_a_path(runs: list[Any], tiny_pipeline: Path) -> None:
    for model in (tiny_pipeline, str(tiny_pipeline)):
        with pytest.raises(KeyboardInterrupt):
            api.run(["scenes-vega", model], device="cpu")
    assert runs == [([VEGA, resolve(str(tiny_pipeline))], "quality", 512)] * 2


def test_path_is_a_folder_even_if_it_is_called_like_a_model(runs: list[Any], tiny_pipeline: Path) -> None:
    Path("vega").symlink_to(tiny_pipeline, target_is_directory=True)
    with pytest.raises(KeyboardInterrupt):
        sdbench.evaluate(Path("vega"), name="mine", device="cpu")
    assert runs == [([resolve(str(tiny_pipeline), name="mine")], "quality", 512)]


def test_pipeline_is_loaded_as_a_suite_would_draw_with_it(tiny_pipeline: Path) -> None:
    pipeline = api.load_pipeline(tiny_pipeline, dtype="bfloat16", device="cpu")
    assert {(parameter.dtype, parameter.requires_grad) for parameter in pipeline.unet.parameters()} == {(torch.bfloat16, False)}
    for model, message in (("scenes-veg", "did you mean 'scenes-vega'"), ("scenes-rendered", "images without a model")):
        with pytest.raises(UserError, match=message):
            api.load_pipeline(model, device="cpu")


def test_a_model_that_is_given_may_be_renamed(runs: list[Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        sdbench.evaluate(VEGA, name="mine", device="cpu")
    assert runs == [([resolve("scenes-vega", name="mine")], "quality", 512)]


def test_two_models_of_one_name_are_refused_before_the_slow_imports(runs: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sdbench.run.context", None)  # which imports torch, for seconds
    for measure in (api.run, functools.partial(api.draw, part=(1, 2))):
        with pytest.raises(UserError, match="'scenes-vega' is named twice; leave one out"):
            measure(["scenes-vega", VEGA], device="cpu")
    assert cli.main(["run", "--model", "scenes-vega", "--model", "scenes-vega"]) == 2
    assert runs == []


def test_misspelt_names_are_errors(runs: list[Any]) -> None:
    with pytest.raises(UserError, match="did you mean 'scenes-vega'"):
        api.run("scenes-veg", "quality")
    with pytest.raises(UserError, match="did you mean 'quality'"):
        api.draw("scenes-vega", "qualty", part=(1, 1))
    with pytest.raises(UserError, match="there is no model to measure"):
        api.run([])
    assert runs == []


@pytest.mark.parametrize("places", ["mine", Path("mine")])
def test_folder_of_results_may_be_text_or_a_path_in_every_function(
    places: NamedPlaces, tiny_pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked_in = []

    def stop(*given: Any) -> None:
        (work,) = [each.runs for each in given if isinstance(each, RunContext)] or given[-1:]
        worked_in.append(work)
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    for module, name in ((runner, "run"), (runner, "draw"), (until_verdict, "run_until_verdict")):
        monkeypatch.setattr(module, name, stop)
    for name in ("load_images", "record_images"):
        monkeypatch.setattr(external, name, stop)
    images, prompts = tmp_path / "images", tmp_path / "prompts.txt"
    images.mkdir()
    Image.new("RGB", (64, 64)).save(images / "0.png")
    prompts.write_text("a large red circle on a pink background", encoding="utf-8")
    old, new = (save_record(make_measurement(name, seed=seed, suite=QUALITY.id), Path("mine")) for seed, name in enumerate(("old", "new")))
    for measure in (
        lambda: api.run(VEGA, places=places, device="cpu"),
        lambda: api.draw(VEGA, part=(1, 2), places=places, device="cpu"),
        lambda: api.noise(VEGA, seeds=2, places=places, device="cpu"),
        lambda: api.evaluate(VEGA, places=places, device="cpu"),
        lambda: api.until_verdict(VEGA, baseline=old, places=places, device="cpu", only="quality"),
        lambda: api.score(images, prompts, QUALITY, places=places, device="cpu"),
        lambda: api.record_images(images, prompts, QUALITY, name="own", places=places, device="cpu"),
    ):
        with pytest.raises(KeyboardInterrupt):
            measure()
    assert worked_in == [Path("mine/runs")] * 7
    assert api.compare("old", "new", places=places).b_record == str(new)
    judged = api.gate("new", "old", places=places).inputs
    assert judged
    assert judged.candidate == str(new)
    assert api.report(places=places) == [Path("mine/report.html")]
    assert api.leaderboard(places=places) == [Path(f"mine/LEADERBOARD.{ending}") for ending in ("md", "tex", "csv", "json")]
    assert "| old |" in Path("mine/LEADERBOARD.md").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="no record under mine is of the weights"):
        api.card(tiny_pipeline, places=places)


@pytest.mark.parametrize(
    ("old", "new", "is_noted"),
    [
        ("n = 512", "n = 16", True),
        ("description = ", 'description = "mine" # ', False),
        (f"version = {QUALITY.version}", "version = 99", False),
    ],
)
def test_changed_copy_of_a_shipped_suite_that_keeps_its_name_is_noted(
    old: str, new: str, is_noted: bool, tmp_path: Path, runs: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    copy, text = tmp_path / "q.toml", FILE.read_text(encoding="utf-8")
    assert old in text
    copy.write_text(text.replace(old, new, 1), encoding="utf-8")
    for words in (["run", "--model", "scenes-vega"], ["gate", "scenes-vega", "--baseline", "scenes-teacher"], ["noise", "scenes-vega"]):
        cli.main([*words, "--suite", str(copy), "--device", "cpu"])
        assert (
            capsys.readouterr().err.count(f"suite {copy} has the name and version of the shipped quality@{QUALITY.version}, but")
            == is_noted
        )
    assert len(runs) == 3


def test_no_shipped_suite_is_a_changed_copy_wherever_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a clone they are found in ./suites, by other paths."""
    for folder in (tmp_path, SHIPPED.parent):
        monkeypatch.chdir(folder)
        found = [suite for name in suites.names() if isinstance(suite := suites.load_part(name), suites.Suite)]
        assert len(found) > 9
        assert [suite.name for suite in found if suite.is_changed_copy] == []


def test_a_suite_may_have_the_name_of_a_shipped_part(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(FILE.read_text(encoding="utf-8").replace('name = "quality"', 'name = "latency"'), encoding="utf-8")
    assert not suites.load(str(own)).is_changed_copy


@pytest.mark.parametrize("part", [(0, 4), (5, 4), (1, 0)])
def test_parts_are_counted_from_one(part: tuple[int, int], runs: list[Any]) -> None:
    with pytest.raises(UserError, match=f"there is no part {part[0]} of {part[1]}"):
        api.draw("scenes-vega", "quality", part=part)
    assert runs == []


def test_comparison_takes_the_suite_as_an_object_too(tmp_path: Path) -> None:
    for name in ("before", "after"):
        for suite in (QUALITY.id, suites.load("standard").id):
            save_record(make_measurement(name, suite=suite), tmp_path)
    for chosen in (suites.load("standard"), "standard", FILE.with_name("standard.toml")):
        assert api.compare("before", "after", chosen, places=api.Places(tmp_path)).suite == suites.load("standard").id.title_with_digest


def test_only_what_is_measured_or_compared_and_the_suite_are_taken_by_position() -> None:
    positional = {
        name: [each.name for each in inspect.signature(function).parameters.values() if each.kind is not each.KEYWORD_ONLY]
        for name, function in vars(api).items()
        if inspect.isfunction(function)
    }
    subjects = (["model"], ["models"], ["candidate", "baseline"], ["a", "b"], ["images", "prompts"])
    assert {name: words for name, words in positional.items() if words not in [[*subject, "suite"] for subject in subjects]} == {
        "leaderboard": [],
        "load_pipeline": ["model"],
        "report": [],
        "card": ["folder"],
    }


def test_places_are_paths_whatever_they_were_given_as() -> None:
    places = api.Places("mine", "elsewhere")
    assert places == api.Places(Path("mine"), Path("elsewhere"))
    assert (places.results, places.work) == (Path("mine"), Path("elsewhere"))
    assert api.Places() == api.Places("results", None)
    assert api.Places(runs="").work == Path("results/runs")


def test_folder_of_a_card_may_be_a_path(tiny_pipeline: Path, tmp_path: Path) -> None:
    save_record(make_measurement("other"), tmp_path)
    with pytest.raises(UserError, match=rf"measure them first: sdbench run --model {tiny_pipeline}"):
        api.card(tiny_pipeline, places=api.Places(tmp_path))
