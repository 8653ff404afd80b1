"""The full-size path, with random weights: minutes and many GB, so marked slow."""

from pathlib import Path

import pytest
import torch

from sdbench import records
from sdbench.cli import main
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
