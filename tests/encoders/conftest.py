from pathlib import Path

import pytest
from nets import save_inception


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_inception(tmp_path_factory.mktemp("inception") / "inception.pth")
