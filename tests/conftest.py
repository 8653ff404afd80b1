"""What several rooms' tests share."""

from pathlib import Path

import pytest
from tiny import save_tiny_pipeline


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline that nobody changes."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("made") / "tiny-vega")


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another, with SDXL's topology."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("teacher") / "pipeline", "sdxl")
