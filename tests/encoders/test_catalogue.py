"""Encoders by name: the ids under which their features are cached, and the inputs they reject."""

import hashlib

import numpy as np
import pytest

from sdbench.assets import weights
from sdbench.encoders.catalogue import ENCODERS, Encoder
from sdbench.encoders.inference import BLOCK
from sdbench.errors import MissingError

FULL_SIZE = sorted(set(ENCODERS) - {"scenes.features"})
IMAGES = np.zeros((2, 40, 30, 3), np.uint8)


def test_ids_depend_on_network_resize_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def digest(asset: str) -> str:
        return hashlib.sha256(asset.encode()).hexdigest()

    monkeypatch.setattr(weights, "digest", digest)
    before = {name: encoder.id() for name, encoder in ENCODERS.items()}
    assert len(set(before.values())) == len(ENCODERS)
    assert before["inception.tf1"] == f"inception.tf1-{digest('inception-2015')[:12]}"
    monkeypatch.setattr(weights, "digest", lambda asset: digest(f"other {asset}"))
    assert {name for name, encoder in ENCODERS.items() if encoder.id() != before[name]} == set(FULL_SIZE)
    assert all(encoder.name == name for name, encoder in ENCODERS.items())


@pytest.mark.parametrize("name", FULL_SIZE)
def test_id_and_features_report_missing_weights(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(asset: str) -> None:
        raise MissingError(f"weights: {asset} is not on this disk")

    monkeypatch.setattr(weights, "find", absent)
    monkeypatch.setattr(weights, "digest", absent)
    with pytest.raises(MissingError, match="is not on this disk"):
        ENCODERS[name].id()
    with pytest.raises(MissingError, match="is not on this disk"):
        ENCODERS[name].features(IMAGES)


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


def test_scene_features_are_as_wide_as_stated() -> None:
    encoder = ENCODERS["scenes.features"]
    assert encoder.features(np.zeros((1, 64, 64, 3), np.uint8)).shape == (1, encoder.width)
