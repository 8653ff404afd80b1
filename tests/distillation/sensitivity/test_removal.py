"""Losses without a block: zero if the block does nothing, and the UNet is unchanged afterwards."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from tiny import save_tiny_pipeline, tiny_batch, tiny_unet

from distillation.cli import main
from distillation.recipe import RECIPES, load_recipe
from distillation.sensitivity import removal
from distillation.sensitivity.removal import WHOLE_MIDDLE, Sensitivity, Settings, pick_most_missed, ranking_table, removal_losses
from sdbench.disk import read_json, write_json_lines
from sdbench.errors import UserError
from sdbench.models.architectures import depths
from sdbench.training.diffusion import add_noise, predict

DEAD = "down_blocks.2.attentions.1"


def test_only_a_block_that_does_nothing_has_no_loss() -> None:
    unet = tiny_unet("ssd-1b").eval()
    dead = unet.get_submodule(f"{DEAD}.transformer_blocks.3")
    for layer in (dead.attn1.to_out[0], dead.attn2.to_out[0], dead.ff.net[2]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        before = predict(unet, tiny_batch(0).noise, tiny_batch(0))
        losses = removal_losses(unet, [tiny_batch(1), tiny_batch(2)], DDIMScheduler())
        assert torch.equal(predict(unet, tiny_batch(0).noise, tiny_batch(0)), before)
    assert {path: rows.shape for path, rows in losses.items()} == {path: (depth, 2) for path, depth in depths(unet.config).items()}
    assert not losses[DEAD][3].any()
    assert sum((rows > 0).sum() for rows in losses.values()) == 2 * (sum(depths(unet.config).values()) - 1)


@torch.no_grad()
def test_losses_are_those_of_whole_passes_although_what_runs_before_a_removed_block_runs_once() -> None:
    unet, batch, scheduler = tiny_unet("vega").eval(), tiny_batch(1), DDIMScheduler()
    noised = add_noise(scheduler, batch)
    output, blocks = (
        predict(unet, noised, batch),
        [f"{path}.transformer_blocks.{row}" for path, n in depths(unet.config).items() for row in range(n)],
    )
    expected = []
    for path in blocks:
        with unet.get_submodule(path).register_forward_hook(lambda _, inputs, __: inputs[0]):
            expected.append(torch.nn.functional.mse_loss(predict(unet, noised, batch), output).item())
    runs = Counter[str]()
    for path in blocks:
        unet.get_submodule(f"{path}.norm1").register_forward_pre_hook(lambda *_, path=path: runs.update([path]))
    found = removal_losses(unet, [batch], scheduler)
    assert [loss for rows in found.values() for loss in rows[:, 0]] == expected
    assert [runs[path] for path in blocks] == [2 + earlier for earlier, _ in enumerate(blocks)]  # a removed block runs, and is discarded


@pytest.mark.parametrize(("there", "k", "expected"), [((0, 1, 2, 3), 2, (0, 3)), ((1, 2, 3), 2, (1, 3)), ((0, 1, 2, 3), 0, ())])
def test_the_blocks_most_missed_are_kept_in_rising_order(there: tuple[int, ...], k: int, expected: tuple[int, ...]) -> None:
    losses = {"a": np.array([[9.0, 1.0], [2.0, 2.0], [0.0, 0.0], [3.0, 9.0]])}
    assert pick_most_missed(losses, "a", there, k) == expected


def test_the_error_of_a_loss_counts_only_the_spread_within_bins() -> None:
    losses = {"a": [[[1.0, 3.0], [10.0, 10.0]], [[4.0, 4.0], [4.0, 4.0]]], WHOLE_MIDDLE: [[[0.0, 4.0], [0.0, 6.0]]]}
    settings = Settings(bins=2, batches=2, images=1)
    found = Sensitivity(
        teacher="t", digest="", data_digest="", settings=settings, timesteps=[(0, 499), (500, 999)], n_images=4, losses=losses
    )
    assert {path: rows.tolist() for path, rows in found.by_bin.items()} == {"a": [[2, 10], [4, 4]], WHOLE_MIDDLE: [[2, 3]]}
    assert {path: rows.tolist() for path, rows in found.mean.items()} == {"a": [6, 4], WHOLE_MIDDLE: [2.5]}
    # variances of 8 / 2 and 18 / 2 of the two bins' means; the mean of both has a quarter of their sum
    assert {path: rows.tolist() for path, rows in found.error.items()} == {"a": [0.5, 0], WHOLE_MIDDLE: [pytest.approx(13**0.5 / 2)]}
    table = ranking_table(found, {"a": np.array([0.25, 0.5]), WHOLE_MIDDLE: np.array([0.125])}).splitlines()
    assert table[2:] == [
        "| a, block 0 | 6 | 0.5 | 25.00% |",
        "| a, block 1 | 4 | 0 | 50.00% |",
        "| mid_block.attentions.0 and mid_block.resnets.1 | 2.5 | 1.8 | 12.50% |",
    ]


def test_the_command_measures_once_and_writes_a_recipe(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--teacher", str(teacher_folder), "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    words = ["sensitivity", *places, "--bins", "1", "--batches", "2", "--images", "2", "--parameters", "0.5"]
    assert main([*words, "--write-recipe", str(tmp_path / "mine.toml")]) == 0
    said = capsys.readouterr().out
    kept = tmp_path / "results" / "sensitivity" / f"{teacher_folder.name}.json"
    found = Sensitivity.model_validate_json(kept.read_text(encoding="utf-8"))
    assert {path: len(rows) for path, rows in found.losses.items()} == {**depths(tiny_unet("sdxl").config), WHOLE_MIDDLE: 1}
    assert sum(line.startswith("| ") for line in said.splitlines()) > 71  # a row for each part
    assert load_recipe(tmp_path / "mine.toml").cuts[-1].depths != depths(tiny_unet("sdxl").config)
    assert kept.with_suffix(".png").is_file()
    measured = list[object]()

    def measure_again(*arguments: object) -> dict[str, np.ndarray[Any, Any]]:
        """Stands in for the passes through the network, which take most of the time."""
        measured.append(arguments)
        return {part: np.array(rows).reshape(len(rows), -1) for part, rows in found.losses.items()}

    monkeypatch.setattr(removal, "removal_losses", measure_again)
    monkeypatch.setattr("distillation.sensitivity.plot.plot_sensitivity", lambda *_, **__: None)
    before = kept.stat().st_mtime_ns
    assert main([*words, "--json"]) == 0
    assert kept.stat().st_mtime_ns == before
    again = capsys.readouterr()
    answer = json.loads(again.out)
    assert said.startswith(again.err.rstrip())  # the same tables, without the recipe
    assert [part["loss"] for part in answer["parts"]] == sorted((part["loss"] for part in answer["parts"]), reverse=True)
    assert len(answer["parts"]) == sum(map(len, found.losses.values()))
    recipe = load_recipe(tmp_path / "mine.toml")
    assert [{path: tuple(kept) for path, kept in stage["keeps"].items()} for stage in answer["stages"]] == [
        cut.blocks for cut in recipe.cuts
    ]
    assert (answer["digest"], answer["recipe"]) == (found.digest, None)
    assert main([*words[:-2], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"] is None
    assert main([*words[:-2], "--latency", "0.8"]) == 0
    assert " ms a call (" in capsys.readouterr().out.splitlines()[-1]
    assert not measured
    for change, is_measured_again in (
        ({"versions": {"torch": "1"}}, True),
        ({"device": "cuda"}, True),
        ({"device": None, "versions": None}, False),
    ):
        changed = json.dumps(read_json(kept) | change)
        kept.write_text(changed, encoding="utf-8")
        measured.clear()
        assert main(words) == 0
        assert (kept.read_text(encoding="utf-8") != changed) == bool(measured) == is_measured_again, change
        said = capsys.readouterr().err
        if is_measured_again:
            (earlier,) = {path for path in kept.parent.glob(f"{kept.stem}-*.json") if str(path) in said}
            assert f"differs in: {', '.join(change)}; it is now in" in said
            assert Sensitivity.model_validate_json(earlier.read_text(encoding="utf-8")) == Sensitivity.model_validate_json(changed)
    assert main([*words[:-2], "--parameters", "0.01"]) == 2
    assert "no cut comes down to" in capsys.readouterr().err
    for damage in (b"", b"\xff{}", b"{}"):
        kept.write_bytes(damage)
        assert main(words) == 2
        assert f"{kept} is not a measurement that this version can read" in capsys.readouterr().err
        assert kept.read_bytes() == damage


def test_too_few_images_are_refused_also_if_some_cannot_be_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[int] = []

    def encode(_: Path, images: Any, *__: Any) -> range:
        encoded.append(len(images.captions))
        return range(3)  # has the length of a pool

    monkeypatch.setattr(removal, "LatentPool", encode)
    teacher: Any = SimpleNamespace(folder=tmp_path)
    for n in (3, 4):
        images: Any = SimpleNamespace(captions=["a circle"] * n)
        with pytest.raises(UserError, match=r"^3 images to measure on; expected 4 for 1 bins of 2 batches of 2"):
            removal.sensitivity_batches(teacher, Settings(bins=1, batches=2, images=2), images, tmp_path, "cpu")
    assert encoded == [4]


def test_the_result_of_an_older_version_is_taken_without_its_software() -> None:
    path = Path(__file__).parents[3] / "results" / "sensitivity" / "scenes-teacher.json"
    found = Sensitivity.model_validate_json(path.read_text(encoding="utf-8"))
    assert (found.n_images, found.device, found.versions) == (320, None, None)


@pytest.mark.usefixtures("datasets_cache")
def test_a_full_size_teacher_is_measured_on_the_given_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = save_tiny_pipeline(tmp_path / "teacher", "vega", family="sdxl")  # few blocks, since each costs a forward pass
    words = ["sensitivity", "--teacher", str(teacher), "--work", str(tmp_path / "work"), "--results", str(tmp_path / "results")]
    assert main(words) == 2
    assert "name images to measure on with --data" in capsys.readouterr().err
    rows = [{"file_name": f"{row}.png", "text": f"image number {row}"} for row in range(4)]
    write_json_lines(tmp_path / "images" / "metadata.jsonl", rows)
    for row in range(4):
        Image.new("RGB", (80, 64), (60 * row, 0, 0)).save(tmp_path / "images" / rows[row]["file_name"])
    (tmp_path / "small.toml").write_text(
        (RECIPES / "vega.toml").read_text(encoding="utf-8").replace("size_px = 1024", "size_px = 64"), encoding="utf-8"
    )
    few = ["--bins", "2", "--batches", "2", "--images", "1"]
    assert main([*words, *few, "--data", str(tmp_path / "images"), "--like", str(tmp_path / "small.toml")]) == 0
    found = Sensitivity.model_validate_json((tmp_path / "results" / "sensitivity" / "teacher.json").read_text(encoding="utf-8"))
    assert {path: len(rows) for path, rows in found.losses.items()} == depths(tiny_unet("vega").config)
    assert found.timesteps == [(0, 499), (500, 999)]
