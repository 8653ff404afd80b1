"""The speed of a CLIP score from PNG files of 1024 px to the number, compared with torchmetrics; `nox -s speed` prints the ratios.

Both run ViT-B/32 with the same random weights, on the GPU where there is one, on the same files and captions in batches of the same
size. torchmetrics reads captions through transformers and an adapter, since by itself it fails with transformers 5. The second table
shows where the time goes: from files to pixels, from pixels to the network's input, and from images and captions to features.
"""

from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from clips import Adapted, for_transformers, processor
from PIL import Image
from synthetic_images import photograph
from torchmetrics.multimodal import CLIPScore
from transformers import CLIPImageProcessor

from sdbench.encoders import clip
from sdbench.encoders.inference import device, exact_inference
from sdbench.encoders.pixels import resize_shortest_edge
from sdbench.encoders.towers import Towers, image_features
from sdbench.image_files import read_images
from sdbench.metrics.cosine import caption_score
from sdbench.probes.meters import synchronised_clock
from sdbench.scenes.grammar import scene_at

N, ROUNDS = 16, 7
CONFIG = open_clip.get_model_config(clip.BACKBONES["vit-b-32"])
CAPTIONS = [scene_at(index).caption for index in range(N)]
VERSIONS = ", ".join(f"{name} {version(name)}" for name in ("torch", "open_clip_torch", "torchmetrics", "transformers", "pillow"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("images")
    for row in range(N):
        Image.fromarray(photograph(row, 1024, 1024)).save(folder / f"{row:02d}.png")
    return sorted(folder.iterdir())


@cache
def model() -> open_clip.CLIP:
    torch.manual_seed(0)
    return clip.build(CONFIG).to(device())


def towers() -> Towers:
    return clip.towers(model(), "random")


@cache
def peer() -> CLIPScore:
    adapted = Adapted(for_transformers(model(), CONFIG))
    return CLIPScore(model_name_or_path=lambda: (adapted, processor(224, CLIPImageProcessor))).to(device())


def ours(files: list[Path]) -> float:
    images, texts = towers().images(read_images(files, "")), towers().texts(CAPTIONS)
    return float(caption_score(images, texts).mean())


def theirs(files: list[Path]) -> float:
    metric = peer()
    metric.reset()
    for start in range(0, N, clip.BATCH):
        images = [torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).to(device()) for path in files[start : start + clip.BATCH]]
        metric.update(images, CAPTIONS[start : start + clip.BATCH])
    return float(metric.score / metric.n_samples)  # its `compute` would show 0 for a negative mean


@pytest.mark.benchmark(group=f"CLIP score of {N} PNG of 1024 px on {device()}, {VERSIONS}", timer=synchronised_clock)
@pytest.mark.parametrize("way", ["sdbench", "torchmetrics"])
def test_clip_score(way: str, files: list[Path], benchmark: Any) -> None:
    found = benchmark.pedantic({"sdbench": ours, "torchmetrics": theirs}[way], args=(files,), rounds=ROUNDS, warmup_rounds=1)
    assert found == pytest.approx(theirs(files), abs=0.05)  # torchvision's resize differs by a level in some pixels


def stages(files: list[Path]) -> dict[str, Callable[[], Any]]:
    """Each stage, on the output of the one before it."""
    images = read_images(files, "")
    batches = [images[start : start + clip.BATCH] for start in range(0, N, clip.BATCH)]
    prepared = [resize_shortest_edge(batch, 224, device()) for batch in batches]

    def encode() -> None:
        with exact_inference():
            [image_features(model(), batch).cpu() for batch in prepared]

    return {
        "decode": partial(read_images, files, ""),
        "preprocess": lambda: [resize_shortest_edge(batch, 224, device()) for batch in batches],
        "encode images": encode,
        "encode captions": lambda: towers().texts(CAPTIONS),
    }


@pytest.mark.benchmark(group="of that, sdbench's stages", timer=synchronised_clock)
@pytest.mark.parametrize("stage", ["decode", "preprocess", "encode images", "encode captions"])
def test_stage(stage: str, files: list[Path], benchmark: Any) -> None:
    benchmark.pedantic(stages(files)[stage], rounds=ROUNDS, warmup_rounds=1)
