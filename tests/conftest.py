"""Fixtures shared by the tests of several packages."""

import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before importing PyTorch; with several threads, tiny models take three times as long
# As in many containers; without its caches each process that a test starts would compile PyTorch and diffusers again, for 10 s.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


@pytest.fixture(scope="session", autouse=True)
def _unfreeze_at_the_end() -> Iterator[None]:
    """Let all objects be freed at exit; libraries complain about those that are not."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="module", autouse=True)
def _freeze_living_objects() -> None:
    """Exclude what is alive, half a million objects of the libraries, from full garbage collections: each run of a model makes several."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny pipeline, read-only for tests."""
    from tiny import save_tiny_pipeline

    return save_tiny_pipeline(tmp_path_factory.mktemp("made") / "tiny-vega")


@pytest.fixture(scope="session")
def loaded_pipeline(tiny_pipeline: Path) -> Any:
    """The loaded tiny pipeline; copy it before changing it, which takes a quarter of the time of loading it again."""
    from sdbench.models.loading import load
    from sdbench.models.resolve import resolve

    return load(resolve(str(tiny_pipeline)), dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny pipeline with SDXL's topology."""
    from tiny import save_tiny_pipeline

    return save_tiny_pipeline(tmp_path_factory.mktemp("teacher") / "pipeline", "sdxl")


@pytest.fixture
def fake_evaluators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake evaluators in place of the shipped ones."""
    from fakes import replace_all_evaluators

    replace_all_evaluators(monkeypatch)


@pytest.fixture
def empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Change to a folder without ./suites and ./results."""
    monkeypatch.chdir(tmp_path)
