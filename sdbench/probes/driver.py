"""Measure models in rounds that take turns, each round in a fresh process, and keep the finished rounds.

A fresh process gives every model the same start: no allocator, cache or thread pool is warmed by another model, and a crash
or a lack of memory ends only that round. The models take turns, and each turn begins with another one (A B C, B C A, C A B). So a
machine that slows down meanwhile is slow for all of them; and one that slows down with the period of a turn does not always meet the same
model, as it would in a fixed order.
"""

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
from itertools import groupby, product
from operator import itemgetter
from pathlib import Path
from typing import Any

from sdbench.disk import digest as digest_of
from sdbench.disk import file_digest, locked, write_bytes
from sdbench.machine import environment, this_machine
from sdbench.models.digest import weights_digest
from sdbench.models.spec import ModelSpec
from sdbench.notes import print_note, progress
from sdbench.probes import counts, meters, plugin, rounds_file
from sdbench.probes.request import CEILINGS, REQUEST_VARIABLE, Request
from sdbench.probes.rounds import Round, collect_info
from sdbench.probes.values import values
from sdbench.records import DRAWING_PACKAGES, Machine, Value
from sdbench.records.names import BASE, STAGES
from sdbench.settings import Probes, Sampling, Setting
from sdbench.suites import SHIPPED

BENCHMARK_FILE = SHIPPED / "bench_pipeline.py"  # not one of ./suites: of another version, it gives other numbers under the same names
ROUND_TIMEOUT_S = 3600
_TIMED_OUT = "timed out"
ROUNDS_FILE = "rounds.json"
_PACKAGES = (*DRAWING_PACKAGES, "pytest-benchmark")  # a finished round is reused only under the same versions
_CODE = (  # and with the same code of what runs and of how it is timed
    *("probes/stages", "probes/setup", "probes/meters", "probes/ceilings", "probes/capacity", "probes/monitor"),
    *("generate", "schedulers", "models/out_of_memory", "models/random_weights", "models/activation_scale"),
    *("models/loading", "models/lora", "models/checks", "models/files"),  # in the time of a cold start
)
_MEASURING = tuple(Path(__file__).parents[1] / f"{name}.py" for name in _CODE)
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_ADDOPTS": "",
    "PYTEST_PLUGINS": "",
    "PYTHONDONTWRITEBYTECODE": "",  # else each process compiles the libraries, which takes 8 s and counts as its memory
    "PYTEST_XDIST_WORKER": "",  # set in tests that run in parallel; pytest-benchmark would measure nothing
}


Key = tuple[str, str]  # label of a setting, name of a model


@dataclass(frozen=True)
class ProbeResult:
    """What rounds measured.

    Attributes:
        values: latency, memory, parameters and MACs of each model, by its name.
        run_id: identifies the rounds that took turns with each other; "" where not all did, or nothing was measured.
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

    A second command that measures in `work` waits until the first has ended: at once, both would time each other too.
    Only rounds that took turns ran under the same state of the machine. So a kept round is reused only for the same set of models, and
    measured again where that of another model, which failed before, is now measured beside it in all stages.
    The rounds of these models and settings, kept or new, are then written together to `work/rounds.json`, in place of those of the
    measurement before; `pytest-benchmark compare` reads it.

    Args:
        specs: models with their own weights or random ones; names are unique.
        sampling: that of the suite; batch and dtype are those of the probes' settings.
        work: holds a JSON file of pytest-benchmark for each finished round, with logs, requests and compilers' caches beside them.
        settings: labels of the settings to measure; all by default.
        profile: also write a table of where each stage spends its time, once for each model and setting.

    Raises:
        UserError: weights are not where a spec says, there is no such setting, or a write fails.
    """
    chosen = probes.select(settings)
    work = work.resolve()
    machine = this_machine(device)
    common: dict[str, Any] = {"sampling": sampling, "warmup": probes.warmup, "device": device, "machine": machine}
    requests = {
        (label, spec.name): Request(spec=spec, setting=setting, calls=setting.calls or probes.calls, **common)
        for label, setting in chosen.items()
        for spec in specs
    }
    digest = cache(weights_digest)  # settings share the weights, so that their gigabytes are read only once
    weights = [(spec.name, digest(spec, dtype=sampling.dtype)) for spec in specs]
    with locked(work / ".lock"):
        turns = digest_of([sorted(weights, key=str), _conditions(device, machine)])
        stems = {key: _file_stem(request, digest(request.spec, dtype=request.dtype), turns) for key, request in requests.items()}
        id_file = work / "turns" / f"{turns}.id"
        if not id_file.exists():
            _write_new_id(id_file)
        rounds, took_turns = _measure_in_turns(requests, stems, probes.rounds, work, id_file)
        run_id = id_file.read_text(encoding="utf-8") if took_turns else ""
        if profile:  # after the rounds, so that it finds the compiler's cache filled
            for (label, name), request in requests.items():
                if _is_in_vain(rounds[label, name]):
                    continue
                for reason in dict.fromkeys(_write_profiles(request, stems[label, name], work).values()):
                    print_note(f"the profile of {name} {label} is incomplete: {reason}")
        kept = {
            key: [file for index in range(probes.rounds) if (file := work / f"{stem}-{index}.json").exists()] for key, stem in stems.items()
        }
        rounds_file.write(kept, work / ROUNDS_FILE)
    by_name = {spec.name: _values({label: (requests[label, spec.name], rounds[label, spec.name]) for label in chosen}) for spec in specs}
    return ProbeResult(by_name, run_id)


