"""A recipe that trains on the tiny teacher in seconds, and a cache of `datasets` for each test."""

from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

from distillation import look
from distillation.recipe import Recipe, read
from sdbench.scenes.training import watch


@pytest.fixture(scope="session")
def vega() -> Recipe:
    recipe = read("vega")
    stages = tuple(stage.model_copy(update={"share": share}) for stage, share in zip(recipe.stages, (0.4, 0.6), strict=True))
    scenes = recipe.scenes.model_copy(update={"pictures": 8, "batch": 2, "warmup": 1})
    return recipe.model_copy(update={"stages": stages, "scenes": scenes})


@pytest.fixture(scope="session", autouse=True)
def a_glance() -> Iterator[None]:
    """One denoising step makes as many pictures as all; what they show is not asked of a tiny student."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "STEPS", 1)
        patch.setattr(look, "STEPS", 1)
        yield


@pytest.fixture(autouse=True)
def notes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where digests of pictures are noted."""
    caches = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches))
    return caches / "sdbench" / "pictures"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where `datasets` keeps what it opened; it asks no Hub."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"
