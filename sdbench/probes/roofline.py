"""How near each stage comes to what the machine can do (Williams, Waterman and Patterson 2009, the roofline).

The ceilings are this machine's own, measured in the same processes: the fastest matrix product and the fastest copy.
`share.matmul` is the work over time and ceiling. `share.roofline` is the least time that work and bytes moved leave, over
the time taken; bytes are those of operators that run each for itself, so a compiler that joins them can pass 1. So can a
stage in a dtype whose matrix product is slow on this machine: then the ceiling is none, which the value's note says.
"""

from collections.abc import Mapping, Sequence

from sdbench.probes.request import CEILINGS
from sdbench.probes.rounds import Round, failed, once, picked, reason
from sdbench.probes.work import Load
from sdbench.records import Value

_ABOVE = "above 1: the machine's own matrix product or copy is slower than that, no ceiling here"
_UNITS = {"matmul": ("TFLOP/s", 1e12), "copy": ("GB/s", 1e9)}


def shares(rounds: Sequence[Round], p50s: Mapping[str, Value], loads: Mapping[str, Load]) -> list[Value]:
    """The ceilings, and each stage's shares of them."""
    fastest = {name: _rates(rounds, name) for name in CEILINGS}
    found = []
    for name, rates in fastest.items():
        unit, scale = _UNITS[name]
        found.append(once(f"ceiling.{name}", unit, [rate / scale for rate in rates], reason(rounds, name), direction="higher"))
    for stage, load in loads.items():
        found += _stage(stage, load, p50s[stage], {name: max(rates, default=0.0) for name, rates in fastest.items()})
    return found


def _rates(rounds: Sequence[Round], name: str) -> list[float]:
    """Work a second of each round's fastest call."""
    whole = [measured for measured in rounds if name in measured.seconds]
    return [amount / min(measured.seconds[name]) for measured, amount in zip(whole, picked(whole, "amount", name), strict=True)]


def _stage(stage: str, load: Load, p50: Value, ceilings: Mapping[str, float]) -> list[Value]:
    least = {
        "share.matmul": load.flops / ceilings["matmul"] if ceilings["matmul"] else None,
        "share.roofline": max(load.flops / ceilings["matmul"], load.moved_bytes / ceilings["copy"]) if all(ceilings.values()) else None,
    }
    found = []
    for name, seconds in least.items():
        title = f"{name}.{stage}"
        if seconds is None or not p50.value:
            found.append(failed(title, "probe", "share", p50.reason or "no ceiling was measured", direction="higher"))
            continue
        low, high = (seconds / end if end else None for end in (p50.high, p50.low))
        share = seconds / p50.value
        note = _ABOVE if share > 1 else ""
        found.append(Value(name=title, kind="probe", direction="higher", unit="share", value=share, low=low, high=high, n=p50.n, note=note))
    return found
