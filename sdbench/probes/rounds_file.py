"""The rounds of one measurement in one file of pytest-benchmark's format, for `pytest-benchmark compare rounds.json --histogram`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_benchmark.stats import Stats

from sdbench.disk import write_bytes


def write(files: Mapping[tuple[str, str], Sequence[Path]], target: Path) -> None:
    """Merge the files of finished rounds into one benchmark for each model, setting and stage, with all calls in the order of the rounds.

    Args:
        files: the files of the rounds of each (setting, model).
        target: written whole or not at all; not written where no round is finished.

    Raises:
        UserError: the target cannot be written.
    """
    rounds = {key: [json.loads(path.read_text(encoding="utf-8")) for path in paths] for key, paths in files.items() if paths}
    if not rounds:
        return
    first = next(iter(rounds.values()))[0]
    common = {name: first[name] for name in ("machine_info", "commit_info", "datetime", "version")}
    benchmarks = [benchmark for (setting, model), contents in rounds.items() for benchmark in _merge_stages(setting, model, contents)]
    write_bytes(target, json.dumps({**common, "benchmarks": benchmarks}).encode())


def _merge_stages(setting: str, model: str, rounds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    by_stage: dict[str, list[dict[str, Any]]] = {}
    for item in (item for content in rounds for item in content["benchmarks"]):
        by_stage.setdefault(item["params"]["stage"], []).append(item)
    return [_merge_rounds(setting, model, stage, items) for stage, items in by_stage.items()]


def _merge_rounds(setting: str, model: str, stage: str, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    calls = [item["stats"]["data"] for item in items]
    stats: Any = Stats()  # type: ignore[no-untyped-call]  # pytest-benchmark's
    for seconds in (seconds for of_round in calls for seconds in of_round):
        stats.update(seconds)
    name = f"{model} {setting} {stage}"
    return {
        **items[0],
        "group": f"{stage} {setting}",
        "name": name,
        "fullname": name,
        "params": {"model": model, "setting": setting, "stage": stage},
        "param": name,
        "extra_info": {"rounds": calls, "of_rounds": [item["extra_info"] for item in items]},
        "stats": {**stats.as_dict(), "data": stats.data, "iterations": 1},
    }
