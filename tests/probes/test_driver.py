import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sdbench import api
from sdbench.errors import UserError
from sdbench.gate import floors
from sdbench.models.spec import ModelSpec
from sdbench.probes import counts, driver, plugin, work
from sdbench.probes.driver import ProbeResult, measure
from sdbench.probes.request import CEILINGS, REQUEST_VARIABLE, STAGES
from sdbench.records import Value
from sdbench.run import runner
from sdbench.settings import Probes, Sampling, Setting
from sdbench.suites import Prompts, Suite

SAMPLING = Sampling(steps=2, guidance_scale=5.0, size_px=64, dtype="float32", batch=4)
# Stands for the measuring process: a clock that runs half a second between two looks, and models that behave as they are called.
CHILD = """
import atexit, itertools, os, signal
from pathlib import Path
import pytest
from sdbench.probes.meters import OUT_OF_MEMORY
from sdbench.probes.request import CEILINGS, REQUEST_VARIABLE, STAGES, Request

clock = itertools.count(0, 0.5).__next__
request = Request.from_environment()
with Path(__file__).with_name("diary").open("a") as file:
    file.write(f"{request.spec.name}:{request.setting.label}".removesuffix(":base") + ":profile" * request.profile + "\\n")
if request.spec.name == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if request.spec.name == "late":
    atexit.register(os.kill, os.getpid(), signal.SIGKILL)

@pytest.fixture(autouse=True)
def weights():
    if request.spec.name == "unreadable":
        raise ValueError("weights of\\n no use")

@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("stage", [*STAGES, *CEILINGS])
def test_stage(stage, benchmark):
    if request.profile:
        Path(os.environ[REQUEST_VARIABLE]).with_suffix(f".profile-{stage}.txt").write_text("table")
        return
    if request.setting.batch > 4 and stage in ("pipeline", "vae_decode"):
        pytest.fail(f"{OUT_OF_MEMORY} at batch {request.setting.batch}; the largest batch that fits is 4. Tried to allocate 9 GiB")
    if stage == "vae_decode" and request.spec.name == "half":
        raise MemoryError("out of memory: tried to allocate 9 GiB")
    benchmark.extra_info.update(parameters={"unet": 7, "pipeline": 11}, weights_bytes=2**21, load_s=2.5, memory_mib={"peak_rss": 300.0})
    benchmark.extra_info.update(amount={stage: 1e12}, watch={"foreign_cores": 0.0})
    if stage == "pipeline":
        benchmark.extra_info.update(first_call_s=1.5, compiled_anew=False)
    benchmark.pedantic(lambda: None, rounds=request.calls)
"""
OWN_PROCESS = {"broken", "killed", "late", "timed", "unreadable"}  # models whose round needs one; that of others is called


@dataclass
class Called:
    """Stands for pytest-benchmark where no process is started."""

    clock: Callable[[], float]
    extra_info: dict[str, Any] = field(default_factory=dict)
    data: list[float] = field(default_factory=list)

    def pedantic(self, call: Callable[[], None], rounds: int) -> None:
        for _ in range(rounds):
            start = self.clock()
            call()
            self.data.append(self.clock() - start)


def called(target: Path, suites: Path) -> dict[str, str]:
    """Do in this process what the measuring one does, and write what it does => its failures."""
    child: dict[str, Any] = {"__file__": str(suites / driver.BENCHMARK_FILE)}
    exec(CHILD, child)
    done, failures = [], {}
    for stage in (*STAGES, *CEILINGS):
        benchmark = Called(child["clock"])
        try:
            child["test_stage"](stage, benchmark)
        except (MemoryError, pytest.fail.Exception) as error:
            failures[stage] = f"MemoryError: {error}" if isinstance(error, MemoryError) else str(error)
        if benchmark.data:
            done.append({"params": {"stage": stage}, "extra_info": benchmark.extra_info, "stats": {"data": benchmark.data}})
    whole = dict.fromkeys(("machine_info", "commit_info", "datetime", "version"))
    target.write_text(json.dumps({**whole, "benchmarks": done}))
    Path(f"{target}{plugin.FAILURES_SUFFIX}").write_text(json.dumps(failures))
    return failures


