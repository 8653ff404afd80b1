"""The probes on a real CUDA device."""

import gc
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch
from tiny import SIZE_PX

from sdbench.generate import call_arguments
from sdbench.models.loading import load
from sdbench.models.resolve import resolve
from sdbench.probes import capacity
from sdbench.probes.driver import measure
from sdbench.probes.meters import MIB
from sdbench.probes.monitor import Gpu, Monitor
from sdbench.probes.stages import Stages
from sdbench.records.names import without_setting
from sdbench.scenes.grammar import EXAMPLE
from sdbench.settings import Probes, Sampling, Setting

pytestmark = pytest.mark.gpu
# Not available in every container.
NEEDS_NVML = {"memory.process", "energy.pipeline", "machine.power", "machine.power_limit", "machine.foreign_processes"}
SAMPLING = Sampling(steps=20, guidance_scale=3.0, size_px=SIZE_PX, dtype="bfloat16", batch=1)


def test_nvml_and_cuda_agree_on_the_card_and_this_process() -> None:
    allocation = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    state = Gpu("cuda").state()
    assert 100 < state["sm_mhz"] < 5000
    assert 10 < state["temperature_c"] < 110
    listed = Gpu("cuda").processes()
    assert listed is not None
    if os.getpid() in listed:  # in a container of its own process ids it is not
        assert (Monitor("cuda").process_mib() or 0) >= allocation.numel() / MIB


def test_power_under_load_is_above_that_at_rest_and_within_the_limit() -> None:
    matrix = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")

    def multiply() -> None:
        torch.mm(matrix, matrix)
        torch.cuda.synchronize()

    def mean_power_w(work: Callable[[], object]) -> float:
        card_monitor, end = Monitor("cuda"), time.perf_counter() + 3
        while time.perf_counter() < end:
            work()
        power_w = card_monitor.report()["power_w"]
        if power_w is None:
            pytest.skip("NVML does not count the energy of this card")
        return float(power_w)

    at_rest, under_load = mean_power_w(lambda: time.sleep(0.1)), mean_power_w(multiply)
    assert 1.3 * at_rest < under_load < 1.1 * Gpu("cuda").state()["power_limit_w"]


def test_card_is_found_before_a_cuda_context_exists() -> None:
    code = (
        "import torch; from sdbench.probes.monitor import Gpu; card = Gpu('cuda'); before = card.used_mib();"
        "torch.zeros(1, device='cuda'); print(card.used_mib() - before)"
    )
    grown_mib = float(subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True).stdout)
    assert 100 < grown_mib < 2000


def test_round_on_a_card_agrees_with_manual_timing(tiny_pipeline: Path, tmp_path: Path) -> None:
    probes = Probes(rounds=2, calls=10, warmup=5)
    values = measure([resolve(str(tiny_pipeline), name="tiny")], SAMPLING, probes, work=tmp_path, device="cuda").values
    found = {value.name: value for value in values["tiny"]}
    failed = {value.name: value.reason for value in found.values() if value.state != "ok"}
    assert set(failed) <= NEEDS_NVML, failed
    assert found["memory.smallest_card"].value == 8
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # if an earlier test trained here, the thread of its backward pass has one of 32 MiB
    held = torch.cuda.memory_allocated()
    pipe = load(resolve(str(tiny_pipeline)), dtype="bfloat16", device="cuda")
    seconds = []
    for _ in range(20):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]  # torch's
        torch.cuda.reset_peak_memory_stats()
        start.record()
        pipe(**call_arguments(SAMPLING, [EXAMPLE]), generator=torch.Generator().manual_seed(0))
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1000)
    assert found["memory.peak_allocated"].value == pytest.approx((torch.cuda.max_memory_allocated() - held) / MIB, rel=0.02)
    assert found["latency.pipeline.p50"].value == pytest.approx(median(seconds[10:]), rel=0.2), (
        "a tiny model is launch-bound, so times vary"
    )


def test_full_size_random_weights_have_every_value(tmp_path: Path) -> None:
    probes, sampling = Probes(rounds=1, calls=2, warmup=1), SAMPLING.model_copy(update={"steps": 2, "size_px": 1024})
    values = measure([resolve("vega", random=True)], sampling, probes, work=tmp_path, device="cuda").values["vega"]
    failed = {value.name: value.reason for value in values if value.state != "ok"}
    assert set(failed) <= NEEDS_NVML, failed


def test_smallest_card_is_found_under_a_memory_cap_that_is_lifted_again(tiny_pipeline: Path) -> None:
    pipe = load(resolve(str(tiny_pipeline)), dtype="bfloat16", device="cuda")
    stages = Stages(pipe, SAMPLING.model_copy(update={"size_px": 512}))  # large enough to need memory of its own
    assert capacity.smallest_card(stages, "cuda", context_mib=500) == 8
    assert capacity.smallest_card(stages, "cuda", context_mib=80 * 1024) is None, "such a context leaves no memory on any card"
    total = torch.cuda.get_device_properties("cuda").total_memory
    torch.cuda.empty_cache()
    torch.empty(int(0.5 * total), dtype=torch.uint8, device="cuda")


def test_another_process_on_the_card_is_detected() -> None:
    code = "import torch, time; x = torch.zeros(2**28, device='cuda'); torch.cuda.synchronize(); print('there', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, encoding="utf-8") as other:
        assert other.stdout
        assert other.stdout.readline() == "there\n"
        torch.zeros(1, device="cuda")
        card_monitor = Monitor("cuda")
        time.sleep(0.1)
        processes = card_monitor.report()["foreign_processes"]
        other.kill()
    if processes is None:
        pytest.skip("NVML does not list this process here, so it cannot tell others from it")
    assert str(other.pid) in processes


@pytest.mark.timeout(900)
@pytest.mark.parametrize("setting", [Setting(compile="whole"), Setting(compile="blocks"), Setting(batch=4, vae="tiny", dtype="float16")])
def test_settings_run_on_a_card(setting: Setting, tiny_pipeline: Path, tmp_path: Path) -> None:
    probes = Probes(rounds=2, calls=3, warmup=1, settings=(setting,))
    values = measure(
        [resolve(str(tiny_pipeline), name="tiny")],
        SAMPLING,
        probes,
        work=tmp_path,
        device="cuda",
        settings=[setting.label],
    ).values
    failed = {value.name: value.reason for value in values["tiny"] if value.state != "ok"}
    assert {without_setting(name) for name in failed} <= NEEDS_NVML, failed
