"""Under which conditions rounds ran: drift, clocks, temperature, and strangers on the card and on the CPU."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from sdbench.probes.rounds import Round, once, picked
from sdbench.records import Value

# From where on a reader is told beside the latency itself.
DRIFT, FOREIGN_CORES, HOST_BOUND = 0.05, 0.2, 0.9
_CARD = {
    "sm_clock": ("MHz", "sm_mhz"),
    "memory_clock": ("MHz", "memory_mhz"),
    "temperature": ("°C", "temperature_c"),
    "power": ("W", "power_w"),
}


def conditions(rounds: Sequence[Round]) -> list[Value]:
    """As values, those of a card only where there is one; readings of a card at the start and the end of each round's pipeline calls."""
    found = []
    if (drift := _drift(rounds)) is not None:
        found.append(once("machine.drift", "share", [drift], "", direction="neither", note="last round over the first, less 1"))
    if cores := picked(rounds, "watch", "foreign_cores"):
        found.append(once("machine.foreign_cores", "cores", cores, "", direction="neither"))
    states = _states(rounds)
    for name, (unit, key) in _CARD.items() if states else ():
        numbers = [state[key] for state in states if state[key] is not None]
        note = f"{min(numbers):.0f}..{max(numbers):.0f}" if numbers else ""
        found.append(once(f"machine.{name}", unit, numbers, "NVML does not say", direction="neither", note=note))
    if states:
        listed = [len(others) for others in picked(rounds, "watch", "foreign_processes")]
        found.append(once("machine.foreign_processes", "processes", listed, "NVML does not list processes", direction="neither"))
    return found


def remarks(rounds: Sequence[Round]) -> list[str]:
    """What a reader of the latency must know of them."""
    drift, cores = _drift(rounds) or 0.0, picked(rounds, "watch", "foreign_cores")
    others = [held for listed in picked(rounds, "watch", "foreign_processes") for held in listed.items()]
    back, step = _of_a_step(rounds)
    slowed = sorted({word for state in _states(rounds) for word in state["slowed_by"]})
    said = {
        f"drift {drift:+.0%} from the first round to the last": abs(drift) >= DRIFT,
        f"others kept {max(cores, default=0.0):.1f} cores busy": max(cores, default=0.0) >= FOREIGN_CORES,
        f"{len({pid for pid, _ in others})} other processes on the card, {max((held or 0.0 for _, held in others), default=0.0):.0f} MiB": bool(
            others
        ),
        f"clock held down: {', '.join(slowed)}": bool(slowed),
        f"bound by the host: the call of a UNet step returns after {1000 * back:.1f} of {1000 * step:.1f} ms": back > HOST_BOUND * step,
        **dict.fromkeys(picked(rounds, "watch", "card"), True),
    }
    return [words for words, matters in said.items() if matters]


def _drift(rounds: Sequence[Round]) -> float | None:
    medians = [median(measured.seconds["pipeline"]) for measured in rounds if "pipeline" in measured.seconds]
    return medians[-1] / medians[0] - 1 if len(medians) > 1 else None


def _of_a_step(rounds: Sequence[Round]) -> tuple[float, float]:
    """Seconds after which a UNet step's call returns on a card, and has been computed; zeros where it was not asked."""
    asked = picked(rounds, "returns_s")
    return (median(asked), median(seconds for each in rounds for seconds in each.seconds.get("unet_step", ()))) if asked else (0.0, 0.0)


def _states(rounds: Sequence[Round]) -> list[dict[str, Any]]:
    return [state for states in picked(rounds, "watch", "states") for state in states]
