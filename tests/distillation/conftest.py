"""A recipe that trains on the tiny teacher in seconds, and a cache of `datasets` for each test."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import datasets
import pytest
import tomli_w

from distillation import describe, samples, train
from distillation.estimate import Memory
from distillation.recipe import Recipe, load_recipe
from sdbench.models.architectures import Family
from sdbench.scenes.training import evaluation


@pytest.fixture(scope="session")
def vega() -> Recipe:
    recipe = load_recipe("vega")
    stages = tuple(stage.model_copy(update={"share": share}) for stage, share in zip(recipe.stages, (0.4, 0.6), strict=True))
    scenes = recipe.settings("scenes").model_copy(update={"images": 8, "batch": 2, "warmup": 1})
    return recipe.model_copy(update={"stages": stages, "scenes": scenes})


@pytest.fixture
def write_one_family(tmp_path: Path) -> Callable[[Family], Path]:
    """Write a recipe that has the settings of one family alone, Vega's, and return the file."""

    def write(family: Family) -> Path:
        (other,) = {"scenes", "sdxl"} - {family}
        path = tmp_path / f"only-{family}.toml"
        content = load_recipe("vega").model_dump(mode="json", exclude_none=True, exclude={other})
        path.write_text(tomli_w.dumps(content | {"name": path.stem}), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="module", autouse=True)
def fast_sampling() -> Iterator[None]:
    """Draw samples in one step and average final losses over one batch; a tiny student's samples and losses need no quality."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "STEPS", 1)
        patch.setattr(samples, "STEPS", 1)
        patch.setattr(train, "SceneEvaluation", partial(evaluation.SceneEvaluation, n=evaluation.SHEET_IMAGES))
        patch.setattr(train, "FINAL_BATCHES", 1)
        yield


@pytest.fixture
def fake_estimates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace estimates that take seconds; `test_estimate.py` tests the real ones."""
    monkeypatch.setattr(describe, "estimate_memory", lambda *_, **__: Memory(**dict.fromkeys(Memory.__dataclass_fields__, 10**9)))
    monkeypatch.setattr(describe, "unet_macs", lambda *_, **__: 10**12)


@pytest.fixture(autouse=True)
def digest_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder in which digests of images are cached."""
    caches = tmp_path_factory.mktemp("caches")
    monkeypatch.setenv("XDG_CACHE_HOME", str(caches))
    return caches / "sdbench" / "images"


@pytest.fixture
def datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for `datasets`, offline."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path / "cache"
