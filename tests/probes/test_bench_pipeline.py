"""Whole rounds of the real benchmark file, on a pipeline so small that imports take most of the time."""

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from factories import number
from tiny import SIZE_PX, tiny_unet
from torch._inductor.exc import InductorError

from sdbench.disk import read_json
from sdbench.models.resolve import resolve
from sdbench.probes import meters, plugin, process, setup
from sdbench.probes.driver import measure
from sdbench.probes.process import BENCHMARK_FILE
from sdbench.probes.work import unet_macs
from sdbench.records import Value
from sdbench.records.names import STAGES
from sdbench.settings import Probes, Sampling, Setting

PROBES = Probes(rounds=1, calls=3, warmup=1, settings=(Setting(batch=2, dtype="bfloat16", channels_last=True, vae="tiny"),))
Measure = Callable[..., dict[str, Value]]
SAMPLING = Sampling(steps=4, guidance_scale=3.0, size_px=SIZE_PX, dtype="float32", batch=1)


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the benchmark command in this process, which has done the imports already."""

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            patch.delenv(plugin.DRIVER_VARIABLE)  # a process of its own would end with that one
            patch.syspath_prepend(BENCHMARK_FILE.parent)  # in a process of its own, by PYTHONPATH
            code = pytest.main(command[command.index("pytest") + 1 :])
        sys.modules.pop(BENCHMARK_FILE.stem)
        return subprocess.CompletedProcess(command, code, "", "")

    monkeypatch.setattr(process, "subprocess", SimpleNamespace(**{**vars(subprocess), "run": run}))


@pytest.fixture
def measure_tiny(tiny_pipeline: Path, tmp_path: Path) -> Measure:
    """Measures a tiny pipeline in settings given by their labels, by default in all; returns its values by name."""

    def measured(probes: Probes, *settings: str) -> dict[str, Value]:
        spec = resolve(str(tiny_pipeline), name="tiny")
        values = measure([spec], SAMPLING, probes, work=tmp_path, device="cpu", settings=settings).values["tiny"]
        return {value.name: value for value in values}

    return measured


def test_a_round_measures_every_stage(measure_tiny: Measure) -> None:
    found = measure_tiny(PROBES, "base")
    assert {value.state for value in found.values()} == {"ok"}, [value.reason for value in found.values() if value.reason]
    p50 = {stage: found[f"latency.{stage}.p50"] for stage in STAGES}
    assert all(value.samples and len(value.samples[0]) == 3 and number(value) > 0 for value in p50.values())
    unet = tiny_unet()
    assert found["parameters.unet"].value == sum(weights.numel() for weights in unet.parameters())
    assert found["flops.unet"].value == unet_macs(dict(unet.config), latent_size=4, tokens=20)
    assert number(found["memory.peak_rss"]) > 100, "PyTorch alone takes that, in MiB"
    assert found["memory.weights"].value == pytest.approx(4 * number(found["parameters.pipeline"]) / 2**20, rel=0.01), "buffers come on top"
    assert number(found["cold_start.first_call"]) > 0
    assert number(found["ceiling.matmul"]) > 0
    assert number(found["share.roofline.unet_step"]) > 0
    assert number(found["machine.foreign_cores"]) >= 0
    assert number(found["machine.threads"]) == torch.get_num_threads(), "those of this process, whose variables the round inherits"


def test_every_call_is_timed_until_the_card_has_finished() -> None:
    found = runpy.run_path(str(BENCHMARK_FILE))
    for name in ("test_stage", "test_ceiling"):
        assert [mark.kwargs for mark in found[name].pytestmark if mark.name == "benchmark"] == [{"timer": meters.synchronised_clock}]


@pytest.mark.usefixtures("_in_this_process")
def test_setting_is_applied_and_labels_its_values(measure_tiny: Measure, tmp_path: Path) -> None:
    label = "b2+bfloat16+channels-last+tiny-vae"
    found = measure_tiny(PROBES, label)
    assert {value.state for value in found.values()} == {"ok"}, [value.reason for value in found.values() if value.reason]
    assert all(name.endswith(f"@{label}") for name in found)
    rate, seconds = number(found[f"images_per_second@{label}"]), number(found[f"latency.pipeline.p50@{label}"])
    assert rate == pytest.approx(2 / seconds)
    (raw,) = tmp_path.glob("tiny-b2*-0.json")
    assert read_json(raw)["benchmarks"][0]["extra_info"]["configs"]["vae"]["_class_name"] == "AutoencoderTiny"


@pytest.mark.usefixtures("_in_this_process")
def test_model_too_large_to_load_is_reported_and_not_retried(
    measure_tiny: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_out_of_memory(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB. Of the allocated memory 70 GiB is held elsewhere")

    monkeypatch.setattr(setup, "load", raise_out_of_memory)
    found = measure_tiny(PROBES.model_copy(update={"rounds": 2, "settings": ()}))
    reasons = {value.reason for name, value in found.items() if name.startswith("latency.")}
    assert reasons == {"out of memory while the model was loaded: no batch fits. CUDA out of memory. Tried to allocate 9 GiB"}
    assert len(list(tmp_path.glob("tiny-base-*.log"))) == 1


@pytest.mark.usefixtures("_in_this_process")
def test_what_cannot_be_compiled_is_reported_and_not_retried(
    measure_tiny: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InductorError(RuntimeError("Failed to find C compiler"), None)

    monkeypatch.setattr(setup, "apply_setting", lambda pipe, _: pipe.unet.register_forward_pre_hook(refuse))
    found = measure_tiny(PROBES.model_copy(update={"rounds": 2, "settings": (Setting(compile="whole"),)}), "compiled")
    (reason,) = {value.reason for name, value in found.items() if name.startswith("latency.")}  # no other stage was tried
    assert reason.startswith("not compiled: InductorError: RuntimeError: Failed to find C compiler")
    assert len(list(tmp_path.glob("tiny-compiled-*.log"))) == 1


@pytest.mark.slow
def test_compiled_settings_report_compilation_separately_and_reuse_it_from_disk(measure_tiny: Measure, tmp_path: Path) -> None:
    found = measure_tiny(Probes(rounds=2, calls=2, warmup=1, settings=(Setting(compile="whole"), Setting(compile="blocks"))))
    assert {value.state for value in found.values()} == {"ok"}, [value.reason for value in found.values() if value.reason]
    for label in ("compiled", "compiled-blocks"):
        cold, warm = (found[f"cold_start.{name}@{label}"] for name in ("first_call_compiling", "first_call"))
        assert (cold.n, warm.n) == (1, 1)
        assert number(cold) > number(warm)
        assert len(list((tmp_path / "compiled").glob(f"tiny-{label}-{'?' * 16}"))) == 1  # one cache, by digest
