"""Measure models in rounds that take turns, each round in a fresh process, and keep what is finished.

A process of its own gives every model the same start: no allocator, cache or thread pool warmed by another, and a crash
or a lack of memory that ends nothing but that round. The models take turns (A B C A B C), so that a machine that grows
slow meanwhile is slow for all of them.
"""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sdbench.disk import digest as digest_of
from sdbench.disk import write_bytes
from sdbench.errors import UserError
from sdbench.machine import environment, this_machine, variables
from sdbench.models.digest import weights_digest
from sdbench.models.spec import ModelSpec
from sdbench.probes import counts, joined, meters, plugin
from sdbench.probes.request import CEILINGS, STAGES, VARIABLE, Request
from sdbench.probes.rounds import Round, picked
from sdbench.probes.values import values
from sdbench.records import Value
from sdbench.settings import BASE, Probes, Sampling

BENCHMARKS = "bench_pipeline.py"
ROUND_LIMIT_S = 3600
JOINED = "rounds.json"
_PACKAGES = ("torch", "diffusers", "transformers", "peft", "pytest-benchmark")  # a finished round holds for these versions
_CODE = (  # and for this code, which is what runs and how it is timed
    *("probes/stages", "probes/setup", "probes/meters", "probes/ceilings", "probes/capacity", "probes/monitor"),
    *("generate", "models/out_of_memory", "models/random_weights", "models/activation_scale"),
)
_MEASURING = tuple(Path(__file__).parents[1] / f"{name}.py" for name in _CODE)
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_ADDOPTS": "",
}


Key = tuple[str, str]  # label of a setting, name of a model


@dataclass(frozen=True)
class Probed:
    """What rounds measured.

    Attributes:
        values: latency, memory, parameters and FLOPs of each model, by its name.
        turns: names the rounds that took turns; those of other models, or of another time, have another name.
    """

    values: Mapping[str, list[Value]]
    turns: str


@dataclass(frozen=True)
class Place:
    """Where rounds run and are kept.

    Attributes:
        work: one JSON file of pytest-benchmark for each finished round; logs, requests and compilers' caches beside them.
        suites: the folder that holds `bench_pipeline.py`.
    """

    work: Path
    suites: Path


def measure(
    specs: Sequence[ModelSpec],
    sampling: Sampling,
    probes: Probes,
    *,
    work: Path,
    suites: Path,
    device: str,
    settings: Sequence[str] = (),
    profile: bool = False,
) -> Probed:
    """Measure models in turns; only rounds that are not in `work` are run.

    Rounds of a model that took turns with others are not taken for these: only what was measured in turns has the machine's mood in common.

    All rounds together are then in `work/rounds.json`, which `pytest-benchmark compare` reads.

    Args:
        specs: models with weights or random ones; names are unique.
        sampling: a suite's sampling settings; batch and dtype are those of the probes' settings.
        probes: rounds (processes) of each model and setting, timed calls of each stage in a round, calls of each before those.
        work: the folder that rounds are kept in, and taken from.
        suites: the folder that holds `bench_pipeline.py`.
        device: "cpu", "cuda" or "cuda:<index>".
        settings: labels of those to measure; all by default.
        profile: also write what holds the time of each stage, once for each model and setting.

    Raises:
        UserError: weights are not where a spec says, there is no such setting, or `suites` holds no benchmark file.
    """
    chosen = probes.select(settings)
    work.mkdir(parents=True, exist_ok=True)
    place = Place(work.resolve(), suites.resolve())
    if not (suites / BENCHMARKS).is_file():
        raise UserError(f"no {BENCHMARKS} in {suites}: it measures latency and memory; copy it there from the package's own suites")
    here = {"device": device, "machine": this_machine(device), "variables": variables()}
    common: dict[str, Any] = {"sampling": sampling, "warmup": probes.warmup, **here}
    requests = {
        (label, spec.name): Request(spec=spec, setting=setting, calls=setting.calls or probes.calls, **common)
        for label, setting in chosen.items()
        for spec in specs
    }
    digest = cache(weights_digest)  # settings share the weights, whose gigabytes need to be read only once
    turns = _turns([(spec.name, digest(spec, dtype=sampling.dtype)) for spec in specs], place)
    stems = {key: _stem(request, suites, digest(request.spec, dtype=request.dtype), turns) for key, request in requests.items()}
    rounds = _in_turns(requests, stems, probes.rounds, place)
    if profile:  # after the rounds, whose compiler's cache it finds
        for key, request in requests.items():
            for why in dict.fromkeys(_profile(request, stems[key], place).values()):
                tqdm.write(f"{key[1]} {key[0]} has no whole profile: {why}", file=sys.stderr)
    kept = {
        key: [file for index in range(probes.rounds) if (file := place.work / f"{stem}-{index}.json").exists()]
        for key, stem in stems.items()
    }
    joined.write(kept, place.work / JOINED)
    found = {spec.name: _values({label: (requests[label, spec.name], rounds[label, spec.name]) for label in chosen}) for spec in specs}
    return Probed(found, turns)


def _turns(models: Sequence[tuple[str, str | None]], place: Place) -> str:
    """The name of the rounds in which these models, names and weights, take turns: theirs alone, for as long as `work` is kept."""
    path = place.work / "turns" / f"{digest_of(sorted(models, key=str))}.txt"
    if not path.exists():
        write_bytes(path, uuid.uuid4().hex[:12].encode())
    return path.read_text()


