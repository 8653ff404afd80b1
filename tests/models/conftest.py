from pathlib import Path

import pytest
from ldm import save_ldm

from sdbench.models.loading import load
from sdbench.models.spec import resolve


@pytest.fixture(scope="session")
def original(teacher_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline with SDXL's topology in one file, its tensors named as in the original checkpoint."""
    file = tmp_path_factory.mktemp("original") / "whole.safetensors"
    save_ldm(load(resolve(str(teacher_folder)), dtype="float32", device="cpu"), file)
    return file
