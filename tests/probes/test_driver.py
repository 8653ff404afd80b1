import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import number
from processes import is_locked

from sdbench import api
from sdbench.disk import file_digest, read_json
from sdbench.errors import UserError
from sdbench.gate import floors
from sdbench.machine import environment, this_machine
from sdbench.models.spec import ModelSpec
from sdbench.probes import driver, plugin, process, work
from sdbench.probes.driver import ProbeResult, measure
from sdbench.probes.request import CEILINGS, REQUEST_VARIABLE, Request
from sdbench.records import Value
from sdbench.records.names import STAGES
from sdbench.settings import Probes, Sampling, Setting
from sdbench.suites import Prompts, Suite

SAMPLING = Sampling(steps=2, guidance_scale=5.0, size_px=64, dtype="float32", batch=4)
# A fake benchmark file: its clock advances half a second at each reading, and each model behaves as its name says.
FAKE_BENCHMARK = """
import atexit, itertools, os, signal
from pathlib import Path
import pytest
from sdbench.probes.meters import OUT_OF_MEMORY
from sdbench.probes.request import CEILINGS, REQUEST_VARIABLE, Request
from sdbench.records.names import STAGES

clock = itertools.count(0, 0.5).__next__
request = Request.from_environment()
with Path(__file__).with_name("starts.log").open("a") as file:
    file.write(f"{request.spec.name}:{request.setting.label}".removesuffix(":base") + ":profile" * request.profile + "\\n")
if request.spec.name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if request.spec.name == "late":
    atexit.register(os.kill, os.getpid(), signal.SIGKILL)

def lose_gpu():
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    raise RuntimeError("CUDA error: unspecified launch failure")

@pytest.fixture(autouse=True)
def weights():
    if request.spec.name == "unreadable":
        import torch
        torch.cuda.synchronize = print  # a GPU that works
        raise ValueError("weights of\\n no use")
    if request.spec.name == "lost":
        lose_gpu()

@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("stage", [*STAGES, *CEILINGS])
def test_stage(stage, benchmark):
    if request.profile:
        Path(os.environ[REQUEST_VARIABLE]).with_suffix(f".profile-{stage}.txt").write_text("table")
        return
    if request.setting.batch > 4 and stage in ("pipeline", "vae_decode"):
        pytest.fail(f"{OUT_OF_MEMORY} at batch {request.setting.batch}; batch 4 fits. Tried to allocate 9 GiB")
    if request.spec.name == "losing":
        lose_gpu()
    if stage == "vae_decode" and request.spec.name == "half":
        raise MemoryError("out of memory: tried to allocate 9 GiB")
    benchmark.extra_info.update(
        parameters={"unet": 7, "pipeline": 11},
        weights_bytes=2**21,
        load_s=2.5,
        memory_mib={"peak_rss": 300.0, "peak_data": 200.0},
    )
    benchmark.extra_info.update(amount={stage: 1e12}, watch={"foreign_cores": 0.0})
    if stage == "pipeline":
        benchmark.extra_info.update(first_call_s=1.5, compiled_anew=False)
    benchmark.pedantic(lambda: None, rounds=request.calls)
"""
# Models whose rounds need a real process; those of others run in this one.
NEEDS_PROCESS = {"broken", "killed", "late", "losing", "lost", "timed", "unreadable"}


@dataclass
class FakeBenchmarkFixture:
    """Stands in for pytest-benchmark's fixture where no process is started."""

    clock: Callable[[], float]
    extra_info: dict[str, Any] = field(default_factory=dict)
    data: list[float] = field(default_factory=list)

    def pedantic(self, call: Callable[[], None], rounds: int) -> None:
        for _ in range(rounds):
            start = self.clock()
            call()
            self.data.append(self.clock() - start)


