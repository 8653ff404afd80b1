"""Values of rounds on a card, which need none to be made."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdbench.probes import room
from sdbench.probes.request import CEILINGS, STAGES
from sdbench.probes.rounds import Round
from sdbench.probes.values import values
from sdbench.records import Value
from sdbench.settings import Setting

STATE = {"sm_mhz": 1980, "memory_mhz": 2619, "temperature_c": 61, "power_w": None, "slowed_by": ["power cap"]}


def on_a_card(**info: Any) -> dict[str, Value]:
    """Of two rounds in which everything was measured but for what `info` says."""
    seen = {
        "parameters": {"unet": 7, "pipeline": 11},
        "weights_bytes": 2**20,
        "load_s": 2.0,
        "first_call_s": 1.0,
        "amount": dict.fromkeys(CEILINGS, 1e12),
        "memory_mib": {"peak_rss": 300.0, "peak_allocated": 400.0, "peak_reserved": 500.0},
        "watch": {"foreign_cores": 0.0, "states": [STATE, STATE], "foreign_processes": {}},
        "process_mib": 900.0,
        "context_mib": 400.0,
        "smallest_card_gb": 12,
    }
    whole = Round(dict.fromkeys((*STAGES, *CEILINGS), (0.5, 0.5)), seen | info, {})
    return {value.name: value for value in values([whole, whole], Setting(), {}, on_cuda=True)}


def test_memory_of_a_card() -> None:
    found = on_a_card()
    expected = {
        "weights": 1,
        "peak_rss": 300,
        "peak_allocated": 400,
        "peak_reserved": 500,
        "process": 900,
        "context": 400,
        "smallest_card": 12,
    }
    assert {name: found[f"memory.{name}"].value for name in expected} == expected
    assert {value.name for value in found.values() if value.state != "ok"} == {"machine.power"}
    assert found["memory.context"].note == ""
    assert found["latency.pipeline.p50"].note == "clock held down: power cap"


def test_what_a_card_cannot_say_is_told() -> None:
    found = on_a_card(process_mib=None, smallest_card_gb=None)
    assert found["memory.process"].reason == "NVML does not list this process"
    assert found["memory.context"].value == 400
    assert "as if nothing else were on it" in found["memory.context"].note
    assert found["memory.smallest_card"].reason == f"it needs more than {room.CARDS_GB[-1]} GB, or than this card has"


def test_caps_that_fail_lose_only_the_smallest_card(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[2] / "suites" / "bench_pipeline.py"
    spec = importlib.util.spec_from_file_location("bench_pipeline", path)
    assert spec
    assert spec.loader
    benchmarks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmarks)

    def broken(*_: Any) -> int:
        raise ValueError("no such cap")

    monkeypatch.setattr(room, "smallest_card", broken)
    noted = {"process_mib": 900.0, "context_mib": 400.0}
    benchmarks.test_smallest_card(SimpleNamespace(request=SimpleNamespace(device="cuda"), stages=None, of_pipeline=noted))
    found = on_a_card(smallest_card_gb=None, **noted)
    assert (found["memory.process"].value, found["memory.context"].value) == (900, 400)
    assert found["memory.smallest_card"].reason == "ValueError: no such cap"
