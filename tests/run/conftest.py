import copy
from pathlib import Path
from typing import Any

import pytest
from stand_ins import stand_in_for_all

from sdbench.models.loading import load
from sdbench.models.spec import ModelSpec
from sdbench.run import runner


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_all(monkeypatch)


@pytest.fixture
def teacher(made: Path, made_pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    """A tiny model, which is read once for all tests."""

    def read(spec: ModelSpec, **how: Any) -> Any:
        return copy.copy(made_pipeline) if spec.location == str(made) else load(spec, **how)

    monkeypatch.setattr(runner, "load", read)
    return ModelSpec("scenes-teacher", "scenes", "vega", "folder", str(made))