def run_in_process(target: Path) -> dict[str, str]:
    """Run the fake benchmark in this process and write the files a real one would; returns its failures by stage."""
    namespace: dict[str, Any] = {"__file__": str(process.BENCHMARK_FILE)}
    exec(FAKE_BENCHMARK, namespace)
    results, failures = [], {}
    for stage in (*STAGES, *CEILINGS):
        benchmark = FakeBenchmarkFixture(namespace["clock"])
        try:
            namespace["test_stage"](stage, benchmark)
        except (MemoryError, pytest.fail.Exception) as error:
            failures[stage] = f"MemoryError: {error}" if isinstance(error, MemoryError) else str(error)
        if benchmark.data:
            results.append({"params": {"stage": stage}, "extra_info": benchmark.extra_info, "stats": {"data": benchmark.data}})
    metadata = dict.fromkeys(("machine_info", "commit_info", "datetime", "version"))
    target.write_text(json.dumps({**metadata, "benchmarks": results}), encoding="utf-8")
    Path(f"{target}{plugin.FAILURES_SUFFIX}").write_text(json.dumps(failures), encoding="utf-8")
    return failures


@dataclass
class DriverHarness:
    """Measures models with the fake benchmark, in folders of the test."""

    work: Path
    suites: Path

    def measure(
        self, *names: str, rounds: int = 1, calls: int = 2, others: tuple[Setting, ...] = (), **changes: Any
    ) -> dict[str, dict[str, Value]]:
        measured = self.probe(*names, rounds=rounds, calls=calls, others=others, **changes)
        assert all(len({value.name for value in values}) == len(values) for values in measured.values.values())
        return {name: {value.name: value for value in values} for name, values in measured.values.items()}

    def probe(self, *names: str, rounds: int = 1, calls: int = 2, others: tuple[Setting, ...] = (), **changes: Any) -> ProbeResult:
        specs = [ModelSpec(name, "scenes", "vega", "random", "") for name in names]
        probes = Probes(rounds=rounds, calls=calls, warmup=0, settings=others)
        settings = {"work": self.work, "device": "cpu", **changes}
        return measure(specs, SAMPLING, probes, **settings)

    @property
    def started(self) -> list[str]:
        """Rounds that were started, as model:setting."""
        return (self.suites / "starts.log").read_text(encoding="utf-8").split()


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DriverHarness:
    harness = DriverHarness(tmp_path / "work", tmp_path / "suites [2]")  # pytest refuses the names of files with brackets

    def run(command: list[str], *, env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[str]:
        target = Path(command[-1].removeprefix("--benchmark-json="))
        if target.name.partition("-")[0] in NEEDS_PROCESS:
            return subprocess.run(command, env=env, **options)  # noqa: PLW1510  # "check" is among them
        with monkeypatch.context() as patch:
            patch.setenv(REQUEST_VARIABLE, env[REQUEST_VARIABLE])
            return subprocess.CompletedProcess(command, bool(run_in_process(target)), "", "")

    monkeypatch.setattr(process, "subprocess", SimpleNamespace(**{**vars(subprocess), "run": run}))
    harness.suites.mkdir()
    monkeypatch.setattr(process, "BENCHMARK_FILE", harness.suites / process.BENCHMARK_FILE.name)
    process.BENCHMARK_FILE.write_text(FAKE_BENCHMARK, encoding="utf-8")
    monkeypatch.setattr(
        work, "by_stage", lambda *_, **__: dict.fromkeys(("text_encoders", "unet_step", "vae_decode"), work.Work(10**11, 0, 10**9))
    )
    monkeypatch.setenv("PYTEST_ADDOPTS", "--an-option-of-the-user")
    monkeypatch.setenv("PYTEST_PLUGINS", "a_plugin_of_the_user")
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    return harness


def test_rounds_alternate_between_models_and_a_second_run_measures_only_missing_ones(harness: DriverHarness) -> None:
    measured = harness.measure("a", "b", rounds=2)
    assert harness.started == ["a", "b", "b", "a"]
    assert harness.measure("a", "b", rounds=2) == measured
    assert len(harness.started) == 4
    harness.measure("b", "a", rounds=3)
    assert harness.started[4:] == ["b", "a"]


def test_each_model_is_once_at_each_place_of_a_turn(harness: DriverHarness) -> None:
    """In a fixed order, what slows the machine down with the period of a turn meets one model alone."""
    harness.measure("a", "b", "c", rounds=3)
    assert harness.started == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]


