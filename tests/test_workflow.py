"""The shipped workflow: how its scripts install sdbench and treat the gate's exit codes, and what is kept after a job."""

import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from factories import make_measurement, save_record

from sdbench import cli

FOLDER = Path(__file__).parents[1] / ".github" / "workflows"
WORKFLOW: dict[Any, Any] = yaml.safe_load((FOLDER / "gate.yml").read_text(encoding="utf-8"))
STEPS: dict[str, Any] = {step.get("name", step.get("uses")): step for step in WORKFLOW["jobs"]["gate"]["steps"]}
GATE = STEPS["Gate"]


def run(step: dict[str, Any], folder: Path, **variables: str) -> tuple[int, str]:
    """Run a step's script as a runner does; returns its exit code and output."""
    files = {"GITHUB_OUTPUT": str(folder / "output"), "GITHUB_STEP_SUMMARY": str(folder / "summary")}
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        cwd=folder,
        env={**os.environ, **files, **variables},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def write_tool(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_workflow_needs_a_self_hosted_runner_and_only_reads() -> None:
    assert "self-hosted" in WORKFLOW["jobs"]["gate"]["runs-on"]
    assert WORKFLOW["permissions"] == {"contents": "read"}
    # inputs are passed as variables, so a name cannot become a command
    assert not any("${{" in step.get("run", "") for step in STEPS.values())
    assert GATE["env"].keys() == {"CANDIDATE", "BASELINE", "OPTIONS"}


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yml")), ids=lambda file: file.name)
def test_actions_are_pinned_to_commits(file: Path) -> None:
    uses = re.findall(r"uses: (\S+)", file.read_text(encoding="utf-8"))
    assert uses
    assert all(re.fullmatch(r"actions/[a-z-]+@[0-9a-f]{40}", action) for action in uses)


def test_workspace_is_kept_and_the_record_is_uploaded() -> None:
    (checkout,) = (step for name, step in STEPS.items() if name.startswith("actions/checkout@"))
    assert checkout["with"] == {"clean": False, "persist-credentials": False}
    upload = STEPS["Keep the report and the record"]
    assert upload["if"] == "${{ always() }}"
    assert upload["with"]["path"].split("\n")[:3] == ["gate.json", "gate.xml", "${{ steps.gate.outputs.record }}"]


def test_sdbench_is_installed_only_from_the_given_source(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()  # the repository of the models may be a package too
    write_tool(tmp_path / "bin" / "python", "exit 0")
    write_tool(tmp_path / ".venv" / "bin" / "pip", 'echo "$@" >> pip-arguments')
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    code, output = run(STEPS["Install"], tmp_path, PATH=path, SDBENCH=WORKFLOW["env"]["SDBENCH"])
    assert code == 2
    assert "::error::fill in SDBENCH" in output
    assert not (tmp_path / "pip-arguments").exists()
    filled = WORKFLOW["env"]["SDBENCH"].replace("OWNER", "someone").replace("COMMIT", "0123abc")
    assert run(STEPS["Install"], tmp_path, PATH=path, SDBENCH=filled) == (0, "")
    source = "sdbench @ git+https://github.com/someone/sdbench@0123abc"
    assert (tmp_path / "pip-arguments").read_text(encoding="utf-8").splitlines() == [
        f"install --quiet {source}",
        f"install --quiet --force-reinstall --no-deps {source}",
    ]


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
def test_exit_code_counts_only_with_a_matching_report(exits: int, report: int | None, expected: int, tmp_path: Path) -> None:
    (tmp_path / "gate.json").write_text(json.dumps({"exit_code": exits}), encoding="utf-8")  # left by the previous job
    print_report = "" if report is None else f"echo '{json.dumps({'exit_code': report, 'inputs': None})}'"
    write_tool(
        tmp_path / ".venv" / "bin" / "sdbench", f'[ "$2 $5 $6 $7" = "a b --suite *.md --json" ] || exit 9\n{print_report}\nexit {exits}'
    )
    write_tool(tmp_path / ".venv" / "bin" / "python", 'exec python3 "$@"')
    (tmp_path / "a.md").touch()
    assert run(GATE, tmp_path, CANDIDATE="a b", BASELINE="production", OPTIONS="--suite *.md")[0] == expected
    assert (tmp_path / "output").read_text(encoding="utf-8") == f"code={exits}\n"


@pytest.mark.parametrize(("place", "is_named"), [("results/with a space", True), ("elsewhere", False)])
def test_record_is_named_as_in_the_report_of_the_gate(
    place: str, is_named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    record = save_record(make_measurement(), Path(place))
    assert cli.main(["gate", str(record), "--baseline", str(record), "--json"]) == 0
    (tmp_path / "report").write_text(capsys.readouterr().out, encoding="utf-8")
    write_tool(tmp_path / ".venv" / "bin" / "sdbench", "cat report")
    write_tool(tmp_path / ".venv" / "bin" / "python", 'exec python3 "$@"')
    assert run(GATE, tmp_path, CANDIDATE=str(record), BASELINE="production", OPTIONS="")[0] == 0
    assert (tmp_path / "output").read_text(encoding="utf-8") == (f"record={record}\n" if is_named else "") + "code=0\n"
