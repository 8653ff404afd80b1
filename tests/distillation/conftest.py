"""A tiny teacher with SDXL's topology, and a recipe that trains on it in seconds."""

from pathlib import Path

import pytest
from tiny import save_tiny_pipeline

from distillation.recipe import Recipe, read


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("teacher") / "pipeline", "sdxl")


@pytest.fixture(scope="session")
def vega() -> Recipe:
    recipe = read("vega")
    return recipe.model_copy(update={"scenes": recipe.scenes.model_copy(update={"pictures": 8, "batch": 2, "warmup": 1})})
