"""The speed of `fid.clean` from PNG files of 1024 px to features, compared with clean-fid; `nox -s speed` prints the ratios.

Both run one network with the same random weights, since clean-fid's own is a download. Reading, decoding, resizing and batching are
each library's own. For the step from features to the distance, see speed_metrics.py. The second table shows where the time goes.
"""

from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cleanfid.fid import get_files_features
from PIL import Image
from synthetic_images import photograph
from torch import Tensor, nn

from sdbench.arrays import F32
from sdbench.assets import weights
from sdbench.encoders import inception
from sdbench.encoders.inference import device, exact_inference
from sdbench.encoders.resize import clean
from sdbench.image_files import read_images
from sdbench.models.precision import full_float32
from sdbench.probes.meters import synchronised_clock

N, ROUNDS, WORKERS = 32, 5, 2
VERSIONS = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchvision", "clean-fid", "pillow"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    for row in range(N):
        Image.fromarray(photograph(row, 1024, 1024)).save(folder / f"{row:02d}.png")
    return sorted(map(str, folder.iterdir()))


@cache
def network() -> Any:
    torch.manual_seed(0)
    made = inception.build()
    made.fc = nn.Identity()
    return made.to(device())


def ours(files: list[str], monkeypatch: pytest.MonkeyPatch) -> F32:
    monkeypatch.setattr(weights, "find", Path)
    monkeypatch.setattr(inception, "network", lambda _: network())
    return inception.features("clean", read_images(list(map(Path, files)), ""))


def theirs(files: list[str], _: pytest.MonkeyPatch) -> F32:
    def model(batch: Tensor) -> Tensor:
        found: Tensor = network()((batch - 128) / 128)
        return found

    with full_float32():  # both compute in the same precision
        found: F32 = get_files_features(
            files, model, num_workers=WORKERS, batch_size=inception.BATCH, device=device(), mode="clean", verbose=False
        )
    return found


@pytest.mark.benchmark(group=f"{N} PNG of 1024 px to Inception's features on {device()}, {VERSIONS}", timer=synchronised_clock)
@pytest.mark.parametrize("way", ["sdbench", "clean-fid"])
def test_fid_clean(way: str, files: list[str], monkeypatch: pytest.MonkeyPatch, benchmark: Any) -> None:
    found = benchmark.pedantic({"sdbench": ours, "clean-fid": theirs}[way], args=(files, monkeypatch), rounds=ROUNDS, warmup_rounds=1)
    expected = theirs(files, monkeypatch)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def stages(files: list[str]) -> dict[str, Callable[[], Any]]:
    """Each stage, on the output of the one before it."""
    paths = list(map(Path, files))
    images = [torch.tensor(image, device=device())[None] for image in read_images(paths, "")]
    prepared = torch.cat([clean(image) for image in images])

    def encode() -> None:
        with exact_inference():
            network()(prepared).cpu()

    return {"decode": partial(read_images, paths, ""), "resize": lambda: [clean(image) for image in images], "encode": encode}


@pytest.mark.benchmark(group="of that, sdbench's stages", timer=synchronised_clock)
@pytest.mark.parametrize("stage", ["decode", "resize", "encode"])
def test_stage(stage: str, files: list[str], benchmark: Any) -> None:
    benchmark.pedantic(stages(files)[stage], rounds=ROUNDS, warmup_rounds=1)
