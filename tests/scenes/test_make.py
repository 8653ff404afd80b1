"""Training the parts of the embedded family, without training."""

import json
from pathlib import Path

import pytest

from sdbench.scenes.training import make
from sdbench.training.loop import Schedule


def test_part_killed_while_its_report_is_written_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "PARTS", {"part": (Schedule(1, 0.1, 1), lambda _: {"accuracy": 0.5})})
    workspace = make.Workspace(tmp_path, "cpu")

    def write_half(path: Path, content: str | bytes, **_: str) -> None:
        with path.open("wb") as file:
            file.write((content if isinstance(content, bytes) else content.encode())[:9])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        for name in ("write_text", "write_bytes"):
            patch.setattr(Path, name, write_half)
        with pytest.raises(KeyboardInterrupt):
            make.train_part("part", workspace)
    make.train_part("part", workspace)
    assert json.loads((workspace.out / "reports" / "part.json").read_bytes())["scores"] == {"accuracy": 0.5}
