"""The loss on images that are not trained on: always of the same images, noise and timesteps."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from distillation import train
from distillation.ablation.experiment import one_shot_recipe
from distillation.recipe import Recipe, load_recipe, shipped_recipes
from distillation.run_plan import plan_run
from distillation.taps import Tap
from distillation.train import StepContext, distil
from sdbench.disk import read_json, read_json_lines
from sdbench.training.diffusion import Batch
from sdbench.training.latents import LatentPool


def test_each_image_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [SimpleNamespace(latents=torch.zeros(n, 4, 2, 2), loss=loss) for n, loss in ((2, 1.0), (1, 4.0))]
    accelerator = SimpleNamespace(autocast=lambda: torch.autocast("cpu", enabled=False))
    monkeypatch.setattr(train, "_loss_terms", lambda _, __, ___, batch: {"task": torch.tensor(batch.loss), "output": torch.tensor(0.5)})
    context = SimpleNamespace(validation=lambda: iter(made), accelerator=accelerator)
    losses = train._validation_losses(cast("StepContext", context), nn.Identity(), [])
    assert losses == {"validation/task": (2 * 1 + 1 * 4) / 3, "validation/output": 0.5}
    context.validation = tuple
    assert train._validation_losses(cast("StepContext", context), nn.Identity(), []) == {}


def test_it_is_logged_with_each_evaluation_and_of_the_same_batches(
    vega: Recipe, teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen, trained_on, of_batch, draw = list[Batch](), list[torch.Tensor](), train._loss_terms, LatentPool.batch

    def noted(context: StepContext, student: nn.Module, taps: list[Tap], batch: Batch) -> dict[str, torch.Tensor]:
        seen.append(batch)
        return of_batch(context, student, taps, batch)

    def drawn(pool: LatentPool, *arguments: Any) -> Batch:
        batch = draw(pool, *arguments)
        trained_on.extend(batch.latents)
        return batch

    monkeypatch.setattr(train, "_loss_terms", noted)
    monkeypatch.setattr(LatentPool, "batch", drawn)
    recipe = one_shot_recipe(vega.model_copy(update={"scenes": vega.settings("scenes").model_copy(update={"images": 30, "validation": 3})}))
    out = distil(plan_run(recipe, "scenes", [teacher_folder], 1), tmp_path / "work", tmp_path / "out", unet_only=True)
    assert "not trained on: 3 of these images, whose loss is logged\n" in capsys.readouterr().err
    # a step; the evaluation after it; one batch for the stage's final losses; and those for its final validation
    assert [len(batch.latents) for batch in seen] == [2, 2, 1, 2, 2, 1]
    evaluated, at_the_end = seen[1:3], seen[4:]
    for one, other in zip(evaluated, at_the_end, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))
    assert not any(torch.equal(image, latents) for batch in evaluated for image in batch.latents for latents in trained_on)
    (log,) = (tmp_path / "work").glob("vega-*/1-all/log.jsonl")
    *_, last = read_json_lines(log)
    names = {"validation/task", "validation/output", "validation/feature"}
    noted_losses = read_json(out / "provenance.json")["stages"][-1]["losses"]
    assert {name: last[name] for name in names} == {name: noted_losses[name] for name in names}
    assert noted_losses.keys() == names | {"task", "output", "feature"}
    assert read_json(out / "provenance.json")["images"] == 27


@pytest.mark.parametrize("name", shipped_recipes())
def test_only_full_size_recipes_ask_for_it(name: str) -> None:
    recipe = load_recipe(name)
    assert (recipe.settings("scenes").validation, recipe.settings("sdxl").validation) == (0, 256)
    assert "validation" not in recipe.settings("scenes").model_dump(), "in no digest of the embedded students"
    without = recipe.model_copy(update={"sdxl": recipe.settings("sdxl").model_copy(update={"validation": 0})})
    assert without.training_digest("sdxl") != recipe.training_digest("sdxl")
