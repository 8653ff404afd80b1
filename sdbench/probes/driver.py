"""Measure models in rounds that take turns, each round in a fresh process, and keep the finished rounds.

A fresh process gives every model the same start: no allocator, cache or thread pool is warmed by another model, and a crash
or a lack of memory ends only that round. The models take turns, and each turn begins with another one (A B C, B C A, C A B). So a
machine that slows down meanwhile is slow for all of them; and one that slows down with the period of a turn does not always meet the same
model, as it would in a fixed order.
"""

import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from typing import Any

from sdbench.disk import digest as digest_of
from sdbench.disk import file_digest, write_bytes
from sdbench.machine import environment, this_machine
from sdbench.models.digest import weights_digest
from sdbench.models.spec import ModelSpec
from sdbench.notes import print_note, progress
from sdbench.probes import counts, process, rounds_file
from sdbench.probes.process import Series, is_in_vain
from sdbench.probes.request import Request
from sdbench.probes.rounds import Round
from sdbench.probes.values import values
from sdbench.records import DRAWING_PACKAGES, Machine, Value
from sdbench.records.names import BASE
from sdbench.settings import Probes, Sampling, Setting

ROUNDS_FILE = "rounds.json"
_PACKAGES = (*DRAWING_PACKAGES, "pytest-benchmark")  # a finished round is reused only under the same versions
_CODE = (  # and with the same code of what runs and of how it is timed
    *("probes/stages", "probes/setup", "probes/meters", "probes/ceilings", "probes/capacity", "probes/monitor"),
    *("generate", "schedulers", "models/out_of_memory", "models/random_weights", "models/activation_scale"),
    *("models/loading", "models/lora", "models/checks", "models/files", "models/headers"),  # in the time of a cold start
)
_MEASURING = tuple(Path(__file__).parents[1] / f"{name}.py" for name in _CODE)

Key = tuple[str, str]  # label of a setting, name of a model


@dataclass(frozen=True)
class ProbeResult:
    """What rounds measured.

    Attributes:
        values: latency, memory, parameters and MACs of each model, by its name.
        run_id: identifies the rounds, which took turns with each other; "" where nothing was measured.
    """

    values: Mapping[str, list[Value]]
    run_id: str


def measure(
    specs: Sequence[ModelSpec],
    sampling: Sampling,
    probes: Probes,
    *,
    work: Path,
    device: str,
    settings: Sequence[str] = (),
    profile: bool = False,
) -> ProbeResult:
    """Measure models in turns; only rounds that are not in `work` are run.

    Only rounds that took turns ran under the same state of the machine. So a kept round is reused only for the same set of models, and
    measured again where another model's round of that turn, which was missing or lacked stages, now has more of them.
    The rounds of these models and settings, kept or new, are then written together to `work/rounds.json`, in place of those of the
    measurement before; `pytest-benchmark compare` reads it.

    Args:
        specs: models with their own weights or random ones; names are unique.
        sampling: that of the suite; batch and dtype are those of the probes' settings.
        work: holds a JSON file of pytest-benchmark for each finished round, with logs, requests and compilers' caches beside them.
        settings: labels of the settings to measure; all by default.
        profile: also write a table of where each stage spends its time, once for each model and setting.

    Raises:
        UserError: weights are not where a spec says, there is no such setting, or see `Series.measure`.
    """
    chosen = probes.select(settings)
    work = work.resolve()
    machine = this_machine(device)
    common: dict[str, Any] = {"sampling": sampling, "warmup": probes.warmup, "device": device, "machine": machine}
    requests = [
        Request(spec=spec, setting=setting, calls=setting.calls or probes.calls, **common) for setting in chosen.values() for spec in specs
    ]
    digest = cache(weights_digest)  # settings share the weights, so that their gigabytes are read only once
    weights = [(spec.name, digest(spec, dtype=sampling.dtype)) for spec in specs]
    turns = digest_of([sorted(weights, key=str), _conditions(device, machine)])
    series = {}
    for request in requests:
        stem = _file_stem(request, digest(request.spec, dtype=request.dtype), turns)
        series[request.setting.label, request.spec.name] = Series(request, stem, work)
    id_file = work / "turns" / f"{turns}.id"
    if not id_file.exists():
        _write_new_id(id_file)
    rounds = _measure_in_turns(series, probes.rounds, id_file)
    if profile:  # after the rounds, so that it finds the compiler's cache filled
        for (label, name), own in series.items():
            if is_in_vain(rounds[label, name]):
                continue
            for reason in dict.fromkeys(own.write_profiles().values()):
                print_note(f"the profile of {name} {label} is incomplete: {reason}")
    finished = {key: [own.file(index) for index, each in enumerate(rounds[key]) if each.is_complete] for key, own in series.items()}
    rounds_file.write(finished, work / ROUNDS_FILE)
    by_name = {spec.name: _values([(series[label, spec.name].request, rounds[label, spec.name]) for label in chosen]) for spec in specs}
    return ProbeResult(by_name, id_file.read_text(encoding="utf-8"))