def _conditions(device: str, machine: Machine) -> dict[str, Any]:
    """What the times of all models depend on: under other conditions they are measured anew, and did not take turns with those before."""
    software = environment()
    return {
        "device": device,
        "machine": machine.machine_class,
        "variables": software.variables,
        "packages": {name: software.packages.get(name) for name in _PACKAGES},
        "python": sys.version_info[:2],
        "code": [file_digest(path) for path in (BENCHMARK_FILE, *_MEASURING)],
    }


def _write_new_id(id_file: Path) -> None:
    """Write the id that records give the rounds of these models under these conditions, which no record before has."""
    write_bytes(id_file, uuid.uuid4().hex[:12].encode())


def _measure_in_turns(
    requests: Mapping[Key, Request], stems: Mapping[Key, str], n: int, work: Path, id_file: Path
) -> tuple[dict[Key, list[Round]], bool]:
    """The rounds of each model and setting, kept or new, and whether all took turns.

    A kept round beside a new one did not. It is measured again, and records get a new id, since earlier ones hold other rounds. Where the
    new one is incomplete, and so not kept, that would be repeated by each run: the kept one stays.
    """
    took_turns = True
    rounds: dict[Key, list[Round]] = {key: [] for key in requests}
    turns = [[*keys] for _, keys in groupby(requests, key=itemgetter(0))]  # all models in one setting
    with progress(total=n * len(requests), desc="probes", unit="round") as bar:
        for index, models in product(range(n), turns):
            first = index % len(models)
            turn = models[first:] + models[:first]
            files = {key: work / f"{stems[key]}-{index}.json" for key in turn}
            kept = {key: found for key, file in files.items() if (found := Round.read(file, {})).is_complete}
            missing = [key for key in turn if key not in kept]
            for key in missing:
                bar.set_postfix_str(" ".join(reversed(key)))
                files[key].unlink(missing_ok=True)  # damaged since
                measured, partial = _try_round(requests[key], stems[key], rounds[key], files[key], work)
                if measured.is_complete:
                    if kept:
                        _write_new_id(id_file)
                    for other in kept:
                        files[other].unlink()
                    missing += kept
                    kept.clear()
                    partial.replace(files[key])
                took_turns &= not (kept and measured.seconds)
                rounds[key].append(measured)
                bar.update()
            for key, measured in kept.items():
                rounds[key].append(measured)
                bar.update()
    return rounds, took_turns


def _values(measured: Mapping[str, tuple[Request, list[Round]]]) -> list[Value]:
    """The values of a model in all settings, then its counts in the suite's dtype.

    The counts are those of the first setting with the model's own VAE. Counts that a run without `base` does not find are left out, since
    an earlier run may have found them.
    """
    found = []
    for request, rounds in measured.values():
        found += values(request, rounds, counts.loads(request, rounds))
    for request, rounds in [own for own in measured.values() if own[0].setting.vae == "full"][:1]:
        as_base = request.model_copy(update={"setting": Setting()})
        found += [value for value in counts.values(as_base, rounds) if value.state == "ok" or BASE in measured]
    return found


def _try_round(request: Request, stem: str, done: Sequence[Round], target: Path, work: Path) -> tuple[Round, Path]:
    """Measure the round that follows those done, unless the first of them says that it is in vain; also the file that holds it."""
    partial = target.with_suffix(".partial.json")
    if _is_in_vain(done):
        return Round(failures=_fail_all(done[0].failures["pipeline"])), partial
    if not collect_info(done, "first_call_s"):
        shutil.rmtree(_compiler_cache(stem, work), ignore_errors=True)  # may be incomplete, of a process killed while compiling
    return Round.read(partial, _run_process(request, partial, stem, work)), partial


