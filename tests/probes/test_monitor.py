"""The card by its UUID, other processes by their ids; NVML is a stand-in that knows what it is asked."""

import os
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from sdbench.probes import monitor
from sdbench.probes.monitor import Monitor, used_mib

UUID = "0a1b2c3d-1111-2222-3333-444455556666"


class NVMLError(Exception):
    pass


def nvml(processes: dict[int, int | None] | None, kind: str = "GPU", **changes: Any) -> ModuleType:
    """A driver with two cards, the second of which, or a slice of it, is CUDA's first."""
    handles = {"GPU-ffffffff-0000-0000-0000-000000000000": "the other", f"{kind}-{UUID}": "ours"}

    def unsupported(*_: Any) -> Any:
        raise NVMLError("Not Supported")

    def by_uuid(uuid: str) -> str:
        if uuid not in handles:
            raise NVMLError("Not Found")
        return handles[uuid]

    def ours(value: Any) -> Any:
        def answer(handle: str, *_: Any) -> Any:
            assert handle == "ours"
            return value

        return answer

    listed = None if processes is None else [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes.items()]
    made = ModuleType("pynvml")
    vars(made).update(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetClockInfo=ours(1980),
        nvmlDeviceGetTemperature=ours(61),
        nvmlDeviceGetMemoryInfo=ours(SimpleNamespace(used=2**30)),
        nvmlDeviceGetPowerUsage=ours(345_600),
        nvmlDeviceGetCurrentClocksEventReasons=ours(0x04 | 0x01),
        nvmlDeviceGetComputeRunningProcesses=unsupported if listed is None else ours(listed),
        **changes,
    )
    return made


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=UUID))
    return lambda *args, **changes: monkeypatch.setitem(sys.modules, "pynvml", nvml(*args, **changes))


def test_the_card_is_found_by_its_uuid_and_says_how_it_is(card: Any) -> None:
    card({os.getpid(): 3 * 2**30, os.getppid(): 2**20, 77: 512 * 2**20, 78: None})
    seen = Monitor("cuda:0")
    assert seen.process_mib() == 3072
    noted = seen.report()
    state = {"sm_mhz": 1980, "memory_mhz": 1980, "temperature_c": 61, "power_w": 345.6, "slowed_by": ["power cap"]}
    assert noted["states"] == [state, state]
    assert noted["foreign_processes"] == {"77": 512.0, "78": None}, "neither this process nor the waiting one that started it"


def test_a_slice_of_a_card_is_found_too(card: Any) -> None:
    card({os.getpid(): 2**30}, kind="MIG")
    assert Monitor("cuda").process_mib() == 1024


def test_what_nvml_does_not_say_is_none(card: Any) -> None:
    def unsupported(*_: Any) -> Any:
        raise NVMLError("Not Supported")

    card(None)
    sys.modules["pynvml"].nvmlDeviceGetPowerUsage = unsupported  # type: ignore[attr-defined]
    seen = Monitor("cuda")
    assert seen.process_mib() is None
    noted = seen.report()
    assert noted["foreign_processes"] is None
    assert noted["states"][0]["power_w"] is None
    card({12345: 2**30})
    assert Monitor("cuda").report()["foreign_processes"] is None, "in a container this process may have another id: it is not another one"


def test_the_use_of_the_card_grows_by_what_a_process_takes_that_is_not_listed(card: Any) -> None:
    card({12345: 2**30})
    before = used_mib("cuda")
    assert before == 1024
    sys.modules["pynvml"].nvmlDeviceGetMemoryInfo = lambda _: SimpleNamespace(used=5 * 2**29)  # type: ignore[attr-defined]
    assert Monitor("cuda").growth_mib(before) == 1536
    assert Monitor("cuda").growth_mib(None) is None
    assert used_mib("cpu") is None
    assert Monitor("cpu").growth_mib(before) is None


def test_a_card_that_nvml_does_not_know_is_said_and_times_go_on(card: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    card({})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="another"))
    noted = Monitor("cuda").report()
    assert noted["card"] == "NVML: NVMLError: Not Found"
    assert "foreign_cores" in noted


def test_cores_that_others_keep_busy_are_the_busy_less_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"time": 100.0, "busy": 50.0, "own": 5.0}
    monkeypatch.setattr(time, "perf_counter", lambda: clock["time"])
    monkeypatch.setattr(monitor, "_busy_cpu_s", lambda: clock["busy"])
    monkeypatch.setattr(monitor, "_own_cpu_s", lambda: clock["own"])
    seen = Monitor("cpu")
    clock.update(time=110.0, busy=65.0, own=14.0)
    assert seen.report() == {"foreign_cores": pytest.approx((15 - 9) / 10)}


def test_this_process_s_own_work_is_not_foreign() -> None:
    start = monitor._own_cpu_s()
    while monitor._own_cpu_s() - start < 0.05:
        sum(range(10_000))
    assert monitor._busy_cpu_s() >= monitor._own_cpu_s() > start
