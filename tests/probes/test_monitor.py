"""Cards are found by UUID and other processes by their ids; NVML is a fake."""

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


def fake_nvml(processes: dict[int, int | None] | None, kind: str = "GPU", **changes: Any) -> ModuleType:
    """NVML with two cards; CUDA's first device is the second one, or a slice of it."""
    handles = {"GPU-ffffffff-0000-0000-0000-000000000000": "the other", f"{kind}-{UUID}": "ours"}

    def unsupported(*_: Any) -> Any:
        raise NVMLError("Not Supported")

    def by_uuid(uuid: str) -> str:
        if uuid not in handles:
            raise NVMLError("Not Found")
        return handles[uuid]

    def for_our_card(value: Any) -> Any:
        def answer(handle: str, *_: Any) -> Any:
            assert handle == "ours"
            return value

        return answer

    listed = None if processes is None else [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in processes.items()]
    module = ModuleType("pynvml")
    vars(module).update(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=by_uuid,
        nvmlDeviceGetClockInfo=for_our_card(1980),
        nvmlDeviceGetTemperature=for_our_card(61),
        nvmlDeviceGetMemoryInfo=for_our_card(SimpleNamespace(used=2**30)),
        NVML_PERF_POLICY_POWER=0,
        NVML_PERF_POLICY_THERMAL=1,
        nvmlDeviceGetEnforcedPowerLimit=for_our_card(400_000),
        nvmlDeviceGetTotalEnergyConsumption=for_our_card(7_000_000),
        nvmlDeviceGetViolationStatus=for_our_card(SimpleNamespace(referenceTime=9, violationTime=2 * 10**9)),
        nvmlDeviceGetCurrentClocksEventReasons=for_our_card(0x04 | 0x01),
        nvmlDeviceGetComputeRunningProcesses=unsupported if listed is None else for_our_card(listed),
        **changes,
    )
    return module


@pytest.fixture
def install_nvml(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid=UUID))
    return lambda *args, **changes: monkeypatch.setitem(sys.modules, "pynvml", fake_nvml(*args, **changes))


def test_card_is_found_by_uuid_and_its_state_reported(install_nvml: Any) -> None:
    install_nvml({os.getpid(): 3 * 2**30, os.getppid(): 2**20, 77: 512 * 2**20, 78: None})
    card_monitor = Monitor("cuda:0")
    assert card_monitor.process_mib() == 3072
    report = card_monitor.report()
    state = {"sm_mhz": 1980, "memory_mhz": 1980, "temperature_c": 61, "power_limit_w": 400.0, "slowed_by": ["power cap"]}
    assert report["states"] == [state, state]
    assert report["foreign_processes"] == {"77": 512.0, "78": None}, "neither this process nor its waiting parent"


def test_power_and_throttling_are_of_the_time_that_was_watched(install_nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card idles at 80 W when it is read: the counters alone tell of the 350 W before."""
    install_nvml({}, nvmlDeviceGetPowerUsage=lambda _: 80_000)
    clock, counted = {"time": 100.0}, {"mj": 7_000_000, 0: 2 * 10**9, 1: 3 * 10**9}
    monkeypatch.setattr(time, "perf_counter", lambda: clock["time"])
    vars(sys.modules["pynvml"]).update(
        nvmlDeviceGetTotalEnergyConsumption=lambda _: counted["mj"],
        nvmlDeviceGetViolationStatus=lambda _, policy: SimpleNamespace(violationTime=counted[policy]),
    )
    card_monitor = Monitor("cuda")
    clock["time"] += 20
    assert card_monitor.report()["power_w"] is None, "no card draws nothing: the counter was not updated yet"
    counted.update({"mj": 14_000_000, 0: 7 * 10**9})
    report = card_monitor.report()
    assert (report["power_w"], report["throttled"]) == (350, {"power cap": 0.25, "thermal slowdown": 0})


def test_mig_slice_is_found_by_uuid(install_nvml: Any) -> None:
    install_nvml({os.getpid(): 2**30}, kind="MIG")
    assert Monitor("cuda").process_mib() == 1024


def test_values_nvml_does_not_support_are_none(install_nvml: Any) -> None:
    def unsupported(*_: Any) -> Any:
        raise NVMLError("Not Supported")

    install_nvml(None)
    counted = ("nvmlDeviceGetEnforcedPowerLimit", "nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetViolationStatus")
    vars(sys.modules["pynvml"]).update(dict.fromkeys(counted, unsupported))
    card_monitor = Monitor("cuda")
    assert card_monitor.process_mib() is None
    report = card_monitor.report()
    assert report["foreign_processes"] is None
    assert report["states"][0]["power_limit_w"] is None
    assert (report["power_w"], report["throttled"]) == (None, {})
    install_nvml({12345: 2**30})
    assert Monitor("cuda").report()["foreign_processes"] is None, (
        "in a container this process may be listed under another id, so others cannot be told apart"
    )


def test_growth_of_used_memory_includes_unlisted_processes(install_nvml: Any) -> None:
    install_nvml({12345: 2**30})
    before = used_mib("cuda")
    assert before == 1024
    vars(sys.modules["pynvml"])["nvmlDeviceGetMemoryInfo"] = lambda _: SimpleNamespace(used=5 * 2**29)
    assert Monitor("cuda").growth_mib(before) == 1536
    assert Monitor("cuda").growth_mib(None) is None
    assert used_mib("cpu") is None
    assert Monitor("cpu").growth_mib(before) is None


def test_card_unknown_to_nvml_is_reported_without_failing(install_nvml: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    install_nvml({})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="another"))
    report = Monitor("cuda").report()
    assert report["card"] == "NVML: NVMLError: Not Found"
    assert "foreign_cores" in report


def test_foreign_cores_are_busy_minus_own_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"time": 100.0, "busy": 50.0, "own": 5.0}
    monkeypatch.setattr(time, "perf_counter", lambda: clock["time"])
    monkeypatch.setattr(monitor, "_busy_cpu_s", lambda: clock["busy"])
    monkeypatch.setattr(monitor, "_own_cpu_s", lambda: clock["own"])
    card_monitor = Monitor("cpu")
    clock.update(time=110.0, busy=65.0, own=14.0)
    assert card_monitor.report() == {"threads": torch.get_num_threads(), "foreign_cores": pytest.approx((15 - 9) / 10)}


def test_own_cpu_time_is_part_of_the_busy_time_from_which_it_is_subtracted() -> None:
    busy, own = monitor._busy_cpu_s(), monitor._own_cpu_s()
    while monitor._own_cpu_s() - own < 0.2:
        sum(range(10_000))
    assert monitor._busy_cpu_s() - busy > 0.15, "the system counts in hundredths of a second"
    assert monitor._own_cpu_s() == pytest.approx(time.process_time(), abs=0.1)
