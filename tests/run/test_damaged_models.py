"""Damaged models on this disk are refused by a dry run, and by a run before any image is made, from headers alone."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sdbench import cli

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def refusal(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message of a command that must end with exit code 2."""
    assert cli.main(words) == 2
    return capsys.readouterr().err.splitlines()[-1]


def drop_a_tensor(file: Path) -> None:
    tensors = load_file(file)
    tensors.pop("conv_in.weight")
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: drop_a_tensor(folder / "unet" / WEIGHTS), "unet lacks 1 of the 564 tensors"),
        (lambda folder: shutil.rmtree(folder / "tokenizer_2"), "tokenizer_2 is missing or empty; copy it from the base pipeline"),
        (
            lambda folder: (folder / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "none"}', encoding="utf-8"),
            "copy its tokenizers and scheduler from the base pipeline",
        ),
    ],
    ids=["tensor", "tokenizer", "scheduler"],
)
def test_damaged_model_is_refused_by_the_dry_run_and_before_any_image_is_made(
    damage: Callable[[Path], object], message: str, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_pipeline, tmp_path / "copy")
    damage(tmp_path / "copy")
    words = ["run", "--model", str(tiny_pipeline), "--model", "./copy", "--suite", "quality", "--only", "quality"]
    assert message in refusal([*words, "--dry-run"], capsys)
    assert message in refusal(words, capsys)
    assert not list(tmp_path.rglob("results/**/*.png"))


def test_damaged_unet_is_refused_before_its_base_is_fetched(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tiny_pipeline / "unet", tmp_path / "student")
    drop_a_tensor(tmp_path / "student" / WEIGHTS)
    words = ["run", "--model", "./student", "--base", "someone/scenes-pipeline", "--suite", "quality", "--only", "quality", "--dry-run"]
    assert "student lacks 1 of the 564 tensors" in refusal(words, capsys)


def test_lora_of_another_architecture_is_refused_by_the_dry_run(
    tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layer = "unet.down_blocks.2.attentions.0.transformer_blocks.{}.attn1.to_q"
    words = ["run", "--model", str(tiny_pipeline), "--lora", "./lora.safetensors", "--suite", "quality", "--only", "quality", "--dry-run"]
    for block, is_fine in ((1, True), (9, False)):
        sides = {f"{layer.format(block)}.lora_A.weight": torch.zeros(2, 16), f"{layer.format(block)}.lora_B.weight": torch.zeros(16, 2)}
        save_file(sides, tmp_path / "lora.safetensors")
        if is_fine:
            assert cli.main(words) == 0
            capsys.readouterr()
        else:
            assert "1 layers that the model lacks" in refusal(words, capsys)
