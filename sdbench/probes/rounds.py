"""What rounds measured, as their files say it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import median
from typing import Any, Literal

from sdbench.probes.request import CEILINGS, STAGES
from sdbench.records import Direction, Value


@dataclass(frozen=True)
class Round:
    """What one process measured.

    Attributes:
        seconds: stage or ceiling -> its timed calls.
        info: of the stages together: what `loaded.described` says, `load_s`, `amount` of each ceiling; and of
            the pipeline's: `first_call_s`, `memory_mib`, `watch`, and on a card `process_mib`, `context_mib`, `smallest_card_gb` or
            `smallest_card_failed`.
        failures: stage -> why it has no times.
    """

    seconds: dict[str, tuple[float, ...]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, failures: dict[str, str]) -> "Round":
        """From pytest-benchmark's JSON file; a stage that failed is left out, whatever the file holds of it."""
        found = _benchmarks(path)
        whole = {item["params"]["stage"]: item for item in found if item["params"]["stage"] not in failures}
        seconds = {stage: tuple(item["stats"]["data"]) for stage, item in whole.items()}
        info: dict[str, Any] = {}
        for stage in reversed(STAGES):  # the pipeline last: what several say, it says
            info |= whole[stage]["extra_info"] if stage in whole else {}
        info["amount"] = {name: whole[name]["extra_info"]["amount"][name] for name in CEILINGS if name in whole}
        if "pipeline" not in whole:
            for of_the_pipeline in ("memory_mib", "watch"):
                info.pop(of_the_pipeline, None)
        return cls(seconds, info, failures)

    @property
    def is_whole(self) -> bool:
        """Everything was measured."""
        return self.seconds.keys() == {*STAGES, *CEILINGS}


def _benchmarks(path: Path) -> list[dict[str, Any]]:
    """What pytest-benchmark wrote; nothing where its process ended before it had."""
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text())["benchmarks"]
    except (OSError, ValueError):
        return []
    return found


def picked(rounds: Sequence[Round], *path: str) -> list[Any]:
    """What the rounds say at a path of their information; those that do not are left out."""
    found = []
    for measured in rounds:
        try:
            found.append(reduce(getitem, path, measured.info))
        except KeyError:  # lost with the stage that carries it
            continue
    return [value for value in found if value is not None]


def reason(rounds: Sequence[Round], stage: str) -> str:
    """Why the first of the rounds that lost a stage lost it."""
    return next((measured.failures[stage] for measured in rounds if stage in measured.failures), "not measured")


def lost(rounds: Sequence[Round], stage: str) -> str:
    """How many rounds lost a stage, and why; "" where none did."""
    number = sum(stage not in measured.seconds for measured in rounds)
    return f"{number} of {len(rounds)} rounds failed: {reason(rounds, stage)}" if number else ""


def failed(name: str, kind: Literal["probe", "count"], unit: str, why: str, *, direction: Direction = "lower") -> Value:
    """A value that could not be measured."""
    return Value(name=name, kind=kind, direction=direction, unit=unit, state="failed", reason=why)


def count(name: str, unit: str, number: int) -> Value:
    """An exact number."""
    return Value(name=name, kind="count", direction="lower", unit=unit, value=number, n=1)


def once(name: str, unit: str, numbers: Sequence[float], why: str, *, direction: Direction = "lower", note: str = "") -> Value:
    """The median of what each round measures once; `why` there is none."""
    if not numbers:
        return failed(name, "probe", unit, why, direction=direction)
    samples = tuple((float(number),) for number in numbers)
    return Value(
        name=name,
        kind="probe",
        direction=direction,
        unit=unit,
        value=float(median(numbers)),
        n=len(numbers),
        samples=samples,
        note=note,
    )
