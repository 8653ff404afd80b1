"""The measurements of rounds, read from their files."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from statistics import median
from typing import Any, Literal

from sdbench.probes.request import CEILINGS
from sdbench.records import Direction, Value
from sdbench.records.names import STAGES


@dataclass(frozen=True)
class Round:
    """What one process measured.

    Attributes:
        seconds: the timed calls of each stage or ceiling.
        info: from all stages, what `setup.describe` gives, `load_s`, `used_before_mib`, and `amount`, the work per call of each ceiling;
            from the pipeline, `first_call_s`, `compiled_anew`, `memory_mib`, `watch`, and on a card `process_mib`, `context_mib`,
            `smallest_card_gb` or `smallest_card_failed`; from the UNet's step, on a card, `returns_s`.
        failures: why a stage has no times, by stage.
    """

    seconds: dict[str, tuple[float, ...]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, failures: dict[str, str]) -> "Round":
        """Read pytest-benchmark's JSON file; a stage that failed is left out, whatever the file holds about it."""
        items = _read_benchmarks(path)
        complete = {item["params"]["stage"]: item for item in items if item["params"]["stage"] not in failures}
        seconds = {stage: tuple(item["stats"]["data"]) for stage, item in complete.items()}
        info: dict[str, Any] = {}
        for stage in reversed(STAGES):  # the pipeline last, so that it wins where several stages have an entry
            info |= complete[stage]["extra_info"] if stage in complete else {}
        info["amount"] = {name: complete[name]["extra_info"]["amount"][name] for name in CEILINGS if name in complete}
        if "pipeline" not in complete:
            for of_pipeline in ("memory_mib", "watch"):
                info.pop(of_pipeline, None)
        return cls(seconds, info, failures)

    @property
    def is_complete(self) -> bool:
        """Whether all stages and ceilings were measured."""
        return self.seconds.keys() == {*STAGES, *CEILINGS}


def _read_benchmarks(path: Path) -> list[dict[str, Any]]:
    """The benchmarks that pytest-benchmark wrote; none where its process ended before that."""
    try:
        benchmarks: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    except (OSError, ValueError):
        return []
    return benchmarks


def collect_info(rounds: Sequence[Round], *path: str) -> list[Any]:
    """The entries of the rounds' `info` at a path of keys; rounds without one are left out."""
    found = []
    for measured in rounds:
        try:
            found.append(reduce(getitem, path, measured.info))
        except KeyError:  # the stage that has it failed
            continue
    return [value for value in found if value is not None]


def failure_reason(rounds: Sequence[Round], stage: str) -> str:
    """Why a stage failed, in the first of the rounds where it did."""
    return next((measured.failures[stage] for measured in rounds if stage in measured.failures), "not measured")


def failure_note(rounds: Sequence[Round], stage: str) -> str:
    """A note on how many rounds lack a stage, and why; "" where none does."""
    number = sum(stage not in measured.seconds for measured in rounds)
    return f"{number} of {len(rounds)} rounds failed: {failure_reason(rounds, stage)}" if number else ""


def failed_value(name: str, kind: Literal["probe", "count"], unit: str, reason: str, *, direction: Direction = "lower") -> Value:
    """A value that could not be measured."""
    return Value(name=name, kind=kind, direction=direction, unit=unit, state="failed", reason=reason)


def exact_value(name: str, unit: str, number: int) -> Value:
    """A number that is counted, so exact."""
    return Value(name=name, kind="count", direction="lower", unit=unit, value=number, n=1)


def median_value(name: str, unit: str, numbers: Sequence[float], reason: str, *, direction: Direction = "lower", note: str = "") -> Value:
    """The median of numbers that each round measures once; where there are none, a failed value with the reason."""
    if not numbers:
        return failed_value(name, "probe", unit, reason, direction=direction)
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


def ratio_value(name: str, unit: str, amount: float, time: Value, *, note: str = "") -> Value:
    """An amount, taken as exact, over a measured time, with the interval of the time; a failed value where there is no time."""
    if not time.value:
        return failed_value(name, "probe", unit, time.reason, direction="higher")
    low, high = (amount / end if end else None for end in (time.high, time.low))
    return Value(name=name, kind="probe", direction="higher", unit=unit, value=amount / time.value, low=low, high=high, n=time.n, note=note)
