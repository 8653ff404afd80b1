"""Make the pool that the gate is calibrated on: pictures of embedded Vega and of faults injected into it, and their scores.

    python suites/calibrate_gate.py pool [--work DIR] [--student FOLDER]

`pool` samples (a killed one goes on where it stood) and writes `results/calibration/pool.parquet`; `judge` needs only that file.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sdbench import suites

POOL = Path("results/calibration/pool.parquet")
MODEL, SEEDS, PROMPTS = "scenes-vega", (2024, 2025, 2026, 2027), 1024
SCORES = ("scene_accuracy", "clip_score.scenes", "preference.scenes")


@dataclass(frozen=True)
class Arm:
    """A way of making the same pictures: what is wrong with it, and the noise seeds it is sampled under."""

    name: str
    fault: Callable[[Any], None] | None = None
    guidance_scale: float | None = None
    model: str = MODEL
    seeds: Sequence[int] = SEEDS[:1]


def _vae_bfloat16(pipeline: Any) -> None:
    """The whole decoder in bfloat16, weights and activations."""
    import torch

    vae = pipeline.vae.to(torch.bfloat16)
    decode = vae.decode
    vae.decode = lambda latents, **more: decode(latents.to(torch.bfloat16), **more)


def _vae_float8(pipeline: Any) -> None:
    """The decoder's weights rounded to eight bits (e4m3)."""
    import torch

    for weight in pipeline.vae.parameters():
        weight.data = weight.data.to(torch.float8_e4m3fn).to(weight.dtype)


def _blend(share: float) -> Callable[[Any], None]:
    """A share of the way back to the UNet that was only cut: a stand-in for one that was trained less."""

    def fault(pipeline: Any) -> None:
        from safetensors.torch import load_file

        from sdbench.scenes.embedded import checked

        cut = load_file(checked("unets/vega-pruned") / "diffusion_pytorch_model.safetensors")
        for name, weight in pipeline.unet.state_dict().items():
            weight.lerp_(cut[name].to(weight.dtype), share)

    return fault


ARMS = (
    Arm("vega", seeds=SEEDS),
    Arm("guidance 2 for 3", guidance_scale=2.0),
    Arm("guidance 1.5 for 3", guidance_scale=1.5),
    Arm("VAE in bfloat16", _vae_bfloat16),
    Arm("VAE weights in float8", _vae_float8),
    Arm("a tenth back to the cut weights", _blend(0.1)),
)


def make_pool(work: Path, student: Path | None) -> None:
    """Pictures, scores and features of every arm => `POOL`."""
    arms = [*ARMS, *([Arm("a third of the training", model=str(student))] if student else [])]
    tables = [_measure(arm, seed, work) for arm in arms for seed in arm.seeds]
    POOL.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.concat_tables(tables), POOL, compression="zstd", compression_level=19)
    print(f"{POOL}: {POOL.stat().st_size / 1e6:.2f} MB")


def _measure(arm: Arm, seed: int, work: Path) -> pa.Table:
    from sdbench.encoders import scenes
    from sdbench.generate import generate, jobs, sampler
    from sdbench.models.digest import weights_digest
    from sdbench.models.loading import load
    from sdbench.models.spec import resolve
    from sdbench.run import subject_of
    from sdbench.score import score
    from sdbench.store import Store

    suite = suites.load("quality")
    assert suite.sampling
    assert suite.prompts
    sampling = suite.sampling.model_copy(update={"guidance_scale": arm.guidance_scale or suite.sampling.guidance_scale})
    suite = suite.model_copy(
        update={"prompts": suite.prompts.model_copy(update={"n": PROMPTS}), "noise": suite.noise.model_copy(update={"seed": seed})}
    )
    spec = resolve(arm.model, base="scenes-teacher" if arm.model != MODEL else None)
    todo = jobs(suite, sampling, f"{weights_digest(spec, dtype='float32')}{arm.name if arm.fault else ''}")
    store = Store(work, {"calibration": arm.name})
    if store.missing([job.image for job in todo]):
        import torch

        pipeline = load(spec, dtype=torch.float32, device="cpu")
        if arm.fault:
            arm.fault(pipeline)
        generate(todo, store, sampling.batch, sampler(pipeline, sampling, suite.noise), f"{arm.name}, seed {seed}")
    subject = subject_of(store, todo, work)
    _, scores = score(subject, SCORES)
    features = subject.features(scenes.encoder_id("features"), scenes.features).astype(np.float16)
    columns = {name: scores.columns[name].astype(np.float32) for name in SCORES}
    where = {"arm": pa.array([arm.name] * PROMPTS).dictionary_encode(), "seed": np.full(PROMPTS, seed, np.int32)}
    return pa.table({**where, **columns, **{f"feature{index:02d}": column for index, column in enumerate(features.T)}})


def main() -> None:
    """Run a step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("pool",))
    parser.add_argument("--work", type=Path, default=Path("results/runs/calibration"))
    parser.add_argument(
        "--student", type=Path, help="a UNet that was trained less, such as `distillation run vega --steps 800 --unet-only` makes"
    )
    arguments = parser.parse_args()
    make_pool(arguments.work, arguments.student)


if __name__ == "__main__":
    main()