@dataclass
class Bench:
    work: Path
    suites: Path

    def measure(
        self, *names: str, rounds: int = 1, calls: int = 2, others: tuple[Setting, ...] = (), **changes: Any
    ) -> dict[str, dict[str, Value]]:
        measured = self.probed(*names, rounds=rounds, calls=calls, others=others, **changes)
        return {name: {value.name: value for value in values} for name, values in measured.values.items()}

    def probed(self, *names: str, rounds: int = 1, calls: int = 2, others: tuple[Setting, ...] = (), **changes: Any) -> ProbeResult:
        specs = [ModelSpec(name, "scenes", "vega", "random", "") for name in names]
        probes = Probes(rounds=rounds, calls=calls, warmup=0, settings=others)
        settings = {"work": self.work, "suites": self.suites, "device": "cpu", **changes}
        return measure(specs, SAMPLING, probes, **settings)

    @property
    def started(self) -> list[str]:
        return (self.suites / "diary").read_text().split()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    made = Bench(tmp_path / "work", tmp_path / "suites")

    def run(command: list[str], *, env: dict[str, str], **how: Any) -> subprocess.CompletedProcess[str]:
        target = Path(command[-1].removeprefix("--benchmark-json="))
        if target.name.partition("-")[0] in OWN_PROCESS:
            return subprocess.run(command, env=env, **how)  # noqa: PLW1510  # "check" is among them
        with monkeypatch.context() as patch:
            patch.setenv(REQUEST_VARIABLE, env[REQUEST_VARIABLE])
            return subprocess.CompletedProcess(command, bool(called(target, made.suites)), "", "")

    monkeypatch.setattr(driver, "subprocess", SimpleNamespace(**{**vars(subprocess), "run": run}))
    made.suites.mkdir()
    (made.suites / driver.BENCHMARK_FILE).write_text(CHILD)
    monkeypatch.setattr(
        work, "by_stage", lambda *_, **__: dict.fromkeys(("text_encoders", "unet_step", "vae_decode"), work.Work(10**11, 0, 10**9))
    )
    counts._count_work.cache_clear()
    monkeypatch.setenv("PYTEST_ADDOPTS", "--an-option-of-the-user")
    return made


def test_models_take_turns_and_a_second_run_measures_only_what_is_missing(bench: Bench) -> None:
    measured = bench.measure("a", "b", rounds=2)
    assert bench.started == ["a", "b", "a", "b"]
    assert bench.measure("a", "b", rounds=2) == measured
    assert len(bench.started) == 4
    bench.measure("b", "a", rounds=3)
    assert bench.started[4:] == ["b", "a"]


def test_only_rounds_that_took_turns_with_each_other_go_by_one_name(bench: Bench) -> None:
    alone, other = bench.probed("a").turns_id, bench.probed("b").turns_id
    together = bench.probed("a", "b")
    assert bench.started == ["a", "b", "a", "b"], "each alone is no turn: both are measured anew"
    assert len({alone, other, together.turns_id}) == 3
    assert bench.probed("b", "a", rounds=2).turns_id == together.turns_id
    shutil.rmtree(bench.work)
    assert bench.probed("a", "b").turns_id != together.turns_id


