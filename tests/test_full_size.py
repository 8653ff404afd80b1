"""The full-size path with random weights; marked slow, as it takes minutes and many GB."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from diffusers import StableDiffusionXLPipeline
from memory import ROOT, anonymous_bytes, peak_increase_bytes
from PIL import Image
from tiny import noise_unet, save_tiny_pipeline, with_unet

from distillation import cli as distillation
from distillation.ablation.experiment import one_shot_recipe
from distillation.recipe import load_recipe
from sdbench import records
from sdbench.cli import main
from sdbench.models.activation_scale import OUTPUT_STD_RANGE
from sdbench.models.architectures import unet_config
from sdbench.models.loading import load
from sdbench.models.resolve import resolve
from sdbench.scenes.training.pool import Pool


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_size_folder_is_measured(tmp_path: Path) -> None:
    folder = tmp_path / "my-ssd-1b"
    load(resolve("ssd-1b", random=True), dtype="bfloat16", device="cpu").save_pretrained(folder)
    (tmp_path / "prompts.txt").write_text("a red barn\na bowl of soup\n", encoding="utf-8")
    suite = {
        "name": "ssim",
        "version": 1,
        "family": "sdxl",
        "description": "what needs no evaluator",
        "metrics": {"sdxl": ["agreement.ssim"]},
        "teacher": {"model": "teacher"},
        "prompts": {"source": "file", "file": "prompts.txt", "n": 2},
        "sampling": {"steps": 2, "guidance_scale": 7.5, "size_px": 256, "batch": 1, "dtype": "float32"},  # bfloat16 is slow on older CPUs
        "noise": {"kind": "per_image", "seed": 1},
    }
    (tmp_path / "ssim.toml").write_text(tomli_w.dumps(suite), encoding="utf-8")
    for name in ("teacher", "student"):  # of the same weights, so that the student's images are the teacher's
        words = ["run", "--model", str(folder), "--name", name, "--suite", str(tmp_path / "ssim.toml"), "--only", "quality"]
        assert main([*words, "--results", str(tmp_path / "results")]) == 0
    path, record = max(records.newest_per_model(tmp_path / "results"), key=lambda found: found[1].created)
    assert (record.model.name, record.model.architecture, record.family, record.n_images) == ("student", "ssd-1b", "sdxl", 2)
    assert len(list((path / "images").glob("*.png"))) == 2
    agreement = record.value("agreement.ssim")
    assert agreement is not None
    assert agreement.value == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_pruning_the_full_size_unet_takes_at_most_half_a_gigabyte(tmp_path: Path) -> None:
    small = save_tiny_pipeline(tmp_path / "small", "sdxl")
    teacher = with_unet(small, tmp_path / "teacher", noise_unet(unet_config("sdxl")))
    assert sum(file.stat().st_size for file in (teacher / "unet").glob("*.safetensors")) > 5.1e9
    words = [["prune", "ssd-1b", "--teacher", str(folder), "--out", f"{folder}-student"] for folder in (small, teacher)]
    assert peak_increase_bytes(*words) <= 0.5e9


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_size_student_that_is_only_pruned_draws_an_image_in_stock_diffusers(tmp_path: Path) -> None:
    load(resolve("sdxl", random=True), dtype="bfloat16", device="cpu").save_pretrained(tmp_path / "sdxl")
    assert distillation.main(["prune", "ssd-1b", "--teacher", str(tmp_path / "sdxl"), "--out", str(tmp_path / "student")]) == 0
    pipeline = StableDiffusionXLPipeline.from_pretrained(tmp_path / "student", dtype=torch.bfloat16)
    assert sum(parameter.numel() for parameter in pipeline.unet.parameters()) == 1_331_334_404
    image = np.asarray(pipeline("a red barn", num_inference_steps=2, height=256, width=256).images[0])
    assert image.shape == (256, 256, 3)
    assert image.std() > 0, "neither black, as of NaN, nor of one colour"


STEP = """
import json, sys, time
from sdbench.models.activation_scale import output_stds
from sdbench.models.loading import load
from sdbench.models.resolve import resolve
from sdbench.probes.meters import peak_rss_mib
from sdbench.probes.stages import Stages
from sdbench.suites import load as suite

sampling = suite("efficiency").sampling
pipe = load(resolve(sys.argv[1], random=True), dtype=sampling.dtype, device="cpu")
call = Stages(pipe, sampling).prepare("unet_step")
start = time.perf_counter()
stds = output_stds([pipe.unet], call)
print(json.dumps({"seconds": time.perf_counter() - start, "rss_gb": peak_rss_mib() * 2**20 / 1e9, "stds": stds}))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("architecture", ["sdxl", "ssd-1b", "vega", "koala-700m"])
def test_full_size_unet_step_at_1024_px_takes_at_most_24_gb_with_sane_activations(architecture: str) -> None:
    done = subprocess.run([sys.executable, "-c", STEP, architecture], cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    print(f"{architecture}: {found['seconds']:.0f} s, {found['rss_gb']:.1f} GB")  # noqa: T201  # the purpose of this test
    assert found["rss_gb"] < 24
    assert {block: std for block, std in found["stds"].items() if not OUTPUT_STD_RANGE[0] <= std <= OUTPUT_STD_RANGE[1]} == {}


TRAINING = """
import sys
from distillation import samples
from distillation.cli import main
samples.STEPS = 1  # the samples are not used
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_full_size_vega_trains_ten_steps_within_24_gb_and_resumes_after_a_kill(tmp_path: Path) -> None:
    teacher, images = tmp_path / "teacher", tmp_path / "images"
    load(resolve("sdxl", random=True), dtype="bfloat16", device="cpu").save_pretrained(teacher)
    save_scenes(images, 16)
    recipe = one_shot_recipe(load_recipe("vega"))
    settings = {"size_px": 256, "batch": 1, "accumulation": 1, "steps": 10, "warmup": 1}
    recipe = recipe.model_copy(update={"name": "vega-256", "sdxl": recipe.settings("sdxl").model_copy(update=settings)})
    (tmp_path / "vega-256.toml").write_text(tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    words = ["run", str(tmp_path / "vega-256.toml"), "--family", "sdxl", "--teacher", str(teacher), "--data", str(images)]
    words = [sys.executable, "-c", TRAINING, *words, "--work", str(tmp_path / "work"), "--out", str(tmp_path / "vega")]
    with subprocess.Popen(words, cwd=ROOT) as first:
        while not (checkpoints := list(tmp_path.glob("work/vega-256-*/1-all/step-*"))):
            assert first.poll() is None
            time.sleep(0.2)
        first.kill()
    steps_before = int(checkpoints[0].name.removeprefix("step-"))
    assert 0 < steps_before < 10
    with subprocess.Popen(words, cwd=ROOT) as second:
        peak = 0
        while second.poll() is None:
            peak = max(peak, anonymous_bytes(second.pid))
            time.sleep(0.05)
    assert second.returncode == 0
    assert peak < 24e9
    provenance = json.loads((tmp_path / "vega" / "provenance.json").read_text(encoding="utf-8"))
    assert (provenance["steps"], provenance["parameters"]) == (10, 745_225_604)
    assert all(math.isfinite(value) for value in provenance["stages"][0]["losses"].values())


def save_scenes(folder: Path, n: int) -> None:
    """Write an image folder of n rendered scenes."""
    folder.mkdir()
    pool = Pool(folder.parent / "pool", n)
    for number, pixels in enumerate(pool.images):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    lines = [json.dumps({"file_name": f"{number}.png", "caption": caption}) for number, caption in enumerate(pool.captions)]
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
