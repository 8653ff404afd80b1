"""Measure models in rounds that take turns, each round in a fresh process, and keep what is finished.

A process of its own gives every model the same start: no allocator, cache or thread pool warmed by another, and a crash
or a lack of memory that ends nothing but that round. The models take turns (A B C A B C), so that a machine that grows
slow meanwhile is slow for all of them.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from sdbench.errors import UserError
from sdbench.machine import environment, this_machine
from sdbench.models.digest import weights_digest
from sdbench.models.spec import ModelSpec
from sdbench.probes import flops, plugin, values
from sdbench.probes.request import STAGES, VARIABLE, Request
from sdbench.probes.values import Round
from sdbench.records import Value
from sdbench.suites import Probes, Sampling

BENCHMARKS = "bench_pipeline.py"
ROUND_LIMIT_S = 3600
_PACKAGES = ("torch", "diffusers", "transformers", "peft", "pytest-benchmark")  # a finished round holds for these versions
_MEASURING = tuple(Path(__file__).with_name(name) for name in ("stages.py", "meters.py"))  # and for this code
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_ADDOPTS": "",
}


@dataclass(frozen=True)
class Place:
    """Where rounds run and are kept.

    Attributes:
        work: one JSON file of pytest-benchmark for each finished round; logs and requests beside them.
        suites: the folder that holds `bench_pipeline.py`.
    """

    work: Path
    suites: Path


def measure(
    specs: Sequence[ModelSpec], sampling: Sampling, probes: Probes, *, work: Path, suites: Path, device: str, dtype: str
) -> dict[str, list[Value]]:
    """Latency, memory, parameters and FLOPs of each model, by its name; only rounds that are not in `work` are run.

    Args:
        specs: models with weights or random ones; names are unique.
        sampling: a suite's sampling settings; its batch is not used, for latency is of one picture.
        probes: rounds (processes) of each model, timed calls of each stage in a round, calls of each before those.
        work: the folder that rounds are kept in, and taken from.
        suites: the folder that holds `bench_pipeline.py`.
        device: "cpu", "cuda" or "cuda:<index>".
        dtype: "float32", "bfloat16" or "float16".

    Raises:
        UserError: weights are not where a spec says, or `suites` holds no benchmark file.
    """
    work.mkdir(parents=True, exist_ok=True)
    place = Place(work.resolve(), suites.resolve())
    if not (suites / BENCHMARKS).is_file():
        raise UserError(f"no {BENCHMARKS} in {suites}: it measures latency and memory; copy it there from the package's own suites")
    settings = {
        "sampling": sampling,
        "calls": probes.calls,
        "warmup": probes.warmup,
        "device": device,
        "machine": this_machine(device),
        "dtype": dtype,
    }
    requests = {spec.name: Request.model_validate({"spec": spec, **settings}) for spec in specs}
    stems = {name: _stem(request, suites) for name, request in requests.items()}
    rounds: dict[str, list[Round]] = {name: [] for name in requests}
    turns = [(index, name) for index in range(probes.rounds) for name in requests]
    with tqdm(turns, desc="probes", unit="round") as bar:
        for index, name in bar:
            bar.set_postfix_str(name)
            rounds[name].append(_round(requests[name], f"{stems[name]}-{index}", place))
    return {name: [*values.values(rounds[name], device=device), _flops(request, rounds[name])] for name, request in requests.items()}


def _round(request: Request, stem: str, place: Place) -> Round:
    """A kept round, or a new one, kept where every stage was measured."""
    kept = place.work / f"{stem}.json"
    if kept.exists():
        return Round.read(kept, {})
    partial = place.work / f"{stem}.partial.json"
    failures = _run(request, partial, place)
    measured = Round.read(partial, failures)
    if measured.seconds.keys() == set(STAGES):
        partial.replace(kept)
    return measured


def _run(request: Request, target: Path, place: Place) -> dict[str, str]:
    """Start the measuring process => stage -> why it failed."""
    noted = Path(f"{target}{plugin.SUFFIX}")
    for stale in (target, noted):
        stale.unlink(missing_ok=True)
    asked = target.with_suffix(".request")
    asked.write_text(request.model_dump_json(indent=1))
    try:
        done = subprocess.run(  # noqa: S603  # our own words
            _command(target, place), env=_environment(asked), capture_output=True, text=True, timeout=ROUND_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return dict.fromkeys(STAGES, f"no end after {ROUND_LIMIT_S} s")
    target.with_suffix(".log").write_text(f"{done.stdout}\n{done.stderr}")
    failures: dict[str, str] = json.loads(noted.read_text()) if noted.exists() else {}
    if done.returncode and not failures:
        return dict.fromkeys(STAGES, _death(done))
    return failures


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


def _environment(asked: Path) -> dict[str, str]:
    package = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (package, os.environ.get("PYTHONPATH"))))
    return {**os.environ, **_ENVIRONMENT, "PYTHONPATH": path, VARIABLE: str(asked)}


def _death(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process ended that noted nothing: the signal, or the last line it wrote, an error's before others."""
    if done.returncode == -signal.SIGKILL:
        return "killed by SIGKILL: most likely the machine ran out of memory"
    if done.returncode < 0:
        return f"killed by {signal.Signals(-done.returncode).name}"
    lines = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E  ")]  # pytest's mark
    return f"exit code {done.returncode}: {(errors or lines or ['it wrote nothing'])[-1].removeprefix('E').strip()[:500]}"


def _flops(request: Request, rounds: Sequence[Round]) -> Value:
    """From the UNet's configuration as a round saw it; a random one's is known without."""
    name, unit, spec = "flops.unet", "MACs", request.spec
    known = [measured.info["unet_input"] for measured in rounds if "unet_input" in measured.info]
    if spec.source == "random" and spec.family != "custom":
        known.append(flops.random_unet_input(spec.architecture, spec.family, request.sampling.size_px))
    if not known:
        return values.failed(name, "count", unit, values.reason(rounds, "pipeline"))
    try:
        return values.count(name, unit, flops.unet_macs(**known[0]))
    except Exception as error:  # noqa: BLE001  # a probe that fails loses only itself
        return values.failed(name, "count", unit, f"{type(error).__name__}: {error}")


def _stem(request: Request, suites: Path) -> str:
    """File name of a model's rounds: by all that its times depend on, so that a kept round is never taken for another."""
    spec, packages = request.spec, environment().packages
    whole = {
        "model": (spec.name, spec.family, spec.architecture, spec.lora, weights_digest(spec, dtype=request.dtype)),
        "settings": request.model_dump(mode="json", exclude={"spec": True, "machine": True, "sampling": {"batch", "dtype"}}),
        "packages": {name: packages.get(name) for name in _PACKAGES},
        "python": sys.version_info[:2],
        "machine": request.machine.machine_class,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "code": [hashlib.sha256(path.read_bytes()).hexdigest() for path in (suites / BENCHMARKS, *_MEASURING)],
    }
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]
    return f"{spec.name}-{digest}"
