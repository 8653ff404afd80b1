"""Installs trained weights: copies `<work>/out/` to `sdbench/scenes/weights/`, writes the manifest of digests, and copies the logs."""

import shutil
from pathlib import Path
from typing import Any

from sdbench.disk import file_digest, read_json, write_json
from sdbench.errors import UserError
from sdbench.scenes.embedded import MANIFEST, WEIGHTS
from sdbench.scenes.training.make import PARTS, Workspace

SHIPPED = ("pipeline", "unets", "evaluators")
STUDENTS = ("ssd-1b", "vega", "vega-pruned")


def ship(workspace: Workspace, environment: dict[str, Any], logs: Path) -> Path:
    """Copy the finished parts and their logs, write `manifest.json`, and return its path.

    Args:
        environment: versions and commit, for the manifest.
        logs: folder to replace by the losses of each network's training, as `<network>.jsonl`.

    Raises:
        UserError: a part or a student is not finished.
    """
    missing = [part for part in PARTS if not (workspace.out / "reports" / f"{part}.json").exists()]
    missing += [name for name in STUDENTS if not (workspace.out / "unets" / name / "config.json").exists()]
    if missing:
        raise UserError(
            f"{workspace.out} lacks {', '.join(missing)}; make them with `sdbench scenes train` and `distillation`, or all at once with "
            "`nox -s scenes`"
        )
    for name in SHIPPED:
        shutil.rmtree(WEIGHTS / name, ignore_errors=True)
        shutil.copytree(workspace.out / name, WEIGHTS / name)
    reports = {part: read_json(workspace.out / "reports" / f"{part}.json") for part in PARTS}
    files = sorted(path for name in SHIPPED for path in (WEIGHTS / name).rglob("*") if path.is_file())
    digests = {path.relative_to(WEIGHTS).as_posix(): file_digest(path) for path in files}
    write_json(MANIFEST, {"files": digests, "parts": reports, "environment": environment})
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir(parents=True)
    for log in workspace.work.rglob("log.jsonl"):
        shutil.copy(log, logs / f"{'-'.join(log.parent.relative_to(workspace.work).parts)}.jsonl")
    return MANIFEST
