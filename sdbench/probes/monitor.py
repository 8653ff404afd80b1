"""The state of the machine during a measurement: clocks, temperature and power of the card, and other processes on it and on the CPU.

The card is found in NVML by its UUID, since NVML and CUDA may number cards differently (optimum-benchmark issue 136).
What NVML cannot tell about a card, for example in a virtual machine, is None.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from sdbench.probes.meters import MIB

_SLOWDOWN_REASONS = {  # bits of NVML's clock event reasons that mean a lower clock than the load asks for
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


class Gpu:
    """One CUDA device, as NVML sees it."""

    def __init__(self, device: str) -> None:
        import pynvml

        self._nvml: Any = pynvml
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        try:
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except pynvml.NVMLError:  # a MIG slice of a card
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")

    def state(self) -> dict[str, Any]:
        """At this moment: clocks in MHz, temperature in Celsius, limit of the power in W, and the reasons why the clock is held down."""
        nvml = self._nvml
        reasons = self._query(nvml.nvmlDeviceGetCurrentClocksEventReasons)
        limit_mw = self._query(nvml.nvmlDeviceGetEnforcedPowerLimit)
        return {
            "sm_mhz": self._query(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            "memory_mhz": self._query(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            "temperature_c": self._query(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            "power_limit_w": None if limit_mw is None else limit_mw / 1000,
            "slowed_by": [word for bit, word in _SLOWDOWN_REASONS.items() if bit & (reasons or 0)],
        }

    def counters(self) -> dict[str, float]:
        """Since the driver was loaded: `energy_j`, and seconds at a lower clock, by what held it down; without what NVML does not count.

        Differences of two readings are of the time between, in which the card computed. A reading of the power itself follows the last
        call, and on an A100 and older cards it is of that moment, when the card idles (NVML's documentation of `nvmlDeviceGetPowerUsage`).
        """
        nvml = self._nvml
        energy_mj = self._query(nvml.nvmlDeviceGetTotalEnergyConsumption)
        found = {} if energy_mj is None else {"energy_j": energy_mj / 1000}
        for word, policy in (("power cap", nvml.NVML_PERF_POLICY_POWER), ("thermal slowdown", nvml.NVML_PERF_POLICY_THERMAL)):
            if (violation := self._query(nvml.nvmlDeviceGetViolationStatus, policy)) is not None:
                found[word] = violation.violationTime / 1e9
        return found

    def processes(self) -> dict[int, float | None] | None:
        """MiB of the card that each process holds, by its id, with None where NVML does not tell; None where NVML lists no processes."""
        listed = self._query(self._nvml.nvmlDeviceGetComputeRunningProcesses)
        if listed is None:
            return None
        return {process.pid: None if process.usedGpuMemory is None else process.usedGpuMemory / MIB for process in listed}

    def used_mib(self) -> float | None:
        """MiB of the card that all processes together hold; None where NVML does not tell."""
        memory = self._query(self._nvml.nvmlDeviceGetMemoryInfo)
        return None if memory is None else memory.used / MIB

    def _query(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What NVML tells; None where it does not."""
        try:
            return function(self._handle, *arguments)
        except self._nvml.NVMLError:
            return None


class Monitor:
    """Watches, from its creation on, how much of the machine other processes use, and the state of the card."""

    def __init__(self, device: str) -> None:
        self.card, self.reason = _find_card(device)
        self._states = [self.card.state()] if self.card else []
        self._counters = self.card.counters() if self.card else {}
        self._start = (time.perf_counter(), _busy_cpu_s(), _own_cpu_s())

    def process_mib(self) -> float | None:
        """MiB of the card that this process holds, its context included; None where NVML does not list it."""
        listed = self.card.processes() if self.card else None
        return (listed or {}).get(os.getpid())

    def growth_mib(self, before_mib: float | None) -> float | None:
        """Growth of the card's used MiB since `before_mib`: this process's part, where NVML does not list it and others did not change."""
        now_mib = self.card.used_mib() if self.card else None
        return None if now_mib is None or before_mib is None else now_mib - before_mib

    def report(self) -> dict[str, Any]:
        """What was seen, JSON-serialisable.

        `threads` is the number that PyTorch computes an operation on, `foreign_cores` the mean number of cores that other processes kept
        busy. For a card there are its states, its mean power in W, the share of the time that its clock was held down, by the reason, and
        the MiB that other processes hold, by process id. The parent process does not count as another: it only waits.
        """
        now = (time.perf_counter(), _busy_cpu_s(), _own_cpu_s())
        seconds, busy_s, own_s = (end - start for end, start in zip(now, self._start, strict=True))
        # The system counts CPU time in hundredths of a second, so the difference may be slightly negative.
        seen: dict[str, Any] = {"threads": torch.get_num_threads(), "foreign_cores": round(max(0.0, busy_s - own_s) / seconds, 3)}
        if self.card is None:
            return seen | ({"card": self.reason} if self.reason else {})
        ends = self.card.counters()
        rates = {name: (ends[name] - start) / seconds for name, start in self._counters.items() if name in ends}
        # A counter that stands still was not updated within so short a time.
        seen |= {"power_w": rates.pop("energy_j", None) or None, "throttled": rates}
        listed = self.card.processes() or {}
        others = {str(pid): held for pid, held in listed.items() if pid not in (os.getpid(), os.getppid())}
        # In a container with its own process ids this process has another id here, and could not be told from the others.
        is_listed = os.getpid() in listed
        return seen | {"states": [*self._states, self.card.state()], "foreign_processes": others if is_listed else None}


def used_mib(device: str) -> float | None:
    """MiB of the card that all processes hold; None where there is no card, or NVML does not tell."""
    card, _ = _find_card(device)
    return card.used_mib() if card else None


def _find_card(device: str) -> tuple[Gpu | None, str]:
    """The card; or None, and the reason where there should be one."""
    if not device.startswith("cuda"):
        return None, ""
    try:
        return Gpu(device), ""
    except Exception as error:  # noqa: BLE001  # the latency can be measured without NVML
        return None, f"NVML: {type(error).__name__}: {error}"


def _busy_cpu_s() -> float:
    """CPU seconds of all cores together since the machine started; `user` includes `guest`."""
    times = psutil.cpu_times()
    return float(sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal")))


def _own_cpu_s() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)
