"""Parts of the embedded family are trained once, by the schedule of today."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from sdbench.errors import UserError
from sdbench.scenes.training import make
from sdbench.scenes.training.make import Workspace, train_part
from sdbench.training.loop import Schedule


def test_a_finished_part_is_kept_and_one_of_another_schedule_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule, trained = Schedule(steps=3, lr=1e-3, batch=2), list[Path]()

    def train(workspace: Workspace) -> dict[str, float]:
        trained.append(workspace.work)
        return {"accuracy": 0.5}

    def with_schedule(schedule: Schedule) -> dict[str, Any]:
        return {"reader": (schedule, train)}

    monkeypatch.setattr(make, "PARTS", with_schedule(schedule))
    train_part("reader", Workspace(tmp_path, "cpu"))
    train_part("reader", Workspace(tmp_path, "cpu"))
    assert trained == [tmp_path]
    report = json.loads((tmp_path / "out" / "reports" / "reader.json").read_text(encoding="utf-8"))
    assert (report["scores"], report["schedule"]["lr"]) == ({"accuracy": 0.5}, asdict(schedule)["lr"])
    monkeypatch.setattr(make, "PARTS", with_schedule(replace(schedule, lr=2e-3)))
    with pytest.raises(UserError, match=r"'reader' in .* was trained with another schedule; name another folder with --work"):
        train_part("reader", Workspace(tmp_path, "cpu"))


def test_part_killed_while_its_report_is_written_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(make, "PARTS", {"part": (Schedule(1, 0.1, 1), lambda _: {"accuracy": 0.5})})
    workspace = Workspace(tmp_path, "cpu")

    def write_half(path: Path, content: str | bytes, **_: str) -> None:
        with path.open("wb") as file:
            file.write((content if isinstance(content, bytes) else content.encode())[:9])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        for name in ("write_text", "write_bytes"):
            patch.setattr(Path, name, write_half)
        with pytest.raises(KeyboardInterrupt):
            train_part("part", workspace)
    train_part("part", workspace)
    assert json.loads((workspace.out / "reports" / "part.json").read_bytes())["scores"] == {"accuracy": 0.5}