def _conditions(device: str, machine: Machine) -> dict[str, Any]:
    """What the times of all models depend on: under other conditions they are measured anew, and did not take turns with those before."""
    software = environment()
    return {
        "device": device,
        "machine": machine.machine_class,
        "variables": software.variables,
        "packages": {name: software.packages.get(name) for name in _PACKAGES},
        "python": sys.version_info[:2],
        "code": [file_digest(path) for path in (process.BENCHMARK_FILE, *_MEASURING)],
    }


def _write_new_id(id_file: Path) -> None:
    """Write the id that records give the rounds of these models under these conditions, which no record before has."""
    write_bytes(id_file, uuid.uuid4().hex[:12].encode())


def _measure_in_turns(series: Mapping[Key, Series], n: int, id_file: Path) -> dict[Key, list[Round]]:
    """The rounds of each model and setting, kept or new; those of a turn are all of one turn before, or all new.

    An incomplete round is kept too, but tried again. Where that measures no more stages than before, the kept one stays. Otherwise the
    other models are measured again beside it, and records get a new id, since earlier ones hold other rounds.
    """
    rounds: dict[Key, list[Round]] = {key: [] for key in series}
    turns = [[*keys] for _, keys in groupby(series, key=itemgetter(0))]  # all models in one setting
    with progress(total=n * len(series), desc="probes", unit="round") as bar:
        for index, models in product(range(n), turns):
            first = index % len(models)
            turn = models[first:] + models[:first]
            kept = {key: found for key in turn if (found := series[key].read(index)).seconds}
            new: dict[Key, Round] = {}
            waiting = [key for key in turn if key not in kept or not kept[key].is_complete]
            while waiting:
                key = waiting.pop(0)
                bar.set_postfix_str(" ".join(reversed(key)))
                measured = series[key].measure(index, rounds[key])
                if key in kept and not measured.seconds.keys() > kept[key].seconds.keys():
                    continue
                new[key] = measured
                kept.pop(key, None)
                if measured.seconds and kept:
                    _write_new_id(id_file)
                    for other in kept:
                        series[other].file(index).unlink()
                    waiting += [other for other in kept if other not in waiting]
                    kept.clear()
                if measured.seconds:
                    series[key].keep(index)
            for key in turn:
                rounds[key].append((kept | new)[key])
            bar.update(len(turn))
    return rounds


def _values(measured: Sequence[tuple[Request, list[Round]]]) -> list[Value]:
    """The values of a model in all settings, then its counts in the suite's dtype.

    The counts are those of the first setting with the model's own VAE. Counts that a run without `base` does not find are left out, since
    an earlier run may have found them.
    """
    found = []
    for request, rounds in measured:
        found += values(request, rounds, counts.loads(request, rounds))
    for request, rounds in [own for own in measured if own[0].setting.vae == "full"][:1]:
        as_base = request.model_copy(update={"setting": Setting()})
        has_base = any(own.setting.label == BASE for own, _ in measured)
        found += [value for value in counts.values(as_base, rounds) if value.state == "ok" or has_base]
    return found


def _file_stem(request: Request, weights: str | None, turns: str) -> str:
    """The start of the file names of a model's rounds.

    Its digest covers all that the times depend on, so that no round is taken for another.

    Args:
        turns: stands for the models that take turns and for their conditions, see `_conditions`.
    """
    spec = request.spec
    content = {
        "model": (spec.name, spec.family, spec.architecture, spec.lora, weights),
        "settings": request.model_dump(mode="json", include={"sampling", "setting", "calls", "warmup"}, exclude={"sampling": {"batch"}}),
        "turns": turns,
    }
    return f"{spec.name}-{request.setting.label}-{digest_of(content)[:16]}"
