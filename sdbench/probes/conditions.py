"""The conditions under which rounds ran: drift, threads, clocks, temperature, power, and other processes on the card and on the CPU."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from sdbench.probes.rounds import Round, collect_info, median_value
from sdbench.records import Value

# Beyond these, the note of the latency says so.
DRIFT, FOREIGN_CORES, HOST_BOUND, THROTTLED = 0.05, 0.2, 0.9, 0.01
_CARD = {
    "sm_clock": ("MHz", "sm_mhz"),
    "memory_clock": ("MHz", "memory_mhz"),
    "temperature": ("°C", "temperature_c"),
    "power_limit": ("W", "power_limit_w"),
}


def conditions(rounds: Sequence[Round]) -> list[Value]:
    """The conditions as values.

    A card is read at the start and the end of each round's pipeline calls, and its power is the mean between the two, warm-up included. Its
    values are there only where there is a card.
    """
    found = []
    if (drift := _drift(rounds)) is not None:
        found.append(median_value("machine.drift", "share", [drift], "", direction="neither", note="last round over the first, less 1"))
    for name, unit in (("threads", "threads"), ("foreign_cores", "cores")):
        if numbers := collect_info(rounds, "watch", name):
            found.append(median_value(f"machine.{name}", unit, numbers, "", direction="neither"))
    if not (states := _states(rounds)):
        return found
    readings = {name: (unit, [state[key] for state in states if state[key] is not None]) for name, (unit, key) in _CARD.items()}
    for name, (unit, numbers) in (readings | {"power": ("W", collect_info(rounds, "watch", "power_w"))}).items():
        note = f"{min(numbers):.0f}..{max(numbers):.0f}" if numbers else ""
        found.append(median_value(f"machine.{name}", unit, numbers, "NVML does not report it", direction="neither", note=note))
    listed = [len(others) for others in collect_info(rounds, "watch", "foreign_processes")]
    found.append(median_value("machine.foreign_processes", "processes", listed, "NVML does not list processes", direction="neither"))
    return found


def remarks(rounds: Sequence[Round], cores: int) -> list[str]:
    """The conditions that a reader of the latency must know about, in words; `cores` are those that processes may use."""
    drift, max_cores = _drift(rounds) or 0.0, max(collect_info(rounds, "watch", "foreign_cores"), default=0.0)
    threads = max(collect_info(rounds, "watch", "threads"), default=0)
    others = [held for listed in collect_info(rounds, "watch", "foreign_processes") for held in listed.items()]
    held_mib = max((held or 0.0 for _, held in others), default=0.0)
    return_s, step_s = _step_times(rounds)
    slowed = _slowdowns(rounds)
    found = [
        (abs(drift) >= DRIFT, f"drift {drift:+.0%} from the first round to the last"),
        (max_cores >= FOREIGN_CORES, f"other processes kept up to {max_cores:.1f} cores busy"),
        (threads > cores, f"{threads} threads on {cores} cores, which wait for each other: set OMP_NUM_THREADS={cores}"),
        (bool(others), f"{len({pid for pid, _ in others})} other processes on the GPU, the largest with {held_mib:.0f} MiB"),
        (bool(slowed), f"GPU clock throttled: {', '.join(slowed)}"),
        (
            return_s > HOST_BOUND * step_s,
            f"host-bound: the call of a UNet step returns after {1000 * return_s:.1f} of {1000 * step_s:.1f} ms",
        ),
    ]
    return [*(remark for applies, remark in found if applies), *dict.fromkeys(collect_info(rounds, "watch", "card"))]


def _drift(rounds: Sequence[Round]) -> float | None:
    """The median latency of the last round over that of the first, less 1; None for a single round."""
    medians = [median(measured.seconds["pipeline"]) for measured in rounds if "pipeline" in measured.seconds]
    return medians[-1] / medians[0] - 1 if len(medians) > 1 else None


def _step_times(rounds: Sequence[Round]) -> tuple[float, float]:
    """Median seconds until the call of a UNet step returns, and until the step is computed; zeros where only the latter was measured."""
    if not (returns := collect_info(rounds, "returns_s")):
        return 0.0, 0.0
    return median(returns), median(seconds for each in rounds for seconds in each.seconds.get("unet_step", ()))


def _slowdowns(rounds: Sequence[Round]) -> list[str]:
    """What held the card's clock down, when it was read or while it was counted; then with the share of the time, in the worst round."""
    found = {word: "" for state in _states(rounds) for word in state["slowed_by"]}
    shares = [each for throttled in collect_info(rounds, "watch", "throttled") for each in throttled.items()]
    found |= {word: f" for {share:.0%} of the time" for word, share in sorted(shares) if share >= THROTTLED}
    return sorted(f"{word}{how_long}" for word, how_long in found.items())


def _states(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    """All readings of the card, see `monitor.Gpu.state`."""
    return [state for states in collect_info(rounds, "watch", "states") for state in states]
