"""Values of rounds on a card, computed without one."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from factories import make_request

from sdbench.probes import capacity, counts, work
from sdbench.probes.request import CEILINGS, REQUEST_VARIABLE
from sdbench.probes.rounds import Round
from sdbench.probes.values import values
from sdbench.probes.work import Load
from sdbench.records import Value
from sdbench.records.names import RATED_PROBES, STAGES, is_probe, without_setting
from sdbench.settings import Setting

STATE = {"sm_mhz": 1980, "memory_mhz": 2619, "temperature_c": 61, "power_limit_w": None, "slowed_by": ["power cap"]}
WATCH = {"foreign_cores": 0.0, "states": [STATE, STATE], "foreign_processes": {}, "power_w": 300.0, "throttled": {}}


def values_on_a_card(**info: Any) -> dict[str, Value]:
    """Values of two rounds in which everything was measured, except as `info` changes it."""
    measured = {
        "parameters": {"unet": 7, "pipeline": 11},
        "weights_bytes": 2**20,
        "load_s": 2.0,
        "first_call_s": 1.0,
        "compiled_anew": False,
        "amount": dict.fromkeys(CEILINGS, 1e12),
        "memory_mib": {"peak_rss": 300.0, "peak_data": 200.0, "peak_allocated": 400.0, "peak_reserved": 500.0},
        "watch": WATCH,
        "process_mib": 900.0,
        "context_mib": 400.0,
        "smallest_card_gb": 12,
    }
    one_round = Round(dict.fromkeys((*STAGES, *CEILINGS), (0.5, 0.5)), measured | info, {})
    return {value.name: value for value in values(make_request(device="cuda"), [one_round, one_round], {})}


def test_the_gate_tells_by_its_name_that_a_value_is_no_image_metric() -> None:
    """All names, whatever the machine: the committed records come from one without a card."""
    names = {*values_on_a_card(), *(value.name for value in unmeasured("cuda"))}
    examples = ("cold_start.first_call_compiling@compiled", "share.matmul.pipeline@compiled", "bytes.unet_step")
    assert {"energy.pipeline", "machine.power", *examples} <= names
    assert [name for name in names if not is_probe(name)] == []


def test_names_of_the_probes_that_a_policy_may_weigh_are_those_that_rounds_give() -> None:
    found = {without_setting(value.name) for device in ("cpu", "cuda") for value in unmeasured(device) if value.direction != "neither"}
    assert found == RATED_PROBES


def unmeasured(device: str) -> list[Value]:
    """All values of a model without rounds, and its counts."""
    counted = make_request(random=True)
    return [*values(make_request(device=device, compile="whole"), [], counts.loads(counted, [])), *counts.values(counted, [])]


def test_bytes_of_a_vae_that_overflows_in_half_precision_are_those_of_float32() -> None:
    request = make_request(dtype="float16", random=True)
    configs = work.random_configs(request.spec)

    def count(*, force_upcast: bool) -> dict[str, float | None]:
        seen = {"configs": configs | {"vae": configs["vae"] | {"force_upcast": force_upcast}}, "zero_negative": True}
        return {value.name: value.value for value in counts.values(request, [Round({}, seen)])}

    half, full = count(force_upcast=False), count(force_upcast=True)
    changed = {name for name in half if half[name] != full[name]}
    assert (changed, full["bytes.vae_decode"]) == ({"bytes.vae_decode"}, 2 * (half["bytes.vae_decode"] or 0))


def test_memory_and_conditions_of_a_round_are_those_of_its_pipeline(tmp_path: Path) -> None:
    stages = {stage: {"load_s": 2.0, "memory_mib": {"peak_rss": number}} for number, stage in enumerate(STAGES, 1)}
    items = [{"params": {"stage": stage}, "extra_info": info, "stats": {"data": [0.5]}} for stage, info in stages.items()]
    (tmp_path / "round.json").write_text(json.dumps({"benchmarks": items}), encoding="utf-8")
    assert Round.read(tmp_path / "round.json", {}).info == {"load_s": 2.0, "memory_mib": {"peak_rss": 1}, "amount": {}}
    assert Round.read(tmp_path / "round.json", {"pipeline": "out of memory"}).info == {"load_s": 2.0, "amount": {}}


def test_memory_values_of_a_card() -> None:
    found = values_on_a_card()
    expected = {
        "weights": 1,
        "peak_rss": 300,
        "peak_allocated": 400,
        "peak_reserved": 500,
        "process": 900,
        "context": 400,
        "smallest_card": 12,
    }
    assert {name: found[f"memory.{name}"].value for name in expected} == expected
    assert "memory.peak_data" not in found, "it depends on the dtype of the file that the host read"
    assert found["memory.weights"].n == 2
    assert {value.name for value in found.values() if value.state != "ok"} == {"machine.power_limit"}
    assert found["memory.context"].note == ""
    assert found["latency.pipeline.p50"].note == "GPU clock throttled: power cap"


def test_energy_of_an_image_is_mean_power_times_the_time_of_a_call() -> None:
    rounds = [
        Round({"pipeline": calls}, {"watch": WATCH | {"power_w": power_w}})
        for calls, power_w in (((1.0, 3.0), 300.0), ((1.0, 1.0), 200.0), ((1.0, 2.0), 400.0), ((9.0, 9.0), None))
    ]
    found = {value.name: value for value in values(make_request(device="cuda", batch=4), rounds, {})}
    energy, power = found["energy.pipeline@b4"], found["machine.power@b4"]
    assert (energy.value, energy.unit, energy.direction, energy.samples) == (150, "J", "lower", ((150,), (50,), (150,)))
    assert (power.value, power.n, power.note) == (300, 3, "200..400")
    assert "energy.pipeline" not in {value.name for value in values(make_request(), rounds, {})}, "a processor's is not counted"


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({"watch": WATCH | {"power_w": None}}, "NVML does not report it"),
        ({"watch": {"foreign_cores": 0.0, "card": "NVML: Not Found"}}, "NVML: Not Found"),
    ],
)
def test_energy_that_is_not_counted_has_a_reason(info: dict[str, Any], reason: str) -> None:
    energy = values_on_a_card(**info)["energy.pipeline"]
    assert (energy.value, energy.state, energy.reason) == (None, "failed", reason)
    (failed,) = (value for value in values(make_request(device="cuda"), [Round({}, {}, {"pipeline": "it broke"})], {}) if value.unit == "J")
    assert failed.reason == "it broke"


@pytest.mark.parametrize(
    ("shares", "note"),
    [
        (({"power cap": 0.4, "thermal slowdown": 0.0}, {"power cap": 0.2}), "power cap for 40% of the time"),
        (({"thermal slowdown": 0.5},), "power cap, thermal slowdown for 50% of the time"),  # the reading at the end still counts
        (({"power cap": 0.004},), "power cap"),
    ],
)
def test_throttling_is_noted_with_its_share_of_the_time(shares: tuple[dict[str, float], ...], note: str) -> None:
    rounds = [Round({"pipeline": (0.5, 0.5)}, {"watch": WATCH | {"throttled": each}}) for each in shares]
    found = {value.name: value for value in values(make_request(device="cuda"), rounds, {})}
    assert found["latency.pipeline.p50"].note.endswith(f"GPU clock throttled: {note}")


def test_other_processes_on_the_card_are_noted_with_the_memory_of_the_largest() -> None:
    """NVML does not tell how much each of them holds."""
    found = values_on_a_card(watch=WATCH | {"foreign_processes": {"77": 512.0, "78": None, "79": 256.0}})
    assert found["latency.pipeline.p50"].note.startswith("3 other processes on the GPU, the largest with 512 MiB")


@pytest.mark.parametrize(("last_s", "note"), [(0.9, "drift -10% from the first round to the last"), (1.04, "")])
def test_drift_is_that_of_the_last_round_from_the_first(last_s: float, note: str) -> None:
    rounds = [Round({"pipeline": (seconds, seconds)}) for seconds in (1.0, 2.0, last_s)]
    found = {value.name: value for value in values(make_request(), rounds, {})}
    assert found["machine.drift"].value == pytest.approx(last_s - 1)
    assert found["latency.pipeline.p50"].note == note


def test_unavailable_values_give_their_reason() -> None:
    found = values_on_a_card(process_mib=None, smallest_card_gb=None)
    assert found["memory.process"].reason == "NVML does not list this process"
    assert found["memory.context"].value == 400
    assert found["memory.context"].note == "from the GPU's total use, as if nothing else were on it: NVML does not list this process"
    grown = values_on_a_card(process_mib=None, used_before_mib=0.0)["memory.context"]
    assert grown.note == "from how much the GPU's use grew since the process began: NVML does not list this process"
    assert found["memory.smallest_card"].reason == f"no size up to {capacity.CARDS_GB[-1]} GB that this GPU covers is sure to hold it"


@pytest.mark.parametrize(("threads", "note"), [(64, "64 threads on 8 cores, which wait for each other: set OMP_NUM_THREADS=8"), (8, "")])
def test_more_threads_than_cores_are_noted(threads: int, note: str) -> None:
    """PyTorch takes a thread for each core of the host, whatever the quota of the container."""
    rounds = [Round({"pipeline": (0.5, 0.5)}, {"watch": {"threads": threads, "foreign_cores": 0.0}})] * 2
    found = {value.name: value for value in values(make_request(), rounds, {})}
    assert found["latency.pipeline.p50"].note == note


@pytest.mark.parametrize(("cores", "note"), [((0.1, 1.5, 0.2), "other processes kept up to 1.5 cores busy"), ((0.1, 0.1, 0.1), "")])
def test_work_of_other_processes_is_noted_with_that_of_the_worst_round(cores: tuple[float, ...], note: str) -> None:
    """The value beside the note is the median of the rounds."""
    rounds = [Round({"pipeline": (0.5, 0.5)}, {"watch": {"foreign_cores": number}}) for number in cores]
    found = {value.name: value for value in values(make_request(), rounds, {})}
    assert found["latency.pipeline.p50"].note == note
    assert found["machine.foreign_cores"].value == pytest.approx(sorted(cores)[1])


@pytest.mark.parametrize(
    ("returns_s", "note"), [(0.46, "; host-bound: the call of a UNet step returns after 460.0 of 500.0 ms"), (0.3, "")]
)
def test_step_whose_call_returns_late_is_noted_as_bound_by_the_host(returns_s: float, note: str) -> None:
    assert values_on_a_card(returns_s=returns_s)["latency.pipeline.p50"].note == f"GPU clock throttled: power cap{note}"


def test_latencies_are_quantiles_of_all_calls_and_images_per_second_follow_the_median() -> None:
    calls = np.random.default_rng(0).permutation(np.arange(1.0, 101)).reshape(2, 50)
    rounds = [Round({"pipeline": tuple(of_round)}, {}, {}) for of_round in calls.tolist()]
    found = {value.name: value for value in values(make_request(batch=4), rounds, {})}
    p50, p90, p99 = (found[f"latency.pipeline.{mark}@b4"] for mark in ("p50", "p90", "p99"))
    assert [p50.value, p90.value, p99.value] == [50.5, pytest.approx(90.1), pytest.approx(99.01)]
    assert (p50.samples, p90.samples) == (tuple(map(tuple, calls.tolist())), None)
    rate = found["images_per_second@b4"]
    assert [rate.value, rate.low, rate.high] == pytest.approx([4 / 50.5, 4 / (p50.high or 0), 4 / (p50.low or 0)])


def test_what_the_rounds_lack_is_left_out_or_has_a_reason() -> None:
    def of(label: str, *rounds: Round, **setting: Any) -> list[Value | None]:
        found = {value.name: value for value in values(make_request(**setting), rounds, {})}
        return [found.get(f"{name}{label}") for name in ("images_per_second", "cold_start.first_call", "cold_start.first_call_compiling")]

    failed = of("", Round({}, {}, {"pipeline": "it broke"}))
    assert [value and value.reason for value in failed] == ["it broke", "it broke", None]
    failed = of("@compiled", Round({}, {}, {"pipeline": "it broke"}), compile="whole")
    assert [value and value.reason for value in failed] == ["it broke"] * 3
    rate, *_ = of("", Round({"pipeline": (0.5,)}))
    assert rate
    assert (rate.value, rate.low, rate.high) == (2, None, None)
    anew, warm = (Round({"pipeline": (0.5,)}, {"first_call_s": 9.0, "compiled_anew": is_anew}) for is_anew in (True, False))
    for measured, reasons in (
        (anew, ["every round compiled from scratch", ""]),
        (warm, ["", "no round compiled from scratch: the compiler's cache was warm"]),
    ):
        _, *calls = of("@compiled", measured, compile="whole")
        assert [value and value.reason for value in calls] == reasons


def test_random_weights_are_not_loaded_and_their_first_call_is_not_the_first() -> None:
    measured = Round({"pipeline": (0.5,)}, {"load_s": 2.0, "first_call_s": 1.0, "compiled_anew": False})
    random, own = ({value.name: value for value in values(make_request(random=each), [measured], {})} for each in (True, False))
    assert (own["cold_start.load"].value, own["cold_start.first_call"].note) == (2.0, "")
    assert "cold_start.load" not in random
    assert random["cold_start.first_call"].note == "after the images that calibrate random weights"


@pytest.mark.parametrize(
    ("load", "matmul", "least"), [(Load(4e11, 2e11), 0.4, 0.4), (Load(1e11, 4e11), 0.1, 0.8), (Load(24e11, 2e11), 2.4, 2.4)]
)
def test_share_of_the_roofline_is_of_the_slower_of_work_and_movement(load: Load, matmul: float, least: float) -> None:
    """The ceilings are those of the faster round, 1e12 FLOPs and 5e11 bytes per second; calls take 1.6, 2 or 2.5 s."""
    pipeline: list[tuple[float, ...]] = [(1.6, 1.6), (2.0, 2.0), (2.5, 2.5)]
    ceilings = [(3.0, 2.0), (1.0, 4.0), (2.0, 2.0)]
    rounds = [
        Round({"pipeline": calls} | dict.fromkeys(CEILINGS, each), {"amount": {"matmul": 1e12, "copy": 5e11}}, {})
        for calls, each in zip(pipeline, ceilings, strict=True)
    ]
    found = {value.name: value for value in values(make_request(), rounds, {"pipeline": load})}
    assert (found["ceiling.matmul"].value, found["ceiling.copy"].value) == (0.5, 250), "the median round, in TFLOP/s and GB/s"
    p50 = found["latency.pipeline.p50"]
    for name, seconds in (("matmul", matmul), ("roofline", least)):
        share = found[f"share.{name}.pipeline"]
        assert [share.value, share.low, share.high] == pytest.approx([seconds / 2, seconds / (p50.high or 0), seconds / (p50.low or 0)])
        assert (share.n, share.note.startswith("above 1: ")) == (6, seconds > 2)
    for measured in rounds:
        for name in CEILINGS:
            del measured.seconds[name]
    unknown = {value.name: value for value in values(make_request(), rounds, {"pipeline": load})}
    assert {unknown[f"share.{name}.pipeline"].reason for name in ("matmul", "roofline")} == {"no ceiling was measured"}


@pytest.fixture
def benchmarks() -> Any:
    path = Path(__file__).parents[2] / "suites" / "bench_pipeline.py"
    spec = importlib.util.spec_from_file_location("bench_pipeline", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_seconds_until_return_excludes_the_cards_work(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host takes 3 s to launch 10 s of work on a card that is busy for 5 s beforehand."""
    host, card = [0.0], [5.0]

    def call() -> None:
        host[0] += 3
        card[0] = max(card[0], host[0]) + 10

    def synchronised_clock() -> float:
        host[0] = max(host[0], card[0])
        return host[0]

    monkeypatch.setattr(benchmarks.meters, "synchronised_clock", synchronised_clock)
    monkeypatch.setattr(benchmarks.time, "perf_counter", lambda: host[0])
    assert benchmarks.seconds_until_return(call) == 3


