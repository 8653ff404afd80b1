"""The workflow file that ships: what its script makes of the gate's exit codes."""

import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

WORKFLOW: dict[Any, Any] = yaml.safe_load((Path(__file__).parents[1] / ".github" / "workflows" / "gate.yml").read_text(encoding="utf-8"))
(STEP,) = (step for step in WORKFLOW["jobs"]["gate"]["steps"] if step.get("id") == "gate")


def test_it_is_for_a_runner_of_one_s_own_and_reads_only() -> None:
    assert "self-hosted" in WORKFLOW["jobs"]["gate"]["runs-on"]
    assert WORKFLOW["permissions"] == {"contents": "read"}
    assert "${{" not in STEP["run"]  # inputs come as variables: a name cannot become a command
    assert STEP["env"].keys() == {"CANDIDATE", "BASELINE"}


@pytest.mark.parametrize(
    ("exits", "report", "expected"),
    [
        (0, 0, 0),
        (1, 1, 1),
        (2, 2, 2),
        (3, 3, 3),
        (1, None, 2),  # Python itself failed
        (137, None, 2),  # killed
        (0, None, 2),
        (1, 0, 2),
    ],
)
def test_only_a_verdict_that_was_told_counts(exits: int, report: int | None, expected: int, tmp_path: Path) -> None:
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    said = "" if report is None else f"echo '{json.dumps({'exit_code': report})}'\n"
    (tools / "sdbench").write_text(f'#!/bin/sh\n[ "$2" = "a b" ] || exit 9\n{said}exit {exits}\n')
    (tools / "python").write_text('#!/bin/sh\nexec python3 "$@"\n')
    for tool in tools.iterdir():
        tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    files = {"GITHUB_OUTPUT": str(tmp_path / "output"), "GITHUB_STEP_SUMMARY": str(tmp_path / "summary")}
    environment = {**os.environ, **files, "CANDIDATE": "a b", "BASELINE": "production"}
    done = subprocess.run(["bash", "-e", "-c", STEP["run"]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stdout + done.stderr