def test_each_noise_floor_is_measured_anew_and_a_killed_one_goes_on(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "find", lambda name: bench.suites / name)
    probes, prompts = Probes(rounds=1, calls=2, warmup=0), Prompts(n=1)
    suite = Suite(name="own", version=1, family="scenes", description="", prompts=prompts, sampling=SAMPLING, probes=probes)
    spec, write = ModelSpec("a", "scenes", "vega", "random", ""), floors.write

    def find() -> Path:
        return api.noise(spec, suite, 2, api.Places(tmp_path / "results", tmp_path / "runs"), device="cpu")[0]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(floors, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        find()
    monkeypatch.setattr(floors, "write", write)
    written = find()
    assert bench.started == ["a"] * 2, "of two seeds, measured before the kill"
    assert find() == written
    assert bench.started == ["a"] * 4


def test_values_say_what_the_clock_said(bench: Bench) -> None:
    found = bench.measure("a", rounds=2, calls=3)["a"]
    for stage in STAGES:
        assert found[f"latency.{stage}.p50"].samples == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        assert {found[f"latency.{stage}.{mark}"].value for mark in ("p50", "p90", "p99")} == {0.5}
        assert found[f"latency.{stage}.p99"].samples is None
    p50, p99 = found["latency.pipeline.p50"], found["latency.pipeline.p99"]
    assert (p50.n, p50.low, p50.high) == (6, 0.5, 0.5)
    assert (p99.low, p99.high) == (None, None), "six calls bound no 99th percentile"
    rate = found["images_per_second"]
    assert (rate.value, rate.low, rate.high, rate.direction) == (2.0, 2.0, 2.0, "higher")
    assert {name: found[name].value for name in ("parameters.unet", "parameters.pipeline", "flops.unet")} == {
        "parameters.unet": 7,
        "parameters.pipeline": 11,
        "flops.unet": 10**11 // 2,
    }
    assert found["memory.peak_rss"].value == 300
    assert found["memory.peak_rss"].samples == ((300.0,), (300.0,))
    assert (found["cold_start.load"].value, found["cold_start.first_call"].value) == (2.5, 1.5)
    assert {value.state for value in found.values()} == {"ok"}


def test_the_raw_files_of_pytest_benchmark_are_kept_with_the_machine(bench: Bench) -> None:
    bench.measure("timed")
    (raw,) = bench.work.glob("timed-*-0.json")
    content = json.loads(raw.read_text())
    assert [item["stats"]["data"] for item in content["benchmarks"]] == [[0.5, 0.5]] * 7
    assert content["machine_info"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("name", "reason"), [("killed", "SIGKILL"), ("unreadable", "ValueError: weights of no use")], ids=["killed", "unreadable"]
)
def test_a_model_that_fails_loses_only_itself_and_is_tried_again(bench: Bench, name: str, reason: str) -> None:
    measured = bench.measure(name, "a")
    lost = {value.name: value for value in measured[name].values() if value.state == "failed"}
    counted = {name for name in measured["a"] if name.startswith(("flops.", "bytes."))}
    assert set(lost) == set(measured["a"]) - counted - {"machine.foreign_cores"}, "the FLOPs of random weights need no process"
    assert all(reason in value.reason and value.value is None for value in lost.values())
    assert {value.state for value in measured["a"].values()} == {"ok"}
    bench.measure(name, "a")
    assert bench.started == [name, "a", name]


def test_a_stage_that_fails_leaves_the_others(bench: Bench) -> None:
    found = bench.measure("half")["half"]
    failed = {value.name: value.reason for value in found.values() if value.state == "failed"}
    assert set(failed) == {
        *(f"latency.vae_decode.{mark}" for mark in ("p50", "p90", "p99")),
        *(f"share.{name}.vae_decode" for name in ("matmul", "roofline")),
    }
    assert set(failed.values()) == {"MemoryError: out of memory: tried to allocate 9 GiB"}
    bench.measure("half")
    assert bench.started == ["half", "half"], "an incomplete round is no finished one"


def test_a_round_that_fails_beside_others_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.measure("timed", calls=6)
    monkeypatch.setattr(driver, "ROUND_TIMEOUT_S", 0.01)
    p50 = bench.measure("timed", rounds=2, calls=6)["timed"]["latency.pipeline.p50"]
    assert p50.samples == ((0.5,) * 6,)
    assert p50.note == "n too small for an interval; 1 of 2 rounds failed: no end after 0.01 s"


def test_a_process_that_dies_with_everything_written_has_measured_it(bench: Bench) -> None:
    assert {value.state for value in bench.measure("late")["late"].values()} == {"ok"}
    bench.measure("late")
    assert bench.started == ["late"]


def test_a_kept_round_that_was_damaged_is_measured_again(bench: Bench) -> None:
    bench.measure("a")
    (kept,) = bench.work.glob("a-*-0.json")
    kept.write_text(kept.read_text()[:-100])
    assert bench.measure("a")["a"]["latency.pipeline.p50"].state == "ok"
    assert bench.started == ["a", "a"]


def test_the_first_round_finds_nothing_compiled_and_the_others_what_it_left(bench: Bench) -> None:
    bench.measure("a")
    (kept,) = bench.work.glob("a-*-0.json")
    cache = bench.work / "compiled" / kept.name.removesuffix("-0.json")
    cache.mkdir(parents=True, exist_ok=True)
    (cache / "half").touch()
    bench.measure("a", rounds=2)
    assert (cache / "half").exists()
    kept.unlink()
    bench.measure("a")
    assert not (cache / "half").exists(), "without a round that is kept it is of one that was killed"


def test_a_broken_benchmark_file_is_the_reason(bench: Bench) -> None:
    (bench.suites / driver.BENCHMARK_FILE).write_text("import no_such_module_at_all\n")
    assert "No module named 'no_such_module_at_all'" in bench.measure("broken")["broken"]["latency.pipeline.p50"].reason


def test_other_settings_are_other_rounds(bench: Bench) -> None:
    spec = ModelSpec("a", "scenes", "vega", "random", "")

    def stem(spec: ModelSpec = spec, weights: str = "3e16", turns: str = "1", **changes: Any) -> str:
        machine = driver.this_machine("cpu")
        request = {"sampling": SAMPLING, "setting": Setting(), "calls": 2, "warmup": 0, "device": "cpu", "machine": machine}
        return driver._file_stem(driver.Request.model_validate({"spec": spec, **request, **changes}), bench.suites, weights, turns)

    first = stem()
    assert first == stem(sampling=SAMPLING.model_copy(update={"batch": 1})), "the batch is the setting's"
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
        stem(variables={"NVIDIA_TF32_OVERRIDE": "1"}),
        stem(machine=driver.this_machine("cpu").model_copy(update={"cores": 999})),
    ]
    assert len({first, *others}) == 15


