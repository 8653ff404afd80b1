"""A whole round of the real benchmark file, on a pipeline so small that it costs little but its imports."""

from pathlib import Path

from tiny import SIZE_PX, tiny_unet

from sdbench.models.spec import resolve
from sdbench.probes.driver import measure
from sdbench.probes.flops import unet_macs
from sdbench.suites import Probes, Sampling

SUITES = Path(__file__).parents[2] / "suites"
SAMPLING = Sampling(steps=4, guidance_scale=3.0, size_px=SIZE_PX, dtype="float32", batch=1)


def test_a_round_measures_every_stage(made: Path, tmp_path: Path) -> None:
    probes = Probes(rounds=1, calls=3, warmup=1)
    values = measure([resolve(str(made), name="tiny")], SAMPLING, probes, work=tmp_path, suites=SUITES, device="cpu")
    found = {value.name: value for value in values["tiny"]}
    assert {value.state for value in found.values()} == {"ok"}, [value.reason for value in found.values() if value.reason]
    p50 = {stage: found[f"latency.{stage}.p50"] for stage in ("pipeline", "text_encoders", "unet_step", "vae_decode")}
    assert all(value.samples and len(value.samples[0]) == 3 and value.value > 0 for value in p50.values())
    unet = tiny_unet()
    assert found["parameters.unet"].value == sum(weights.numel() for weights in unet.parameters())
    assert found["flops.unet"].value == unet_macs(dict(unet.config), latent_size=4, tokens=20)
    assert found["memory.peak_rss"].value > 100, "PyTorch alone takes that, in MiB"
    assert found["cold_start.first_call"].value > 0
