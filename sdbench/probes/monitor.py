"""What the machine does meanwhile: clocks and temperature of the card, and who else uses it or the CPU.

The card is found in NVML by its UUID, for NVML and CUDA may number cards differently (optimum-benchmark issue 136).
What NVML cannot say of a card, in a virtual machine say, is None.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import psutil
import torch

from sdbench.probes.meters import MIB

_SLOWED = {  # bits of NVML's clock event reasons that mean less speed than the load asks for
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
}


class Card:
    """One CUDA device, as NVML sees it."""

    def __init__(self, device: str) -> None:
        import pynvml

        self._nvml: Any = pynvml
        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        try:
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        except pynvml.NVMLError:  # a slice of a card
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid}")

    def state(self) -> dict[str, Any]:
        """Clocks in MHz, temperature in Celsius, power in W, and why the clock is held down."""
        nvml = self._nvml
        reasons = self._asked(nvml.nvmlDeviceGetCurrentClocksEventReasons)
        power_mw = self._asked(nvml.nvmlDeviceGetPowerUsage)
        return {
            "sm_mhz": self._asked(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
            "memory_mhz": self._asked(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
            "temperature_c": self._asked(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            "power_w": None if power_mw is None else power_mw / 1000,
            "slowed_by": [word for bit, word in _SLOWED.items() if bit & (reasons or 0)],
        }

    def processes(self) -> dict[int, float | None] | None:
        """Process id -> MiB it holds of the card (None where NVML does not say); None where it lists no processes."""
        listed = self._asked(self._nvml.nvmlDeviceGetComputeRunningProcesses)
        if listed is None:
            return None
        return {process.pid: None if process.usedGpuMemory is None else process.usedGpuMemory / MIB for process in listed}

    def used_mib(self) -> float | None:
        """What all processes together hold of the card."""
        memory = self._asked(self._nvml.nvmlDeviceGetMemoryInfo)
        return None if memory is None else memory.used / MIB

    def _asked(self, question: Callable[..., Any], *words: Any) -> Any:
        try:
            return question(self._handle, *words)
        except self._nvml.NVMLError:
            return None


class Watch:
    """From its making on: the share of the machine that others took, and what the card says."""

    def __init__(self, device: str) -> None:
        self.card, self.reason = _card(device)
        self._start = (time.perf_counter(), _busy_s(), _own_s())
        self._states = [self.card.state()] if self.card else []

    def process_mib(self) -> float | None:
        """What this process holds of the card, its context included."""
        listed = self.card.processes() if self.card else None
        return (listed or {}).get(os.getpid())

    def grown_mib(self, before_mib: float | None) -> float | None:
        """By how much the use of the card has grown since it was `used_mib`: this process's part, where it is not listed and others stayed as they were."""
        now_mib = self.card.used_mib() if self.card else None
        return None if now_mib is None or before_mib is None else now_mib - before_mib

    def noted(self) -> dict[str, Any]:
        """JSON-serialisable: `foreign_cores`, the mean number of cores that others kept busy; of a card, its states and others' MiB by process.

        The process that started this one is no stranger: it waits.
        """
        seconds, busy, own = (now - then for now, then in zip((time.perf_counter(), _busy_s(), _own_s()), self._start, strict=True))
        found: dict[str, Any] = {
            "foreign_cores": round(max(0.0, busy - own) / seconds, 3)
        }  # what counts them counts hundredths of a second
        if self.card is None:
            return found | ({"card": self.reason} if self.reason else {})
        listed = self.card.processes() or {}
        others = {str(pid): held for pid, held in listed.items() if pid not in (os.getpid(), os.getppid())}
        # In a container of its own process ids this process goes by another: it is not one of the others.
        known = os.getpid() in listed
        return found | {"states": [*self._states, self.card.state()], "foreign_processes": others if known else None}


def used_mib(device: str) -> float | None:
    """What all processes hold of the card; None where there is no card, or NVML does not say."""
    card, _ = _card(device)
    return card.used_mib() if card else None


def _card(device: str) -> tuple[Card | None, str]:
    """The card, or why NVML knows none."""
    if not device.startswith("cuda"):
        return None, ""
    try:
        return Card(device), ""
    except Exception as error:  # noqa: BLE001  # a machine without NVML still has its times
        return None, f"NVML: {type(error).__name__}: {error}"


def _busy_s() -> float:
    """Seconds that all cores together have been busy since the machine started; `guest` is in `user` already."""
    times = psutil.cpu_times()
    return float(sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal")))


def _own_s() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)
