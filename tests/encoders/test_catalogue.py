"""Encoders by name: the ids under which their features are cached, and the inputs they reject."""

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from sdbench.assets import weights
from sdbench.encoders import clip, inception, preference, scenes
from sdbench.encoders.catalogue import ENCODERS, TOWERS, Encoder
from sdbench.encoders.inference import BLOCK
from sdbench.encoders.resize import INCEPTION_RESIZES
from sdbench.errors import MissingError

ASSET_OF = {  # encoder -> its weights
    **{f"inception.{resize}": "inception-2015" for resize in ("clean", "tf1", "mlperf", "torchmetrics")},
    "dinov2.vit-l-14": "dinov2-vit-l-14",
    "clip.vit-l-14-336": "clip-vit-l-14-336",
    **{f"clip.{backbone}": f"clip-{backbone}" for backbone in ("vit-b-32", "vit-b-16", "vit-l-14", "vit-h-14")},
    "pickscore.v1": "pickscore-v1",
    "hpsv2.1": "hps-v2.1",
}
IMAGES = np.zeros((2, 40, 30, 3), np.uint8)


def test_ids_depend_on_network_resize_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(asset: str) -> str:
        return hashlib.sha256(asset.encode()).hexdigest()

    monkeypatch.setattr(weights, "digest", digest)
    before = {name: encoder.id() for name, encoder in ENCODERS.items()}
    assert len(set(before.values())) == len(ENCODERS)
    assert before["inception.tf1"] == f"inception.tf1-{digest('inception-2015')[:12]}"
    monkeypatch.setattr(weights, "digest", lambda asset: digest(f"other {asset}"))
    assert {name for name, encoder in ENCODERS.items() if encoder.id() != before[name]} == ASSET_OF.keys() & ENCODERS.keys()
    assert all(encoder.name == name for name, encoder in ENCODERS.items())


@pytest.mark.parametrize("name", ASSET_OF)
def test_missing_weights_are_reported_and_are_those_of_the_encoder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(asset: str) -> None:
        raise MissingError(f"weights: {asset} is not on this disk")

    monkeypatch.setattr(weights, "find", absent)
    monkeypatch.setattr(weights, "digest", absent)
    for loader in (clip.load, preference.pickscore, preference.hps):
        loader.cache_clear()
    uses = (TOWERS[name],) if name in TOWERS else (ENCODERS[name].id, lambda: ENCODERS[name].features(IMAGES))
    for use in uses:
        with pytest.raises(MissingError, match=f"^weights: {ASSET_OF[name]} is not"):
            use()


def test_embedded_towers_are_those_of_their_name_and_all_others_are_tested_here() -> None:
    assert ENCODERS.keys() | TOWERS.keys() == {*ASSET_OF, "scenes.features", "clip.scenes", "preference.scenes"}
    for name in ("clip.scenes", "preference.scenes"):
        assert TOWERS[name]().name.startswith(f"{name}-")


@pytest.mark.parametrize("resize", INCEPTION_RESIZES)
def test_images_are_resized_as_the_name_of_their_inception_encoder_says(resize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(place: int, image: torch.Tensor) -> torch.Tensor:
        return torch.full((len(image), 2048), float(place))

    for place, each in enumerate([*INCEPTION_RESIZES]):
        monkeypatch.setitem(INCEPTION_RESIZES, each, partial(fill, place))
    monkeypatch.setattr(weights, "find", Path)
    monkeypatch.setattr(inception, "network", lambda _: torch.nn.Identity())
    features = ENCODERS[f"inception.{resize}"].features(IMAGES)
    assert features.tolist() == np.full((2, 2048), [*INCEPTION_RESIZES].index(resize)).tolist()


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize(
    "wrong",
    [
        IMAGES.astype(np.float32) * np.nan,
        IMAGES.astype(np.uint16),
        IMAGES[..., :1],
        np.concatenate([IMAGES, IMAGES[..., :1]], axis=3),
        IMAGES[..., 0],
        IMAGES[0],
        IMAGES.transpose(0, 3, 1, 2),
        IMAGES[:0],
    ],
    ids=["NaN", "16 bit", "gray", "RGBA", "gray without channels", "one image", "channels first", "none"],
)
def test_anything_but_uint8_rgb_is_rejected(name: str, wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"uint8 RGB, found .*\("):
        ENCODERS[name].features(wrong)


@pytest.mark.parametrize("encoder", ENCODERS.values(), ids=ENCODERS)
def test_a_block_of_images_consists_of_whole_batches(encoder: Encoder) -> None:
    assert BLOCK % encoder.batch == 0


def test_features_are_as_wide_as_stated() -> None:
    assert {name: encoder.width for name, encoder in ENCODERS.items()} == {
        "scenes.features": scenes.features(np.zeros((1, 64, 64, 3), np.uint8)).shape[1],
        **dict.fromkeys((name for name in ASSET_OF if name.startswith("inception.")), 2048),
        "dinov2.vit-l-14": 1024,  # of ViT-L
        "clip.vit-l-14-336": 768,  # of CLIP's projection
    }
