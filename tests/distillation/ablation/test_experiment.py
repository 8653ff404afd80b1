"""The arms match their names, and a stopped sweep continues."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from processes import is_locked

from distillation.ablation import experiment
from distillation.ablation.experiment import BASE, arm_recipes, one_shot_recipe, run_sweep, with_other_blocks, with_seed
from distillation.recipe import Recipe, load_recipe
from distillation.run_plan import RunPlan, plan_run
from distillation.teacher import EMBEDDED
from distillation.train import distil
from sdbench.arrays import F64
from sdbench.disk import read_json
from sdbench.errors import UserError
from sdbench.models.architectures import depths, unet_config
from sdbench.scenes.training.pool import Pool

SCENES_DIGEST = "1f8f10f99ea0af38a55a3819f83a94c57a807e36b62fb7e72db006992483289c"  # of the pool that these and the shipped students saw


@pytest.fixture
def missed() -> dict[str, F64]:
    """Losses that rise with the block's number."""
    return {path: np.arange(depth)[:, None] * np.ones((1, 2)) for path, depth in depths(unet_config("sdxl")).items()}


@pytest.mark.parametrize("name", ["ssd-1b", "vega"])
def test_every_arm_is_a_valid_recipe_with_its_own_digest(name: str, missed: dict[str, F64]) -> None:
    recipe = load_recipe(name)
    ways = {arm: way() for arm, way in arm_recipes(recipe, lambda: missed).items()}
    for way in ways.values():
        way.check()
        assert way.cuts[-1].depths == recipe.cuts[-1].depths
    assert len({way.digest for way in ways.values()}) == len(ways)
    assert ways[BASE] == recipe
    assert (ways["task only"].loss.output, ways["task only"].loss.feature) == (0, 0)
    assert (ways["task and output"].loss.output, ways["task and output"].loss.feature) == (0.5, 0)


def test_cuts_of_the_arms(missed: dict[str, F64]) -> None:
    recipe = load_recipe("vega")
    ways, path = {arm: way() for arm, way in arm_recipes(recipe, lambda: missed).items()}, "down_blocks.2.attentions.0"
    assert [cut.blocks[path] for cut in ways["first blocks"].cuts] == [(0, 1, 2, 3), (0, 1)]
    assert [cut.blocks[path] for cut in ways["blocks most missed"].cuts] == [(6, 7, 8, 9), (8, 9)]
    assert one_shot_recipe(recipe).cuts == [recipe.cuts[-1]]
    first, final = (cut.blocks for cut in recipe.cuts)

    def choose_its_own(attention: str, _: Sequence[int], k: int) -> tuple[int, ...]:
        kept = first if k == len(first.get(attention, ())) else final
        return kept.get(attention, ())

    assert with_other_blocks(recipe, choose_its_own, "its own").cuts == recipe.cuts


def test_a_stopped_sweep_makes_only_what_is_missing(
    vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "CAPTIONS", 16)
    made = []

    def counted(plan: RunPlan, work: Path, out: Path, **chosen: Any) -> Path:
        assert is_locked(out.with_suffix(".lock")), "another sweep must wait"
        made.append((plan.recipe.loss.feature, plan.recipe.settings("scenes").seed))
        if len(made) == 2:
            raise KeyboardInterrupt
        return distil(plan, work, out, **chosen)

    monkeypatch.setattr(experiment, "distil", counted)
    where, only = (one_shot_recipe(vega), teacher_folder, tmp_path / "work", tmp_path / "results"), (BASE, "task only")
    with pytest.raises(KeyboardInterrupt):
        run_sweep(*where, seeds=1, steps=1, only=only)
    outcomes = run_sweep(*where, seeds=1, steps=1, only=only)
    assert made == [(0.5, 0), (0.0, 0), (0.0, 0)]
    assert [(outcome.arm, outcome.seed, len(outcome.right)) for outcome in outcomes] == [(BASE, 0, 16), ("task only", 0, 16)]
    files = sorted((tmp_path / "results" / "ablation" / "vega").iterdir())
    assert [file.name for file in files] == ["layer-level-0.json", "task-only-0.json"]
    assert set(read_json(files[0])["losses"]) == {"task", "output", "feature"}


def test_an_invalid_sweep_is_refused_before_anything_is_encoded(vega: Recipe, tiny_pipeline: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="architecture 'vega'; recipe 'vega' cuts 'sdxl'"):
        run_sweep(vega, tiny_pipeline, tmp_path / "work", tmp_path / "results", seeds=1)
    assert list(tmp_path.iterdir()) == []


def test_damaged_result_of_an_earlier_sweep_is_named(tmp_path: Path) -> None:
    (tmp_path / "one-shot-0.json").write_text('{"arm":', encoding="utf-8")
    with pytest.raises(UserError, match=r"one-shot-0\.json is damaged .*, or move .*one-shot-0\.json away"):
        experiment._read(tmp_path / "one-shot-0.json")


def test_committed_results_are_those_of_these_recipes(missed: dict[str, F64]) -> None:
    folder = Path(__file__).parents[3] / "results" / "ablation"
    ways = {
        arm: way() for arm, way in arm_recipes(load_recipe(folder / "vega.toml"), lambda: missed).items() if arm != "blocks most missed"
    }
    plans = {arm: plan_run(way, "scenes", [EMBEDDED], 600) for arm, way in ways.items()}
    for arm, way in ways.items():
        for seed in range(3):
            committed = experiment._read(folder / "vega" / f"{arm.replace(' ', '-')}-{seed}.json")
            assert committed is not None
            assert committed.identity == replace(plans[arm], recipe=with_seed(way, seed)).identity(SCENES_DIGEST, "cpu")


def test_another_version_or_other_data_trains_every_arm_again_and_keeps_the_earlier_result(
    vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiment, "CAPTIONS", 16)
    made, versions = [], {"torch": "1"}

    def counted(plan: RunPlan, work: Path, *arguments: Any, **chosen: Any) -> Path:
        made.append((versions["torch"], work))
        return distil(plan, work, *arguments, **chosen)

    monkeypatch.setattr(experiment, "distil", counted)
    monkeypatch.setattr(experiment, "package_versions", lambda: dict(versions))
    recipe = one_shot_recipe(vega)
    sweep = partial(
        run_sweep, teacher_folder=teacher_folder, work=tmp_path / "work", results=tmp_path / "results", seeds=1, steps=1, only=[BASE]
    )
    sweep(recipe)
    sweep(recipe)
    assert len(made) == 1
    path = tmp_path / "results" / "ablation" / "vega" / "layer-level-0.json"
    first = path.read_bytes()
    assert "earlier result" not in capsys.readouterr().err
    versions["torch"] = "2"
    sweep(recipe)
    assert len(made) == 2
    assert made[0][1] != made[1][1], "a segment trained before the upgrade would be taken from the same folder"
    (earlier,) = path.parent.glob("layer-level-0-*.json")
    assert earlier.read_bytes() == first
    assert f"the earlier result of layer-level-0 differs in: versions; it is now in {earlier}\n" in capsys.readouterr().err
    monkeypatch.setattr(Pool, "digest", "other scenes")
    (outcome,) = sweep(recipe)
    assert len(made) == 3
    assert (outcome.identity["data"], outcome.identity["versions"]) == ("other scenes", {"torch": "2"})