def _is_in_vain(done: Sequence[Round]) -> bool:
    """Whether the first round failed in a way that another would not avoid."""
    reason = done[0].failures.get("pipeline", "") if done else ""
    return reason.startswith((meters.OUT_OF_MEMORY, meters.NOT_COMPILED, _TIMED_OUT))


def _compiler_cache(stem: str, work: Path) -> Path:
    """The folder of the compiler's cache of a model in a setting."""
    return work / "compiled" / stem


def _fail_all(reason: str) -> dict[str, str]:
    """The failures, by stage, of a round that measured nothing."""
    return dict.fromkeys((*STAGES, *CEILINGS), reason)


def _write_profiles(request: Request, stem: str, work: Path) -> dict[str, str]:
    """Write a profile of each stage beside the rounds, `<stem>.profile-<stage>.txt`, and return why stages failed, by stage.

    This takes a process of its own, since a profiler slows down what it observes.
    """
    target = work / f"{stem}.json"
    if all(target.with_suffix(f".profile-{stage}.txt").exists() for stage in STAGES):
        return {}
    return _run_process(request.model_copy(update={"profile": True}), target, stem, work)


def _run_process(request: Request, target: Path, stem: str, work: Path) -> dict[str, str]:
    """Run the measuring process, which writes `target`, and return why stages failed, by stage."""
    failures_file = Path(f"{target}{plugin.FAILURES_SUFFIX}")
    for stale in (target, failures_file):
        stale.unlink(missing_ok=True)
    request_file = target.with_suffix(".request")
    write_bytes(request_file, request.model_dump_json(indent=1).encode())
    inherited = {
        **_environment(),
        meters.COMPILER_CACHE: str(_compiler_cache(stem, work)),
        "TRITON_CACHE_DIR": str(_compiler_cache(stem, work) / "triton"),  # as by default; a user's own would hold kernels of other rounds
        REQUEST_VARIABLE: str(request_file),
        plugin.DRIVER_VARIABLE: str(os.getpid()),
    }
    try:
        done = subprocess.run(  # noqa: S603  # our own arguments
            _command(target, work),
            env=inherited,
            capture_output=True,
            encoding="utf-8",
            errors="replace",  # the process may write in another encoding
            timeout=ROUND_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _fail_all(f"{_TIMED_OUT} after {ROUND_TIMEOUT_S} s")
    write_bytes(target.with_suffix(".log"), f"{done.stdout}\n{done.stderr}".encode())
    failures: dict[str, str] = json.loads(failures_file.read_text(encoding="utf-8")) if failures_file.exists() else {}
    if failures or not done.returncode or Round.read(target, {}).is_complete:  # complete: it crashed at its end, with everything written
        return failures
    return _fail_all(_exit_reason(done))


def _command(target: Path, work: Path) -> list[str]:
    # An empty configuration, so that pytest does not read that of the current folder, and no conftest.py: it would run those of the current
    # folder's tests, and what they set, such as the number of threads, would decide the times. The file is found as a module, in a path
    # without the current folder (-P), since pytest refuses file names with brackets.
    config = write_bytes(work / "pytest.ini", b"[pytest]\n")
    plugins = ("no:cacheprovider", "pytest_benchmark.plugin", plugin.__name__)
    return [
        *(sys.executable, "-P", "-m", "pytest", "--pyargs", BENCHMARK_FILE.stem),
        *(argument for name in plugins for argument in ("-p", name)),
        *("-c", str(config), f"--rootdir={BENCHMARK_FILE.parent}", "--noconftest", "--import-mode=importlib", "--tb=short", "-q"),
        f"--benchmark-json={target}",
    ]


def _environment() -> dict[str, str]:
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, str(BENCHMARK_FILE.parent), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **_ENVIRONMENT, "PYTHONPATH": path}


def _exit_reason(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process ended without naming failures: the signal, or the last line it wrote, preferably one of an error."""
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return f"killed by {name}" + (": most likely the machine ran out of memory" if name == "SIGKILL" else "")
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    errors = [line.removeprefix("E").strip() for line in lines if line.startswith("E  ")]  # as pytest marks them
    return f"exit code {done.returncode}: {(errors or lines or ['it wrote nothing'])[-1][:500]}"


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
