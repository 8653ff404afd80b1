"""Rounds of one model in one setting -> the values of its record."""

from collections.abc import Mapping, Sequence
from itertools import chain

from sdbench.probes.capacity import CARDS_GB
from sdbench.probes.conditions import conditions, remarks
from sdbench.probes.meters import MIB
from sdbench.probes.request import STAGES
from sdbench.probes.roofline import shares
from sdbench.probes.rounds import Round, count, failed, lost, once, picked, reason
from sdbench.probes.work import Load
from sdbench.records import Value
from sdbench.settings import BASE, Setting
from sdbench.stats import intervals

QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}


def values(rounds: Sequence[Round], setting: Setting, loads: Mapping[str, Load], *, on_cuda: bool) -> list[Value]:
    """Every value of a model in a setting; those of what failed in all of its rounds say so with the reason.

    Names of other settings than the plainest end in `@<label>`.

    Args:
        loads: what a call of each stage asks of the machine; empty where that is not known.
    """
    latencies = {stage: _latency(stage, rounds) for stage in STAGES}
    found = [
        *chain.from_iterable(latencies.values()),
        _images_per_second(latencies["pipeline"][0], setting.batch, lost(rounds, "pipeline")),
        *_memory(rounds, on_cuda=on_cuda),
        *_cold_start(rounds, compiling=setting.compile is not None),
        *shares(rounds, {stage: quantiles[0] for stage, quantiles in latencies.items()}, loads),
        *conditions(rounds),
    ]
    if setting.label == BASE:
        return found + [_parameters(name, rounds) for name in ("unet", "pipeline")]
    return [value.model_copy(update={"name": f"{value.name}@{setting.label}"}) for value in found]


def _latency(stage: str, rounds: Sequence[Round]) -> list[Value]:
    # rounds x calls
    samples = tuple(measured.seconds[stage] for measured in rounds if stage in measured.seconds)
    names = {mark: f"latency.{stage}.{mark}" for mark in QUANTILES}
    if not samples:
        return [failed(name, "probe", "s", reason(rounds, stage)) for name in names.values()]
    estimates = {mark: intervals.time_quantile(samples, q) for mark, q in QUANTILES.items()}
    said = [lost(rounds, stage), *(remarks(rounds) if stage == "pipeline" else [])]
    return [
        Value(
            name=names[mark],
            kind="probe",
            direction="lower",
            unit="s",
            value=estimate.value,
            low=estimate.low if estimate.has_interval else None,
            high=estimate.high if estimate.has_interval else None,
            n=estimate.n,
            samples=samples if mark == "p50" else None,
            note="; ".join(
                filter(None, ["" if estimate.has_interval else "n too small for an interval", *(said if mark == "p50" else said[:1])])
            ),
        )
        for mark, estimate in estimates.items()
    ]


def _images_per_second(p50: Value, batch: int, note: str) -> Value:
    name, unit = "images_per_second", "images/s"
    if p50.value is None:
        return failed(name, "probe", unit, p50.reason, direction="higher")
    low, high = (batch / end if end else None for end in (p50.high, p50.low))
    return Value(name=name, kind="probe", direction="higher", unit=unit, value=batch / p50.value, low=low, high=high, n=p50.n, note=note)


def _memory(rounds: Sequence[Round], *, on_cuda: bool) -> list[Value]:
    why, note = reason(rounds, "pipeline"), lost(rounds, "pipeline")
    weights = [number / MIB for number in picked(rounds, "weights_bytes")]
    peaks = ("peak_allocated", "peak_reserved", "peak_rss") if on_cuda else ("peak_rss",)
    found = [once("memory.weights", "MiB", weights, why)]
    found += [once(f"memory.{name}", "MiB", picked(rounds, "memory_mib", name), why, note=note) for name in peaks]
    if on_cuda:
        found += _on_the_card(rounds, why, note)
    return found


def _on_the_card(rounds: Sequence[Round], why: str, note: str) -> list[Value]:
    """What the process holds beside its tensors, and the smallest card that it runs on."""
    process, measured = picked(rounds, "process_mib"), bool(picked(rounds, "memory_mib"))
    unlisted = "NVML does not list this process" if measured else why
    by_growth, by_whole = "by what the card's use grew since the process began", "by the whole card's use, as if nothing else were on it"
    alone = "" if process else f"{by_growth if picked(rounds, 'used_before_mib') else by_whole}: {unlisted}"
    untried = picked(rounds, "smallest_card_failed") or [f"it needs more than {CARDS_GB[-1]} GB, or than this card has"]
    return [
        once("memory.process", "MiB", process, unlisted, note=note),
        once("memory.context", "MiB", picked(rounds, "context_mib"), why, note="; ".join(filter(None, [note, alone]))),
        once("memory.smallest_card", "GB", picked(rounds, "smallest_card_gb"), untried[0] if measured else why, note=note),
    ]


def _cold_start(rounds: Sequence[Round], *, compiling: bool) -> list[Value]:
    """Loading and the first call; that of a round that compiled anew stands apart."""
    why = reason(rounds, "pipeline")
    anew, kept = ([measured for measured in rounds if measured.info.get("compiled_anew", False) is wanted] for wanted in (True, False))
    found = [
        once("cold_start.load", "s", picked(rounds, "load_s"), why),
        once("cold_start.first_call", "s", picked(kept, "first_call_s"), why if not anew else "every round compiled anew"),
    ]
    if compiling:
        without = "no round compiled anew: the compiler's cache was full" if kept else why
        found.append(once("cold_start.first_call_compiling", "s", picked(anew, "first_call_s"), without))
    return found


def _parameters(name: str, rounds: Sequence[Round]) -> Value:
    numbers, value_name = picked(rounds, "parameters", name), f"parameters.{name}"
    return count(value_name, "parameters", numbers[0]) if numbers else failed(value_name, "count", "parameters", reason(rounds, "pipeline"))
