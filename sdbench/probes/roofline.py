"""How near each stage comes to the machine's limits: the roofline model (Williams, Waterman and Patterson 2009).

The ceilings are this machine's own, measured in the same processes: the fastest matrix product and the fastest copy.
`share.matmul` is the stage's rate of work over that of the matrix product. `share.roofline` is the least time that the work and
the bytes moved allow, over the time taken. Bytes are counted as if each operator ran by itself, so a compiler that fuses them
can exceed 1. So can a stage whose products are faster than the one that is timed, which has one size only; the value's note then says
so. Intervals are those of the time: the ceiling is taken as exact.
"""

from collections.abc import Mapping, Sequence

from sdbench.probes.request import CEILINGS
from sdbench.probes.rounds import Round, collect_info, failed_value, failure_reason, median_value, ratio_value
from sdbench.probes.work import Load
from sdbench.records import Value

_ABOVE = "above 1: at the rate of the product or copy timed as the ceiling, the work counted would take longer"
_UNITS = {"matmul": ("TFLOP/s", 1e12), "copy": ("GB/s", 1e9)}


def values(rounds: Sequence[Round], p50s: Mapping[str, Value], loads: Mapping[str, Load]) -> list[Value]:
    """The ceilings, and the shares of them that each stage reaches.

    Args:
        p50s: median latency of each stage.
        loads: FLOPs and bytes of a call of each stage; stages without them get no shares.
    """
    rates_by_name = {name: _rates(rounds, name) for name in CEILINGS}
    found = []
    for name, rates in rates_by_name.items():
        unit, scale = _UNITS[name]
        found.append(
            median_value(f"ceiling.{name}", unit, [rate / scale for rate in rates], failure_reason(rounds, name), direction="higher")
        )
    ceilings = {name: max(rates, default=0.0) for name, rates in rates_by_name.items()}
    for stage, load in loads.items():
        found += _stage_shares(stage, load, p50s[stage], ceilings)
    return found


def _rates(rounds: Sequence[Round], name: str) -> list[float]:
    """FLOPs or bytes per second of each round's fastest call."""
    complete = [measured for measured in rounds if name in measured.seconds]
    works = collect_info(complete, "amount", name)
    return [work / min(measured.seconds[name]) for measured, work in zip(complete, works, strict=True)]


def _stage_shares(stage: str, load: Load, p50: Value, ceilings: Mapping[str, float]) -> list[Value]:
    least_s = {
        "share.matmul": load.flops / ceilings["matmul"] if ceilings["matmul"] else None,
        "share.roofline": max(load.flops / ceilings["matmul"], load.moved_bytes / ceilings["copy"]) if all(ceilings.values()) else None,
    }
    found = []
    for name, seconds in least_s.items():
        title = f"{name}.{stage}"
        if seconds is None:
            found.append(failed_value(title, "probe", "share", p50.reason or "no ceiling was measured", direction="higher"))
        else:
            found.append(ratio_value(title, "share", seconds, p50, note=_ABOVE if p50.value and seconds > p50.value else ""))
    return found
