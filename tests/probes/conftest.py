import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny import save_tiny_pipeline


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline that nobody changes."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("made") / "tiny-vega")
