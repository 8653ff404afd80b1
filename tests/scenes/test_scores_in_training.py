"""What training of the embedded family's parts computes beside its steps: standard latents, and shares of images that are right."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from sdbench.scenes.embedded import read_manifest, verified_path
from sdbench.scenes.grammar import scene_at
from sdbench.scenes.networks import SceneNet
from sdbench.scenes.render import render
from sdbench.scenes.training.evaluation import SEED, SceneEvaluation
from sdbench.scenes.training.pool import Pool
from sdbench.scenes.training.reader import accuracy
from sdbench.scenes.training.vae import standardise

ORDER = [0, 1, 2, 3, 4, 5, 7, 6]  # two of eight images change places


@pytest.fixture(scope="module")
def reader() -> SceneNet:
    return SceneNet.load(verified_path("evaluators/reader.safetensors"))


@torch.no_grad()
def test_standard_latents_have_mean_0_and_variance_1_and_restore_the_same_images(
    teacher_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, pool = AutoencoderKL.from_pretrained(teacher_folder / "vae"), Pool(tmp_path, 8)
    monkeypatch.setattr(Pool, "rows", lambda *_, **__: np.arange(8))
    pixels = pool.pixels(np.arange(8))
    before = vae.encode(pixels).latent_dist
    restored = vae.decode(before.mean).sample
    standardise(vae, pool, "cpu")
    after, std = vae.encode(pixels).latent_dist, before.mean.std((0, 2, 3))
    torch.testing.assert_close(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(after.mean.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(after.std, before.std / std[:, None, None], atol=0, rtol=1e-3)
    torch.testing.assert_close(vae.decode(after.mean).sample, restored, atol=1e-4, rtol=0)


@pytest.mark.skipif("parts" not in read_manifest(), reason="placeholder weights: the manifest names no trained parts")
def test_an_image_is_right_if_its_whole_layout_is_read(reader: SceneNet, tmp_path: Path) -> None:
    pool = Pool(tmp_path, 8)
    assert accuracy(reader, pool) == 1
    pool.images = pool.images[ORDER]
    assert accuracy(reader, pool) == 6 / 8
    evaluation = SceneEvaluation(SimpleNamespace(parts={}, latents=np.zeros((1, 4, 16, 16))), reader, 8)  # type: ignore[arg-type]  # never drawn
    images = render([scene_at(index, "heldout", SEED) for index in range(8)], range(8), SEED)
    assert evaluation.are_right(images) == [True] * 8
    assert evaluation.are_right(images[ORDER]) == [True] * 6 + [False] * 2
