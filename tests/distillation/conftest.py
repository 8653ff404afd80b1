"""A recipe that trains on the tiny teacher in seconds, and a cache of `datasets` for each test."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import datasets
import pytest

from distillation import describe, samples, train
from distillation.estimate import Memory
from distillation.recipe import Recipe, read
from sdbench.scenes.training import evaluation


@pytest.fixture(scope="session")
def vega() -> Recipe:
    recipe = read("vega")
    stages = tuple(stage.model_copy(update={"share": share}) for stage, share in zip(recipe.stages, (0.4, 0.6), strict=True))
    scenes = recipe.scenes.model_copy(update={"pictures": 8, "batch": 2, "warmup": 1})
    return recipe.model_copy(update={"stages": stages, "scenes": scenes})


@pytest.fixture(scope="module", autouse=True)
def a_glance() -> Iterator[None]:
    """One denoising step makes as many pictures as all, and a batch as many losses; what they come to is not asked of a tiny student."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "STEPS", 1)
        patch.setattr(samples, "STEPS", 1)
        patch.setattr(train, "SceneEvaluation", partial(evaluation.SceneEvaluation, n=evaluation.SHEET_PICTURES))
        patch.setattr(train, "FINAL_BATCHES", 1)
        yield


@pytest.fixture
def no_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of shapes through networks; a full-size run's estimate is tested with its own numbers."""
    monkeypatch.setattr(describe, "memory", lambda *_, **__: Memory(**dict.fromkeys(Memory.__dataclass_fields__, 10**9)))
    monkeypatch.setattr(describe, "unet_macs", lambda *_, **__: 10**12)


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