def _in_turns(requests: Mapping[Key, Request], stems: Mapping[Key, str], n: int, place: Place) -> dict[Key, list[Round]]:
    """The rounds of each model and setting; what is out of memory is not tried again."""
    rounds: dict[Key, list[Round]] = {key: [] for key in requests}
    with tqdm([*requests] * n, desc="probes", unit="round") as bar:
        for key in bar:
            bar.set_postfix_str(" ".join(reversed(key)))
            done = rounds[key]
            lost = done[0].failures.get("pipeline", "") if done else ""
            hopeless = lost.startswith(meters.OUT_OF_MEMORY)
            done.append(_nothing(lost) if hopeless else _round(requests[key], stems[key], done, place))
    return rounds


def _values(measured: Mapping[str, tuple[Request, list[Round]]]) -> list[Value]:
    """Of a model in all settings; its counts stand with the plainest."""
    found = []
    for label, (request, rounds) in measured.items():
        found += values(rounds, request.setting, counts.loads(request, rounds), on_cuda=request.device.startswith("cuda"))
        found += counts.counts(request, rounds) if label == BASE else []
    return found


def _round(request: Request, stem: str, done: Sequence[Round], place: Place) -> Round:
    """The kept round after those that are done, or a new one, kept where every stage was measured."""
    kept, partial = (place.work / f"{stem}-{len(done)}{ending}" for ending in (".json", ".partial.json"))
    if kept.exists():
        if (measured := Round.read(kept, {})).is_whole:
            return measured
        kept.unlink()  # damaged since
    if not picked(done, "first_call_s"):
        shutil.rmtree(_compiled(stem, place), ignore_errors=True)  # what is there a process left that was killed while it compiled
    failures = _run(request, partial, stem, place)
    measured = Round.read(partial, failures)
    if measured.is_whole:
        partial.replace(kept)
    return measured


def _compiled(stem: str, place: Place) -> Path:
    """The compiler's cache of a model in a setting."""
    return place.work / "compiled" / stem


def _nothing(why: str) -> Round:
    """A round that measured nothing."""
    return Round(failures=dict.fromkeys((*STAGES, *CEILINGS), why))


def _profile(request: Request, stem: str, place: Place) -> dict[str, str]:
    """Tables beside the rounds, `<stem>.profile-<stage>.txt`, by a process of their own, for a profiler slows what it sees => as `_run`."""
    target = place.work / f"{stem}.json"
    if all(target.with_suffix(f".profile-{stage}.txt").exists() for stage in STAGES):
        return {}
    return _run(request.model_copy(update={"profile": True}), target, stem, place)


def _run(request: Request, target: Path, stem: str, place: Place) -> dict[str, str]:
    """Start the measuring process => stage -> why it failed."""
    noted = Path(f"{target}{plugin.SUFFIX}")
    for stale in (target, noted):
        stale.unlink(missing_ok=True)
    asked = target.with_suffix(".request")
    asked.write_text(request.model_dump_json(indent=1))
    inherited = {**_environment(), meters.COMPILER_CACHE: str(_compiled(stem, place)), VARIABLE: str(asked)}
    try:
        done = subprocess.run(  # noqa: S603  # our own words
            _command(target, place), env=inherited, capture_output=True, text=True, timeout=ROUND_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return _nothing(f"no end after {ROUND_LIMIT_S} s").failures
    target.with_suffix(".log").write_text(f"{done.stdout}\n{done.stderr}")
    failures: dict[str, str] = json.loads(noted.read_text()) if noted.exists() else {}
    if failures or not done.returncode or Round.read(target, {}).is_whole:  # whole: it died of its own end, with everything written
        return failures
    return _nothing(_death(done)).failures


def _command(target: Path, place: Place) -> list[str]:
    # An empty configuration: that of the folder where the user stands is none of this process's.
    config = place.work / "pytest.ini"
    config.write_text("[pytest]\n")
    plugins = ("no:cacheprovider", "pytest_benchmark.plugin", plugin.__name__)
    return [
        *(sys.executable, "-m", "pytest", str(place.suites / BENCHMARKS)),
        *(word for name in plugins for word in ("-p", name)),
        *("-c", str(config), f"--rootdir={place.suites}", "--import-mode=importlib", "--tb=short", "-q"),
        f"--benchmark-json={target}",
    ]


def _environment() -> dict[str, str]:
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return {**os.environ, **_ENVIRONMENT, "PYTHONPATH": path}


def _death(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process ended that noted nothing: the signal, or the last line it wrote, an error's before others."""
    if done.returncode == -signal.SIGKILL:
        return "killed by SIGKILL: most likely the machine ran out of memory"
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E  ")]  # pytest's mark
    return f"exit code {done.returncode}: {(errors or lines or ['it wrote nothing'])[-1].removeprefix('E').strip()[:500]}"


def _stem(request: Request, suites: Path, weights: str | None, turns: str) -> str:
    """File name of a model's rounds: by all that its times depend on, so that a kept round is never taken for another."""
    spec, packages = request.spec, environment().packages
    whole = {
        "model": (spec.name, spec.family, spec.architecture, spec.lora, weights),
        "settings": request.model_dump(mode="json", exclude={"spec": True, "machine": True, "profile": True, "sampling": {"batch"}}),
        "packages": {name: packages.get(name) for name in _PACKAGES},
        "python": sys.version_info[:2],
        "machine": request.machine.machine_class,
        "turns": turns,
        "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in (suites / BENCHMARKS, *_MEASURING)],
    }
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
    return f"{spec.name}-{request.setting.label}-{digest}"
