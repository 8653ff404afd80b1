"""The full-size path, with random weights: minutes and many GB, so marked slow."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from memory import added_anonymous
from tiny import noise_unet, save_tiny_pipeline, with_unet

from sdbench import records
from sdbench.cli import main
from sdbench.models.architectures import unet_config
from sdbench.models.loading import load
from sdbench.models.spec import resolve


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_full_size_folder_is_run_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "my-ssd-1b"
    load(resolve("ssd-1b", random=True), dtype=torch.bfloat16, device="cpu").save_pretrained(folder)
    size = ["--size-px", "256", "--steps", "2", "--n", "2", "--batch", "1", "--dtype", "float32"]  # bfloat16 is slow on older CPUs
    words = ["run", "--model", str(folder), "--suite", "standard", "--only", "quality", *size]
    assert main([*words, "--results", str(tmp_path / "results")]) == 0
    ((path, record),) = records.newest(tmp_path / "results")
    assert record.model.architecture == "ssd-1b"
    assert record.family == "sdxl"
    assert record.n_images == 2
    assert len(list((path / "images").glob("*.png"))) == 2
    clip = record.value("clip_score.vit-l-14")
    assert clip is not None
    assert clip.state in {"ok", "missing"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cutting_the_full_size_unet_takes_half_a_gigabyte_at_most(tmp_path: Path) -> None:
    small = save_tiny_pipeline(tmp_path / "small", "sdxl")
    teacher = with_unet(small, tmp_path / "teacher", noise_unet(unet_config("sdxl")))
    assert sum(file.stat().st_size for file in (teacher / "unet").glob("*.safetensors")) > 5.1e9
    words = [["prune", "ssd-1b", "--teacher", str(folder), "--out", f"{folder}-student"] for folder in (small, teacher)]
    assert added_anonymous(*words) <= 0.5e9
    pipeline = StableDiffusionXLPipeline.from_pretrained(f"{teacher}-student", dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in pipeline.unet.parameters()) == 1_331_334_404
