"""The values of a record from the rounds of one model in one setting."""

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import mean

import numpy as np

from sdbench.probes import roofline
from sdbench.probes.capacity import CARDS_GB
from sdbench.probes.conditions import conditions, remarks
from sdbench.probes.meters import HOST_PEAKS, MIB
from sdbench.probes.request import Request
from sdbench.probes.rounds import Round, collect_info, failed_value, failure_note, failure_reason, median_value, ratio_value
from sdbench.probes.work import Load
from sdbench.records import Value
from sdbench.records.names import STAGES, latency_of, with_setting
from sdbench.stats import intervals

QUANTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99}


def values(request: Request, rounds: Sequence[Round], loads: Mapping[str, Load]) -> list[Value]:
    """Every value of a model in a setting. What failed in all rounds is there too, as failed and with the reason.

    In all settings but `base`, names end in `@<label>`.

    Args:
        loads: FLOPs and bytes of a call of each stage; empty where they are not known.
    """
    setting = request.setting
    latencies = {stage: _latency(stage, rounds, request.machine.cores) for stage in STAGES}
    found = [
        *chain.from_iterable(latencies.values()),
        ratio_value("images_per_second", "images/s", setting.batch, latencies["pipeline"][0], note=failure_note(rounds, "pipeline")),
        *_memory(rounds, on_cuda=request.device.startswith("cuda")),
        *([_energy(rounds, setting.batch)] if request.device.startswith("cuda") else []),
        *_cold_start(request, rounds),
        *roofline.values(rounds, {stage: quantiles[0] for stage, quantiles in latencies.items()}, loads),
        *conditions(rounds),
    ]
    return [value.model_copy(update={"name": with_setting(value.name, setting.label)}) for value in found]


def _latency(stage: str, rounds: Sequence[Round], cores: int) -> list[Value]:
    # rounds x calls
    samples = tuple(measured.seconds[stage] for measured in rounds if stage in measured.seconds)
    names = {mark: latency_of(stage, mark) for mark in QUANTILES}
    if not samples:
        return [failed_value(name, "probe", "s", failure_reason(rounds, stage)) for name in names.values()]
    median, together = intervals.time_median(samples), np.concatenate(samples)
    found = []
    for mark, name in names.items():
        is_p50 = mark == "p50"
        has_interval, n_needed = is_p50 and median.has_interval, round(1 / (1 - QUANTILES[mark]))
        too_small = "n too small for an interval" if is_p50 and not has_interval else "n too small" if len(together) < n_needed else ""
        notes = [too_small, failure_note(rounds, stage), *(remarks(rounds, cores) if is_p50 and stage == "pipeline" else [])]
        found.append(
            Value(
                name=name,
                kind="probe",
                direction="lower",
                unit="s",
                value=float(np.quantile(together, QUANTILES[mark])),
                low=median.low if has_interval else None,
                high=median.high if has_interval else None,
                n=len(together),
                samples=samples if is_p50 else None,
                note="; ".join(filter(None, notes)),
            )
        )
    return found


def _memory(rounds: Sequence[Round], *, on_cuda: bool) -> list[Value]:
    reason, note = failure_reason(rounds, "pipeline"), failure_note(rounds, "pipeline")
    weights = [number / MIB for number in collect_info(rounds, "weights_bytes")]
    # On a GPU, what the host held while loading depends on the dtype of the file, so `peak_data` would not be the model's.
    peaks = ("peak_allocated", "peak_reserved", "peak_rss") if on_cuda else HOST_PEAKS
    found = [median_value("memory.weights", "MiB", weights, reason)]
    found += [median_value(f"memory.{name}", "MiB", collect_info(rounds, "memory_mib", name), reason, note=note) for name in peaks]
    if on_cuda:
        found += _card_memory(rounds, reason, note)
    return found


def _card_memory(rounds: Sequence[Round], reason: str, note: str) -> list[Value]:
    """Memory of the card that the whole process and its CUDA context hold, and the smallest card that runs the model."""
    process, measured = collect_info(rounds, "process_mib"), bool(collect_info(rounds, "memory_mib"))
    unlisted = "NVML does not list this process" if measured else reason
    by_growth, by_whole = (
        "from how much the GPU's use grew since the process began",
        "from the GPU's total use, as if nothing else were on it",
    )
    context_note = "" if process else f"{by_growth if collect_info(rounds, 'used_before_mib') else by_whole}: {unlisted}"
    untried = collect_info(rounds, "smallest_card_failed") or [f"no size up to {CARDS_GB[-1]} GB that this GPU covers is sure to hold it"]
    return [
        median_value("memory.process", "MiB", process, unlisted, note=note),
        median_value(
            "memory.context", "MiB", collect_info(rounds, "context_mib"), reason, note="; ".join(filter(None, [note, context_note]))
        ),
        median_value("memory.smallest_card", "GB", collect_info(rounds, "smallest_card_gb"), untried[0] if measured else reason, note=note),
    ]


def _energy(rounds: Sequence[Round], batch: int) -> Value:
    """Joules for an image, of the whole card: its mean power during a round's calls, times the mean seconds of a call, over the batch."""
    measured = [each for each in rounds if "pipeline" in each.seconds and each.info.get("watch", {}).get("power_w")]
    joules = [each.info["watch"]["power_w"] * mean(each.seconds["pipeline"]) / batch for each in measured]
    untold = collect_info(rounds, "watch", "card") or ["NVML does not report it"]
    reason = untold[0] if collect_info(rounds, "watch") else failure_reason(rounds, "pipeline")
    return median_value("energy.pipeline", "J", joules, reason, note=failure_note(rounds, "pipeline"))


def _cold_start(request: Request, rounds: Sequence[Round]) -> list[Value]:
    """Times of loading and of the first call; the first call of a round that compiled anew has a value of its own.

    Random weights are not loaded, and the images that calibrate them have loaded kernels which the first call of a model on disk loads.
    """
    reason, is_random = failure_reason(rounds, "pipeline"), request.spec.source == "random"
    compiling_rounds, others = (
        [measured for measured in rounds if measured.info.get("compiled_anew") is wanted] for wanted in (True, False)
    )
    found = [] if is_random else [median_value("cold_start.load", "s", collect_info(rounds, "load_s"), reason)]
    found.append(
        median_value(
            "cold_start.first_call",
            "s",
            collect_info(others, "first_call_s"),
            "every round compiled from scratch" if compiling_rounds else reason,
            note="after the images that calibrate random weights" if is_random else "",
        )
    )
    if request.setting.compile:
        without = "no round compiled from scratch: the compiler's cache was warm" if others else reason
        found.append(median_value("cold_start.first_call_compiling", "s", collect_info(compiling_rounds, "first_call_s"), without))
    return found
