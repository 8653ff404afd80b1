import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sdbench.models.loading import load
from sdbench.models.spec import ModelSpec
from sdbench.run import runner


@pytest.fixture
def teacher(tiny_pipeline: Path, loaded_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A tiny model whose weights are read once for all tests."""

    def load_copy(spec: ModelSpec, **options: Any) -> Any:
        return copy.copy(loaded_pipeline) if spec.location == str(tiny_pipeline) else load(spec, **options)

    monkeypatch.setattr(runner, "load", load_copy)
    return ModelSpec("scenes-teacher", "scenes", "vega", "folder", str(tiny_pipeline))


@pytest.fixture
def student(teacher: ModelSpec) -> ModelSpec:
    """A model with the teacher's weights."""
    return replace(teacher, name="student")
