"""What several rooms' tests share."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch: threads that wait for each other cost tiny models thrice the time


@pytest.fixture(scope="session", autouse=True)
def _frozen() -> Iterator[None]:
    """A full collection, of which a run of a model makes several, walks what the tests made, not half a million objects of the libraries."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline that nobody changes."""
    from tiny import save_tiny_pipeline

    return save_tiny_pipeline(tmp_path_factory.mktemp("made") / "tiny-vega")


@pytest.fixture(scope="session")
def made_pipeline(made: Path) -> Any:
    """It, read; to be copied before it is changed, which takes a quarter of the time of reading it again."""
    from sdbench.models.loading import load
    from sdbench.models.spec import resolve

    return load(resolve(str(made)), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another, with SDXL's topology."""
    from tiny import save_tiny_pipeline

    return save_tiny_pipeline(tmp_path_factory.mktemp("teacher") / "pipeline", "sdxl")