def test_rounds_kept_from_before_are_measured_again_beside_those_of_a_model_that_failed_then(
    harness: DriverHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = process.Series._run

    def fail_b(series: process.Series, *arguments: Any) -> dict[str, str]:
        return {"pipeline": "busy"} if series.request.spec.name == "b" else run(series, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(process.Series, "_run", fail_b)
        before = harness.probe("a", "b", "c", rounds=2)
    assert harness.started == ["a", "c", "c", "a"]
    after = harness.probe("a", "b", "c", rounds=2)
    assert harness.started[4:] == ["b", "a", "c", "b", "c", "a"]
    assert after.run_id != before.run_id, "the gate must not pair a record of before with one of these"
    assert harness.probe("a", "b", "c", rounds=2) == after


def test_incomplete_round_took_turns_with_the_others_also_where_it_is_tried_again_in_vain(harness: DriverHarness) -> None:
    first = harness.probe("a", "half", rounds=2)
    assert first.run_id
    assert harness.probe("a", "half", rounds=2) == first, "no record changes, and ratios keep their intervals"
    assert harness.started == ["a", "half", "half", "a"] + ["half"] * 2


def test_rounds_beside_an_incomplete_one_are_measured_again_once(harness: DriverHarness) -> None:
    """As where the first run was killed after the round of `a`."""
    before = harness.probe("a", "half").run_id
    for kept in harness.work.glob("half-*-0.json"):
        kept.unlink()
    after = harness.probe("a", "half")
    assert harness.started[2:] == ["half", "a"]
    assert after.run_id != before
    assert harness.probe("a", "half") == after
    assert harness.started[4:] == ["half"]


def test_incomplete_round_is_measured_again_beside_one_that_was_missing(harness: DriverHarness) -> None:
    """The times of `half` from before, tried again in vain before the turn came to `a`, did not take turns with those of `a`."""
    harness.measure("half", "a")
    for kept in harness.work.glob("a-*-0.json"):
        kept.unlink()
    after = harness.probe("half", "a")
    assert harness.started[2:] == ["half", "a", "half"]
    assert harness.probe("half", "a") == after


def test_round_that_timed_out_is_not_tried_again(harness: DriverHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ROUND_TIMEOUT_S", 0.01)
    found = harness.measure("timed", rounds=3)["timed"]["latency.pipeline.p50"]
    assert (found.state, found.reason) == ("failed", "timed out after 0.01 s")
    assert len([*harness.work.glob("timed-*.request")]) == 1


def test_only_rounds_that_alternated_share_a_run_id(harness: DriverHarness) -> None:
    alone, other = harness.probe("a").run_id, harness.probe("b").run_id
    together = harness.probe("a", "b")
    assert harness.started == ["a", "b", "a", "b"], "separate runs did not alternate, so both are measured again"
    assert len({alone, other, together.run_id}) == 3
    assert harness.probe("b", "a", rounds=2).run_id == together.run_id
    shutil.rmtree(harness.work)
    assert harness.probe("a", "b").run_id != together.run_id


def test_round_ends_with_the_process_that_started_it() -> None:
    round_code = """
import time
from types import SimpleNamespace
from sdbench.probes import plugin
plugin.pytest_configure(SimpleNamespace(stash={}))
print("measuring", flush=True)
time.sleep(60)
"""
    driver_code = f"""
import os, subprocess, sys
subprocess.run([sys.executable, "-c", {round_code!r}], env={{**os.environ, {plugin.DRIVER_VARIABLE!r}: str(os.getpid())}})
"""
    root = {**os.environ, "PYTHONPATH": str(Path(driver.__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", driver_code], stdout=subprocess.PIPE, env=root, encoding="utf-8") as process:
        assert process.stdout
        assert process.stdout.readline() == "measuring\n"
        process.kill()
        process.communicate(timeout=20)  # returns only when both processes have closed the pipe


TIMED = Suite(
    name="own",
    version=1,
    family="scenes",
    description="",
    prompts=Prompts(n=1),
    sampling=SAMPLING,
    probes=Probes(rounds=1, calls=2, warmup=0),
)


@pytest.mark.parametrize("command", [api.run, partial(api.noise, seeds=2)])
def test_one_command_measures_at_a_time(
    command: Callable[..., object], harness: DriverHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, held, lock = process.Series._run, [], tmp_path / "runs" / "probes" / ".lock"

    def start_round(*arguments: Any) -> dict[str, str]:
        held.append(is_locked(lock))
        return start(*arguments)

    monkeypatch.setattr(process.Series, "_run", start_round)
    command(ModelSpec("a", "scenes", "vega", "random", ""), TIMED, places=api.Places(tmp_path / "results", tmp_path / "runs"), device="cpu")
    assert held == [True] * len(harness.started)
    assert not is_locked(lock)


def test_noise_floor_of_one_model_leaves_the_rounds_of_another(
    harness: DriverHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = floors.write

    def measure_noise(name: str) -> None:
        spec = ModelSpec(name, "scenes", "vega", "random", "")
        api.noise(spec, TIMED, seeds=2, places=api.Places(tmp_path / "results", tmp_path / "runs"), device="cpu")

    def write_after_another_model(*_: Any) -> Path:
        monkeypatch.setattr(floors, "write", write)
        assert is_locked(tmp_path / "runs" / "noise" / "a" / ".lock")
        measure_noise("b")
        raise KeyboardInterrupt

    monkeypatch.setattr(floors, "write", write_after_another_model)
    with pytest.raises(KeyboardInterrupt):
        measure_noise("a")
    measure_noise("a")
    assert harness.started == ["a", "a", "b", "b"]


def test_each_noise_floor_is_measured_afresh_and_a_killed_one_resumes(
    harness: DriverHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, write = ModelSpec("a", "scenes", "vega", "random", ""), floors.write

    def measure_noise() -> Path:
        return api.noise(spec, TIMED, seeds=2, places=api.Places(tmp_path / "results", tmp_path / "runs"), device="cpu")[0]

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(floors, "write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        measure_noise()
    monkeypatch.setattr(floors, "write", write)
    folder = measure_noise()
    assert harness.started == ["a"] * 2, "two seeds, measured before the kill"
    assert measure_noise() == folder
    assert harness.started == ["a"] * 4


def test_values_match_the_clock(harness: DriverHarness) -> None:
    found = harness.measure("a", rounds=2, calls=3)["a"]
    for stage in STAGES:
        assert found[f"latency.{stage}.p50"].samples == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        assert {found[f"latency.{stage}.{mark}"].value for mark in ("p50", "p90", "p99")} == {0.5}
        assert found[f"latency.{stage}.p99"].samples is None
    p50, p99 = found["latency.pipeline.p50"], found["latency.pipeline.p99"]
    assert (p50.n, p50.low, p50.high) == (6, 0.5, 0.5)
    assert (p99.low, p99.high) == (None, None), "six calls are too few to bound the 99th percentile"
    rate = found["images_per_second"]
    assert (rate.value, rate.low, rate.high, rate.direction) == (2.0, 2.0, 2.0, "higher")
    assert {name: found[name].value for name in ("parameters.unet", "parameters.pipeline", "flops.unet")} == {
        "parameters.unet": 7,
        "parameters.pipeline": 11,
        "flops.unet": 10**11 // 2,
    }
    assert found["memory.peak_rss"].value == 300
    assert found["memory.peak_rss"].samples == ((300.0,), (300.0,))
    assert found["cold_start.first_call"].value == 1.5
    assert {value.state for value in found.values()} == {"ok"}


def test_raw_pytest_benchmark_files_are_kept_with_machine_info(harness: DriverHarness) -> None:
    harness.measure("timed")
    (raw,) = harness.work.glob("timed-*-0.json")
    content = read_json(raw)
    assert [item["stats"]["data"] for item in content["benchmarks"]] == [[0.5, 0.5]] * 7
    assert content["machine_info"]["device"] == "cpu"


def test_rounds_run_no_conftest_of_the_current_folder(harness: DriverHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest reads those of the folder in which it is started and of its `test*` folders: one set OMP_NUM_THREADS, which
    halved the speed of matrix products.
    """
    for folder in (tmp_path, tmp_path / "tests"):
        folder.mkdir(exist_ok=True)
        (folder / "conftest.py").write_text("raise RuntimeError('of another project')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert {value.state for value in harness.measure("timed")["timed"].values()} == {"ok"}


@pytest.mark.parametrize(
    ("name", "reason"), [("killed", "SIGKILL"), ("unreadable", "ValueError: weights of no use")], ids=["killed", "unreadable"]
)
def test_failing_model_does_not_affect_others_and_is_retried(harness: DriverHarness, name: str, reason: str) -> None:
    measured = harness.measure(name, "a")
    failed = {value.name: value for value in measured[name].values() if value.state == "failed"}
    counted = {name for name in measured["a"] if name.startswith(("flops.", "bytes."))}
    assert set(failed) == set(measured["a"]) - counted - {"machine.foreign_cores"}, "the FLOPs of random weights need no process"
    assert all(reason in value.reason and value.value is None for value in failed.values())
    assert {value.state for value in measured["a"].values()} == {"ok"}
    harness.measure(name, "a")
    assert harness.started == [name, "a", name]


def test_gpu_that_fails_ends_the_run_and_leaves_the_finished_rounds(harness: DriverHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = this_machine("cpu")
    monkeypatch.setattr(driver, "this_machine", lambda _: machine)
    with pytest.raises(UserError, match=r"^the GPU fails: RuntimeError: .*; run again when `nvidia-smi` .* keeps the finished rounds"):
        harness.measure("a", "lost", "b", rounds=3, device="cuda")
    assert harness.started == ["a", "lost"]
    assert len([*harness.work.glob("*-0.json")]) == 1


@pytest.mark.parametrize("name", ["unreadable", "losing"])
def test_gpu_that_a_new_process_may_use_ends_no_run(name: str, harness: DriverHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that fails within a process mostly works in the next one."""
    machine = this_machine("cpu")
    monkeypatch.setattr(driver, "this_machine", lambda _: machine)
    found = harness.measure(name, "a", device="cuda")
    assert [found[model]["latency.pipeline.p50"].state for model in (name, "a")] == ["failed", "ok"]


def test_failing_stage_does_not_affect_the_others(harness: DriverHarness) -> None:
    found = harness.measure("half")["half"]
    failed = {value.name: value.reason for value in found.values() if value.state == "failed"}
    assert set(failed) == {
        *(f"latency.vae_decode.{mark}" for mark in ("p50", "p90", "p99")),
        *(f"share.{name}.vae_decode" for name in ("matmul", "roofline")),
    }
    assert set(failed.values()) == {"MemoryError: out of memory: tried to allocate 9 GiB"}
    harness.measure("half")
    assert harness.started == ["half", "half"], "an incomplete round does not count as finished"


def test_failed_round_is_reported_in_the_note(harness: DriverHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.measure("timed", calls=6)
    monkeypatch.setattr(process, "ROUND_TIMEOUT_S", 0.01)
    p50 = harness.measure("timed", rounds=2, calls=6)["timed"]["latency.pipeline.p50"]
    assert p50.samples == ((0.5,) * 6,)
    assert p50.note == "n too small for an interval; 1 of 2 rounds failed: timed out after 0.01 s"


def test_process_that_dies_after_writing_its_results_counts_as_measured(harness: DriverHarness) -> None:
    assert {value.state for value in harness.measure("late")["late"].values()} == {"ok"}
    harness.measure("late")
    assert harness.started == ["late"]


def test_damaged_round_file_is_measured_again(harness: DriverHarness) -> None:
    harness.measure("a")
    (kept,) = harness.work.glob("a-*-0.json")
    kept.write_text(kept.read_text(encoding="utf-8")[:-100], encoding="utf-8")
    assert harness.measure("a")["a"]["latency.pipeline.p50"].state == "ok"
    assert harness.started == ["a", "a"]


@pytest.mark.parametrize("ending", [".request", ".ini", ".log"])
def test_full_disk_ends_the_run_and_leaves_the_finished_rounds(
    harness: DriverHarness, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    harness.measure("a")

    def write_unless_full(path: Path, content: bytes | str, **_: Any) -> int:
        if ending in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with path.open("wb") as file:
            return file.write(content.encode() if isinstance(content, str) else content)

    with monkeypatch.context() as full:
        full.setattr(Path, "write_text", write_unless_full)
        full.setattr(Path, "write_bytes", write_unless_full)
        with pytest.raises(UserError, match=rf"cannot write .*{ending}: No space left on device\. What was made so far is kept"):
            harness.measure("a", rounds=2)
    started = len(harness.started)
    assert harness.measure("a", rounds=2)["a"]["latency.pipeline.p50"].samples == ((0.5, 0.5), (0.5, 0.5))
    assert len(harness.started) == started + 1


def test_compile_cache_is_cleared_before_the_first_round_only(harness: DriverHarness) -> None:
    harness.measure("a")
    (kept,) = harness.work.glob("a-*-0.json")
    cache = harness.work / "compiled" / kept.name.removesuffix("-0.json")
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "half").touch()
    harness.measure("a", rounds=2)
    assert (cache / "half").exists()
    kept.unlink()
    harness.measure("a")
    assert not (cache / "half").exists(), "without a kept round, the cache was left by a killed one"


def test_broken_benchmark_file_is_reported_as_the_reason(harness: DriverHarness) -> None:
    process.BENCHMARK_FILE.write_text("import no_such_module_at_all\n", encoding="utf-8")
    assert "No module named 'no_such_module_at_all'" in harness.measure("broken")["broken"]["latency.pipeline.p50"].reason


@pytest.mark.parametrize(
    ("code", "output", "reason"),
    [
        (-9, "", "killed by SIGKILL: most likely the machine ran out of memory"),
        (-11, "", "killed by SIGSEGV"),
        (1, "E   OSError: no file\nFAILED", "exit code 1: OSError: no file"),
        (4, "usage\nERROR: no such option", "exit code 4: ERROR: no such option"),
    ],
)
def test_reason_of_an_exit_is_given_on_every_platform(code: int, output: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(signal, "SIGKILL")  # as on Windows
    assert process._exit_reason(subprocess.CompletedProcess([], code, output, "")) == reason


def test_each_setting_has_its_own_round_files() -> None:
    spec = ModelSpec("a", "scenes", "vega", "random", "")

    def stem(spec: ModelSpec = spec, weights: str = "3e16", turns: str = "1", **changes: Any) -> str:
        machine = this_machine("cpu")
        request = {"sampling": SAMPLING, "setting": Setting(), "calls": 2, "warmup": 0, "device": "cpu", "machine": machine}
        return driver._file_stem(Request.model_validate({"spec": spec, **request, **changes}), weights, turns)

    first = stem()
    assert first == stem(sampling=SAMPLING.model_copy(update={"batch": 1})), "the batch comes from the setting"
    assert first == stem(profile=True)
    others = [
        stem(weights="4f27"),
        stem(turns="2"),
        stem(replace(spec, architecture="ssd-1b")),
        stem(sampling=SAMPLING.model_copy(update={"steps": 3})),
        stem(sampling=SAMPLING.model_copy(update={"dtype": "float16"})),
        stem(calls=3),
        stem(warmup=1),
        stem(setting=Setting(batch=2)),
        stem(setting=Setting(dtype="bfloat16")),
        stem(setting=Setting(vae="tiny")),
        stem(setting=Setting(compile="whole")),
        stem(setting=Setting(channels_last=True)),
    ]
    assert len({first, *others}) == 13


def test_rounds_are_measured_again_when_an_environment_switch_changes(harness: DriverHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    harness.measure("a")
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    harness.measure("a")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # the machine class names the card
    harness.measure("a")
    assert harness.started == ["a", "a"]


def test_models_measured_under_other_conditions_did_not_take_turns(harness: DriverHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    run_ids = [harness.probe("a", "b").run_id]
    other_machine = this_machine("cpu").model_copy(update={"cores": 999})
    monkeypatch.setattr(driver, "this_machine", lambda _: other_machine)
    run_ids.append(harness.probe("a", "b").run_id)
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    run_ids.append(harness.probe("a", "b").run_id)
    upgraded = environment()
    upgraded.packages["torch"] += ".post1"
    monkeypatch.setattr(driver, "environment", lambda: upgraded)
    run_ids.append(harness.probe("a", "b").run_id)
    process.BENCHMARK_FILE.write_text("# other code", encoding="utf-8")
    run_ids.append(harness.probe("a", "b").run_id)
    assert len(harness.started) == 10
    assert len(set(run_ids)) == 5, "the gate takes rounds of one id for measured in turns"


def test_two_cards_of_one_kind_do_not_share_rounds(harness: DriverHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = this_machine("cpu")
    monkeypatch.setattr(driver, "this_machine", lambda _: machine)
    first, other = (harness.probe("a", device=device).run_id for device in ("cuda:0", "cuda:1"))
    assert first != other
    assert harness.started == ["a", "a"]


PACKAGES = ("torch", "diffusers", "transformers", "peft", "pytest-benchmark")
CODE = (
    *("probes/stages", "probes/setup", "probes/meters", "probes/ceilings", "probes/capacity", "probes/monitor", "generate", "schedulers"),
    *("models/out_of_memory", "models/random_weights", "models/activation_scale"),
    *("models/loading", "models/lora", "models/checks", "models/files", "models/headers"),
)


@pytest.mark.parametrize("changed", ["python", *PACKAGES, *CODE])
def test_rounds_of_other_versions_or_code_are_measured_again(changed: str, harness: DriverHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    before = harness.probe("a").run_id
    software = environment()
    others = software.model_copy(update={"packages": {**software.packages, changed: "99"} if changed in PACKAGES else software.packages})
    python = SimpleNamespace(**{**vars(sys), "version_info": (3, 99) if changed == "python" else sys.version_info})
    file = Path(driver.__file__).parents[1] / f"{changed}.py"
    monkeypatch.setattr(driver, "environment", lambda: others)
    monkeypatch.setattr(driver, "sys", python)
    monkeypatch.setattr(driver, "file_digest", lambda path: "other code" if path == file else file_digest(path))
    assert harness.probe("a").run_id != before
    assert harness.started == ["a", "a"]


def test_settings_alternate_with_models_and_label_their_values(harness: DriverHarness) -> None:
    four = Setting(batch=4, calls=3)
    found = harness.measure("a", "b", others=(four,))["a"]
    assert harness.started == ["a", "b", "a:b4", "b:b4"]
    assert found["images_per_second"].value == 2
    assert found["images_per_second@b4"].value == 8
    assert found["latency.unet_step.p50"].n == 2
    assert found["latency.unet_step.p50@b4"].n == 3
    assert "parameters.unet@b4" not in found
    without_base = harness.measure("a", "b", others=(four,), settings=["b4"])["a"]
    counted = {name for name in without_base if not name.endswith("@b4")}
    assert counted == {name for name, value in found.items() if value.kind == "count"}, "they are of the model, whatever the setting"
    assert all(without_base[name] == found[name] for name in counted)
    assert len(harness.started) == 4
    half = harness.measure("c", others=(Setting(dtype="bfloat16"),), settings=["bfloat16"])["c"]
    assert half["bytes.unet_step"] == found["bytes.unet_step"], "in the suite's dtype, whatever the setting"
    with pytest.raises(UserError, match="unknown setting 'b5'; known: b4, base"):
        harness.measure("a", others=(four,), settings=["b5"])


def test_out_of_memory_reports_a_batch_that_fits_and_is_not_retried(harness: DriverHarness) -> None:
    found = harness.measure("a", rounds=2, others=(Setting(batch=8),))["a"]
    assert harness.started == ["a", "a:b8", "a"]
    failed = found["latency.pipeline.p50@b8"]
    assert failed.state == "failed"
    assert failed.reason == "out of memory at batch 8; batch 4 fits. Tried to allocate 9 GiB"
    assert found["images_per_second@b8"].reason == failed.reason
    step = found["latency.unet_step.p50@b8"]
    assert step.samples == ((0.5, 0.5),), "values of the first round do not stand for the others"
    assert step.note.startswith("n too small for an interval; 1 of 2 rounds failed: out of memory at batch 8")
    assert found["latency.pipeline.p50"].state == "ok"


def test_shares_are_relative_to_the_machines_own_ceilings(harness: DriverHarness) -> None:
    found = harness.measure("a", others=(Setting(batch=2),))["a"]
    assert found["ceiling.matmul"].value == 2.0, "1e12 operations in half a second"
    assert found["ceiling.copy"].value == 2000.0
    # 1e11 multiply-accumulates are 2e11 FLOPs: 0.1 s of 0.5; 1e9 numbers are 4e9 bytes: 0.002 s
    assert found["share.matmul.unet_step"].value == pytest.approx(0.2)
    assert found["share.roofline.unet_step"].value == pytest.approx(0.2)
    assert found["share.matmul.pipeline"].value == pytest.approx(0.2 * (SAMPLING.steps + 2))
    assert found["share.matmul.unet_step@b2"].value == pytest.approx(0.4)
    assert found["bytes.unet_step"].value == 4 * 10**9
    assert found["share.matmul.unet_step@b2"].note == ""
    above = harness.measure("b", others=(Setting(batch=4),))["b"]["share.matmul.pipeline@b4"]
    assert above.value == pytest.approx(0.8 * (SAMPLING.steps + 2))
    assert number(above) > 1
    assert above.note.startswith("above 1: at the rate of the product or copy timed as the ceiling")


def test_profiles_are_written_beside_the_rounds_once(harness: DriverHarness) -> None:
    harness.measure("a", profile=True)
    assert {path.name.rpartition("-")[2] for path in harness.work.glob("a-base-*.profile-*.txt")} == {
        f"{name}.txt" for name in (*STAGES, *CEILINGS)
    }
    assert harness.started == ["a", "a:profile"], "after the rounds, to reuse what they compiled; earlier, it would be discarded"
    harness.measure("a", profile=True)
    assert len(harness.started) == 2


def test_failed_profile_is_reported(harness: DriverHarness, capsys: pytest.CaptureFixture[str]) -> None:
    harness.measure("unreadable", profile=True)
    assert "the profile of unreadable base is incomplete: ValueError: weights of no use\n" in capsys.readouterr().err


def test_pytest_benchmark_compares_and_plots_the_joined_rounds_file(
    harness: DriverHarness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harness.measure("timed", rounds=2)
    monkeypatch.delenv("PYTEST_PLUGINS")  # for pytest-benchmark's own command
    joined = harness.work / driver.ROUNDS_FILE
    content = read_json(joined)
    assert [item["params"] for item in content["benchmarks"]] == [
        {"model": "timed", "setting": "base", "stage": stage} for stage in (*STAGES, *CEILINGS)
    ]
    assert all(item["extra_info"]["rounds"] == [[0.5, 0.5]] * 2 and item["stats"]["data"] == [0.5] * 4 for item in content["benchmarks"])
    command = [sys.executable, "-m", "pytest_benchmark", "compare", str(joined), f"--csv={tmp_path / 'table.csv'}"]
    plot_option = [f"--histogram={tmp_path / 'plot'}"] if find_spec("pygal") else []
    subprocess.run([*command, *plot_option], capture_output=True, encoding="utf-8", cwd=tmp_path, check=True)
    rows = (tmp_path / "table.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + len(content["benchmarks"])
    assert sum(row.startswith("timed base unet_step,timed,base,unet_step,0.5,0.5,0.5,") for row in rows) == 1
    if not plot_option:
        pytest.skip("compared, but not plotted: pytest-benchmark[histogram] is not installed")
    assert "timed base unet_step" in (tmp_path / "plot-unet_step_base.svg").read_text(encoding="utf-8"), (
        "one plot for each stage and setting"
    )