def test_pipeline_profile_covers_one_step(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    profiled: list[str] = []
    monkeypatch.setenv(REQUEST_VARIABLE, "a.request")
    monkeypatch.setattr(benchmarks.profiling, "write", lambda call, *_: profiled.append(call))
    stages = SimpleNamespace(prepare=lambda stage: stage)
    for stage in STAGES:
        benchmarks.test_stage(stage, SimpleNamespace(request=SimpleNamespace(profile=True, device="cpu"), stages=stages), None)
    assert profiled == ["short", *STAGES[1:]]


class FakeStages:
    """Stages whose calls are recorded, and of which none fits in memory where `error` is given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.events, self.error, self.batch = list[Any](), error, 8

    def prepare(self, stage: str) -> Any:
        return lambda: self.events.append(f"first {stage}")

    def pedantic(self, _: Any, rounds: int, warmup_rounds: int) -> None:
        self.events.append(f"{warmup_rounds} warm-up and {rounds} timed calls")
        if self.error:
            raise self.error

    def restore(self) -> None:
        self.events.append("restored")

    def note(self, event: str, result: Any = None) -> Any:
        """A function that records its call as an event, and returns a result."""

        def noted(*_: Any) -> Any:
            self.events.append(event)
            return result

        return noted


def time_on_a_card(stages: FakeStages, stage: str, benchmarks: Any, monkeypatch: pytest.MonkeyPatch, *, warmup: int = 2) -> dict[str, Any]:
    """Time a stage on a card that NVML lists this process on; returns the information beside the times."""
    watch = SimpleNamespace(process_mib=lambda: 900.0, growth_mib=lambda _: 800.0, report=dict)
    monkeypatch.setattr(benchmarks, "Monitor", stages.note("watched", watch))
    monkeypatch.setattr(benchmarks.meters, "reset_peak_memory", stages.note("peaks reset"))
    monkeypatch.setattr(benchmarks.meters, "peak_memory_mib", stages.note("peaks read", {"peak_allocated": 400.0}))
    monkeypatch.setattr(benchmarks.capacity, "context_mib", lambda _, held_mib: held_mib - 500)
    monkeypatch.setattr(benchmarks, "seconds_until_return", lambda _: 0.25)
    request = SimpleNamespace(profile=False, device="cuda", calls=4, warmup=warmup, setting=Setting(batch=8))
    running = SimpleNamespace(request=request, stages=stages, info={"load_s": 2.0, "used_before_mib": 100.0}, pipeline_info={})
    info: dict[str, Any] = {}
    benchmarks.test_stage(stage, running, SimpleNamespace(extra_info=info, pedantic=stages.pedantic))
    assert running.pipeline_info is info or stage != "pipeline", "the smallest card is added once it is found"
    return info


@pytest.mark.parametrize("warmup", [1, 2])
def test_emptied_cache_is_filled_again_before_a_call_is_timed(warmup: int, benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    time_on_a_card(stages := FakeStages(), "pipeline", benchmarks, monkeypatch, warmup=warmup)
    assert stages.events[-3:-1] == ["peaks reset", "1 warm-up and 4 timed calls"]


def test_peaks_are_of_the_calls_after_the_cold_one(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = time_on_a_card(stages := FakeStages(), "pipeline", benchmarks, monkeypatch)
    assert stages.events == ["first pipeline", "watched", "peaks reset", "1 warm-up and 4 timed calls", "peaks read"]
    assert (found["memory_mib"], found["process_mib"], found["context_mib"]) == ({"peak_allocated": 400.0}, 900, 400)
    assert "returns_s" not in found
    found = time_on_a_card(stages := FakeStages(), "unet_step", benchmarks, monkeypatch)
    assert stages.events == ["watched", "peaks reset", "2 warm-up and 4 timed calls", "peaks read"]
    assert found["returns_s"] == 0.25
    assert "process_mib" not in found


@pytest.mark.parametrize(("batch", "fits"), [(4, "batch 4 fits"), (0, "no batch fits")])
def test_what_does_not_fit_says_which_batch_does(batch: int, fits: str, benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = FakeStages(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. Of the allocated memory 70 GiB is held"))
    monkeypatch.setattr(benchmarks.capacity, "fitting_batch", stages.note("tried", batch))
    message = rf"^out of memory at batch 8; {fits}\. CUDA out of memory\. Tried to allocate 9 GiB$"
    with pytest.raises(pytest.fail.Exception, match=message):
        time_on_a_card(stages, "pipeline", benchmarks, monkeypatch)
    assert stages.events[-2:] == ["restored", "tried"], "the pipeline leaves its VAE in float32 where decoding fails"
    with pytest.raises(RuntimeError, match="mat1"):
        time_on_a_card(FakeStages(RuntimeError("mat1 and mat2 cannot be multiplied")), "pipeline", benchmarks, monkeypatch)


def test_failing_memory_cap_affects_only_the_smallest_card(benchmarks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> int:
        raise ValueError("no such cap")

    monkeypatch.setattr(capacity, "smallest_card", broken)
    pipeline_info = {"process_mib": 900.0, "context_mib": 400.0}
    benchmarks.test_smallest_card(SimpleNamespace(request=SimpleNamespace(device="cuda"), stages=None, pipeline_info=pipeline_info))
    found = values_on_a_card(smallest_card_gb=None, **pipeline_info)
    assert (found["memory.process"].value, found["memory.context"].value) == (900, 400)
    assert found["memory.smallest_card"].reason == "ValueError: no such cap"
