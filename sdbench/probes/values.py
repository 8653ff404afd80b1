"""Rounds of one model -> the values of its record."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import chain
from operator import getitem
from pathlib import Path
from statistics import median
from typing import Any, Literal

from sdbench import stats
from sdbench.probes.request import STAGES
from sdbench.records import Value

QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}
Direction = Literal["higher", "lower"]


@dataclass(frozen=True)
class Round:
    """What one process measured.

    Attributes:
        seconds: stage -> its timed calls.
        info: of the stages together: `parameters`, `unet_input`, `load_s`; and of the pipeline's: `first_call_s`, `memory_mib`.
        failures: stage -> why it has no times.
    """

    seconds: dict[str, tuple[float, ...]] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, failures: dict[str, str]) -> "Round":
        """From pytest-benchmark's JSON file; a stage that failed is left out, whatever the file holds of it."""
        found = json.loads(path.read_text())["benchmarks"] if path.exists() and path.stat().st_size else []
        whole = {item["params"]["stage"]: item for item in found if item["params"]["stage"] not in failures}
        seconds = {stage: tuple(item["stats"]["data"]) for stage, item in whole.items()}
        info: dict[str, Any] = {}
        for stage in reversed(STAGES):  # the pipeline last: what several say, it says
            info |= whole[stage]["extra_info"] if stage in whole else {}
        if "pipeline" not in whole:
            info.pop("memory_mib", None)
        return cls(seconds, info, failures)


def values(rounds: Sequence[Round], *, device: str) -> list[Value]:
    """Every value of one model; those of what failed in all of its rounds say so with the reason."""
    found = list(chain.from_iterable(_latency(stage, rounds) for stage in STAGES))
    memory = ("peak_allocated", "peak_reserved") if device.startswith("cuda") else ("peak_rss",)
    found.append(_images_per_second(found[0]))
    found += [_once(f"memory.{name}", "MiB", rounds, ("memory_mib", name)) for name in memory]
    found += [_once(f"cold_start.{name}", "s", rounds, (f"{name}_s",)) for name in ("load", "first_call")]
    return found + [_parameters(name, rounds) for name in ("unet", "pipeline")]


def count(name: str, unit: str, number: int) -> Value:
    """An exact number."""
    return Value(name=name, kind="count", direction="lower", unit=unit, value=number, n=1)


def failed(name: str, kind: Literal["probe", "count"], unit: str, reason: str, *, direction: Direction = "lower") -> Value:
    """A value that could not be measured."""
    return Value(name=name, kind=kind, direction=direction, unit=unit, state="failed", reason=reason)


def reason(rounds: Sequence[Round], stage: str) -> str:
    """Why the first of the rounds that lost a stage lost it."""
    return next((measured.failures[stage] for measured in rounds if stage in measured.failures), "not measured")


def _latency(stage: str, rounds: Sequence[Round]) -> list[Value]:
    # rounds x calls; quantiles over all calls together
    samples = tuple(measured.seconds[stage] for measured in rounds if stage in measured.seconds)
    names = {mark: f"latency.{stage}.{mark}" for mark in QUANTILES}
    if not samples:
        return [failed(name, "probe", "s", reason(rounds, stage)) for name in names.values()]
    estimates = {mark: stats.quantile(list(chain.from_iterable(samples)), q) for mark, q in QUANTILES.items()}
    return [
        Value(
            name=names[mark],
            kind="probe",
            direction="lower",
            unit="s",
            value=estimate.value,
            low=estimate.low if estimate.enough else None,
            high=estimate.high if estimate.enough else None,
            n=estimate.n,
            samples=samples if mark == "p50" else None,
            note=_lost(rounds, stage),
        )
        for mark, estimate in estimates.items()
    ]


def _images_per_second(p50: Value) -> Value:
    name, unit = "images_per_second", "images/s"
    if p50.value is None:
        return failed(name, "probe", unit, p50.reason, direction="higher")
    low, high = (1 / end if end else None for end in (p50.high, p50.low))
    return Value(name=name, kind="probe", direction="higher", unit=unit, value=1 / p50.value, low=low, high=high, n=p50.n, note=p50.note)


def _once(name: str, unit: str, rounds: Sequence[Round], path: tuple[str, ...]) -> Value:
    """The median of what each round measures once, at this path of its information."""
    numbers = _picked(rounds, path)
    if not numbers:
        return failed(name, "probe", unit, reason(rounds, "pipeline"))
    samples = tuple((number,) for number in numbers)
    return Value(
        name=name,
        kind="probe",
        direction="lower",
        unit=unit,
        value=median(numbers),
        n=len(numbers),
        samples=samples,
        note=_lost(rounds, "pipeline"),
    )


def _parameters(name: str, rounds: Sequence[Round]) -> Value:
    numbers = _picked(rounds, ("parameters", name))
    value_name = f"parameters.{name}"
    return count(value_name, "parameters", numbers[0]) if numbers else failed(value_name, "count", "parameters", reason(rounds, "pipeline"))


def _picked(rounds: Sequence[Round], path: tuple[str, ...]) -> list[Any]:
    found = []
    for measured in rounds:
        try:
            found.append(reduce(getitem, path, measured.info))
        except KeyError:  # lost with the stage that carries it
            continue
    return found


def _lost(rounds: Sequence[Round], stage: str) -> str:
    lost = sum(stage not in measured.seconds for measured in rounds)
    return f"{lost} of {len(rounds)} rounds failed: {reason(rounds, stage)}" if lost else ""