def test_rounds_under_another_switch_of_the_environment_are_measured_anew(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.measure("a")
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    bench.measure("a")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")  # which card it is, the machine class says
    bench.measure("a")
    assert bench.started == ["a", "a"]


def test_settings_take_turns_with_the_models_and_their_values_carry_their_name(bench: Bench) -> None:
    four = Setting(batch=4, calls=3)
    found = bench.measure("a", "b", others=(four,))["a"]
    assert bench.started == ["a", "b", "a:b4", "b:b4"]
    assert found["images_per_second"].value == 2
    assert found["images_per_second@b4"].value == 8
    assert found["latency.unet_step.p50"].n == 2
    assert found["latency.unet_step.p50@b4"].n == 3
    assert "parameters.unet@b4" not in found
    assert all(name.endswith("@b4") for name in bench.measure("a", "b", others=(four,), settings=["b4"])["a"])
    assert len(bench.started) == 4
    with pytest.raises(UserError, match="unknown setting 'b5'; known: b4, base"):
        bench.measure("a", others=(four,), settings=["b5"])


def test_what_is_out_of_memory_says_what_fits_is_not_tried_again_and_the_rest_goes_on(bench: Bench) -> None:
    found = bench.measure("a", rounds=2, others=(Setting(batch=8),))["a"]
    assert bench.started == ["a", "a:b8", "a"]
    lost = found["latency.pipeline.p50@b8"]
    assert lost.state == "failed"
    assert lost.reason == "out of memory at batch 8; the largest batch that fits is 4. Tried to allocate 9 GiB"
    assert found["images_per_second@b8"].reason == lost.reason
    step = found["latency.unet_step.p50@b8"]
    assert step.samples == ((0.5, 0.5),), "what the first round measured is no measurement of the others"
    assert step.note.startswith("n too small for an interval; 1 of 2 rounds failed: out of memory at batch 8")
    assert found["latency.pipeline.p50"].state == "ok"


def test_shares_are_of_the_machine_s_own_ceilings(bench: Bench) -> None:
    found = bench.measure("a", others=(Setting(batch=2),))["a"]
    assert found["ceiling.matmul"].value == 2.0, "1e12 operations in half a second"
    assert found["ceiling.copy"].value == 2000.0
    # 1e11 multiply-accumulates are 2e11 FLOPs: 0.1 s of 0.5; 1e9 numbers are 4e9 bytes: 0.002 s
    assert found["share.matmul.unet_step"].value == pytest.approx(0.2)
    assert found["share.roofline.unet_step"].value == pytest.approx(0.2)
    assert found["share.matmul.pipeline"].value == pytest.approx(0.2 * (SAMPLING.steps + 2))
    assert found["share.matmul.unet_step@b2"].value == pytest.approx(0.4)
    assert found["bytes.unet_step"].value == 4 * 10**9
    assert found["share.matmul.unet_step@b2"].note == ""
    above = bench.measure("b", others=(Setting(batch=4),))["b"]["share.matmul.pipeline@b4"]
    assert above.value == pytest.approx(0.8 * (SAMPLING.steps + 2))
    assert above.value > 1
    assert above.note.startswith("above 1: the machine's own matrix product or copy is slower")


def test_profiles_lie_beside_the_rounds_and_are_made_once(bench: Bench) -> None:
    bench.measure("a", profile=True)
    assert {path.name.rpartition("-")[2] for path in bench.work.glob("a-base-*.profile-*.txt")} == {
        f"{name}.txt" for name in (*STAGES, *CEILINGS)
    }
    assert bench.started == ["a", "a:profile"], "with what the rounds have compiled: before them it would be thrown away"
    bench.measure("a", profile=True)
    assert len(bench.started) == 2


def test_a_profile_that_cannot_be_made_is_told(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.measure("unreadable", profile=True)
    assert "unreadable base has no whole profile: ValueError: weights of no use\n" in capsys.readouterr().err


def test_pytest_benchmark_compares_and_draws_all_rounds_in_one_file(bench: Bench, tmp_path: Path) -> None:
    bench.measure("timed", rounds=2)
    joined = bench.work / driver.ROUNDS_FILE
    content = json.loads(joined.read_text())
    assert [item["params"] for item in content["benchmarks"]] == [
        {"model": "timed", "setting": "base", "stage": stage} for stage in (*STAGES, *CEILINGS)
    ]
    assert all(item["extra_info"]["rounds"] == [[0.5, 0.5]] * 2 and item["stats"]["data"] == [0.5] * 4 for item in content["benchmarks"])
    words = [sys.executable, "-m", "pytest_benchmark", "compare", str(joined), f"--csv={tmp_path / 'table.csv'}"]
    drawing = [f"--histogram={tmp_path / 'drawn'}"] if find_spec("pygal") else []
    subprocess.run([*words, *drawing], capture_output=True, text=True, cwd=tmp_path, check=True)
    rows = (tmp_path / "table.csv").read_text().splitlines()
    assert len(rows) == 1 + len(content["benchmarks"])
    assert sum(row.startswith("timed base unet_step,timed,base,unet_step,0.5,0.5,0.5,") for row in rows) == 1
    if not drawing:
        pytest.skip("compared, but not drawn: pytest-benchmark[histogram] is not installed")
    assert "timed base unet_step" in (tmp_path / "drawn-unet_step_base.svg").read_text(), "a plot for each stage and setting"


def test_a_suites_folder_without_the_benchmark_is_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no bench_pipeline\.py in .*empty"):
        bench.measure("a", suites=tmp_path / "empty")
