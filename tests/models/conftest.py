from pathlib import Path

import pytest
from ldm import save_ldm

from sdbench.models.loading import load
from sdbench.models.resolve import resolve


@pytest.fixture(scope="session")
def original_checkpoint(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline with SDXL's topology as a single file in the original (LDM) format."""
    file = tmp_path_factory.mktemp("original") / "whole.safetensors"
    save_ldm(load(resolve(str(teacher_folder)), dtype="float32", device="cpu"), file)
    return file
