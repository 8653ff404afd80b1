import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sdbench.errors import UserError
from sdbench.models.spec import ModelSpec
from sdbench.probes import driver
from sdbench.probes.driver import measure
from sdbench.probes.request import STAGES
from sdbench.records import Value
from sdbench.suites import Probes, Sampling

SAMPLING = Sampling(steps=2, guidance_scale=5.0, size_px=64, dtype="float32", batch=4)
# Stands for the measuring process: a clock that runs half a second between two looks, and models that behave as they are called.
CHILD = """
import itertools, os, signal
from pathlib import Path
import pytest
from sdbench.probes.request import STAGES, Request

clock = itertools.count(0, 0.5).__next__
diary = Path(__file__).with_name("diary")

@pytest.fixture(scope="module")
def request_():
    request = Request.from_environment()
    with diary.open("a") as file:
        file.write(request.spec.name + "\\n")
    if request.spec.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if request.spec.name == "unreadable":
        raise ValueError("weights of\\n no use")
    return request

@pytest.mark.benchmark(timer=clock)
@pytest.mark.parametrize("stage", STAGES)
def test_stage(stage, request_, benchmark):
    if stage == "vae_decode" and request_.spec.name == "half":
        raise MemoryError("out of memory: tried to allocate 9 GiB")
    benchmark.extra_info.update(parameters={"unet": 7, "pipeline": 11}, load_s=2.5, memory_mib={"peak_rss": 300.0})
    if stage == "pipeline":
        benchmark.extra_info["first_call_s"] = 1.5
    benchmark.pedantic(lambda: None, rounds=request_.calls)
"""


@dataclass
class Bench:
    work: Path
    suites: Path

    def measure(self, *names: str, rounds: int = 1, calls: int = 2, **changes: Any) -> dict[str, dict[str, Value]]:
        specs = [ModelSpec(name, "scenes", "vega", "random", "") for name in names]
        probes = Probes(rounds=rounds, calls=calls, warmup=0)
        settings = {"work": self.work, "suites": self.suites, "device": "cpu", "dtype": "float32", **changes}
        measured = measure(specs, SAMPLING, probes, **settings)
        return {name: {value.name: value for value in values} for name, values in measured.items()}

    @property
    def started(self) -> list[str]:
        return (self.suites / "diary").read_text().split()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / driver.BENCHMARKS).write_text(CHILD)
    monkeypatch.setattr(driver.flops, "unet_macs", lambda **_: 1234)
    monkeypatch.setenv("PYTEST_ADDOPTS", "--an-option-of-the-user")
    return Bench(tmp_path / "work", tmp_path / "suites")


def test_models_take_turns_and_a_second_run_measures_only_what_is_missing(bench: Bench) -> None:
    measured = bench.measure("a", "b", rounds=2)
    assert bench.started == ["a", "b", "a", "b"]
    assert bench.measure("a", "b", rounds=2) == measured
    assert len(bench.started) == 4
    bench.measure("b", rounds=3)
    assert bench.started[4:] == ["b"]


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
        "flops.unet": 1234,
    }
    assert found["memory.peak_rss"].value == 300
    assert found["memory.peak_rss"].samples == ((300.0,), (300.0,))
    assert (found["cold_start.load"].value, found["cold_start.first_call"].value) == (2.5, 1.5)
    assert {value.state for value in found.values()} == {"ok"}


def test_the_raw_files_of_pytest_benchmark_are_kept_with_the_machine(bench: Bench) -> None:
    bench.measure("a")
    (raw,) = bench.work.glob("a-*-0.json")
    content = json.loads(raw.read_text())
    assert [item["stats"]["data"] for item in content["benchmarks"]] == [[0.5, 0.5]] * 4
    assert content["machine_info"]["device"] == "cpu"


@pytest.mark.parametrize(
    ("name", "reason"), [("killed", "SIGKILL"), ("unreadable", "ValueError: weights of no use")], ids=["killed", "unreadable"]
)
def test_a_model_that_fails_loses_only_itself_and_is_tried_again(bench: Bench, name: str, reason: str) -> None:
    measured = bench.measure(name, "a")
    lost = {value.name: value for value in measured[name].values() if value.state == "failed"}
    assert set(lost) == set(measured["a"]) - {"flops.unet"}, "the FLOPs of random weights need no process"
    assert all(reason in value.reason and value.value is None for value in lost.values())
    assert {value.state for value in measured["a"].values()} == {"ok"}
    bench.measure(name, "a")
    assert bench.started == [name, "a", name]


def test_a_stage_that_fails_leaves_the_others(bench: Bench) -> None:
    found = bench.measure("half")["half"]
    failed = {value.name: value.reason for value in found.values() if value.state == "failed"}
    assert set(failed) == {f"latency.vae_decode.{mark}" for mark in ("p50", "p90", "p99")}
    assert set(failed.values()) == {"MemoryError: out of memory: tried to allocate 9 GiB"}
    bench.measure("half")
    assert bench.started == ["half", "half"], "an incomplete round is no finished one"


def test_a_round_that_fails_beside_others_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.measure("a")
    monkeypatch.setattr(driver, "ROUND_LIMIT_S", 0.01)
    p50 = bench.measure("a", rounds=2)["a"]["latency.pipeline.p50"]
    assert p50.samples == ((0.5, 0.5),)
    assert p50.note == "1 of 2 rounds failed: no end after 0.01 s"


def test_a_broken_benchmark_file_is_the_reason(bench: Bench) -> None:
    (bench.suites / driver.BENCHMARKS).write_text("import no_such_module_at_all\n")
    assert "No module named 'no_such_module_at_all'" in bench.measure("a")["a"]["latency.pipeline.p50"].reason


def test_other_settings_are_other_rounds(bench: Bench) -> None:
    spec, probes = ModelSpec("a", "scenes", "vega", "random", ""), Probes(rounds=1, calls=2, warmup=0)

    def stem(spec: ModelSpec = spec, **changes: Any) -> str:
        settings = {
            "sampling": SAMPLING,
            "calls": probes.calls,
            "warmup": 0,
            "device": "cpu",
            "machine": driver.this_machine("cpu"),
            "dtype": "float32",
        }
        return driver._stem(driver.Request.model_validate({"spec": spec, **settings, **changes}), bench.suites)

    first = stem()
    assert first == stem(sampling=SAMPLING.model_copy(update={"batch": 1})), "latency is of one picture, whatever the batch"
    others = [
        stem(replace(spec, architecture="ssd-1b")),
        stem(sampling=SAMPLING.model_copy(update={"steps": 3})),
        stem(calls=3),
        stem(warmup=1),
        stem(dtype="bfloat16"),
        stem(machine=driver.this_machine("cpu").model_copy(update={"cores": 999})),
    ]
    assert len({first, *others}) == 7


def test_a_suites_folder_without_the_benchmark_is_refused(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no bench_pipeline\.py in .*empty"):
        bench.measure("a", suites=tmp_path / "empty")
