"""The encoders by name: those of set metrics, which references are built with, and those that score captioned images."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sdbench.arrays import F32, U8
from sdbench.assets import weights
from sdbench.encoders import clip, inception, preference, scenes, vit
from sdbench.encoders.pixels import verified_rgb
from sdbench.encoders.resize import INCEPTION_RESIZES
from sdbench.encoders.towers import Towers


@dataclass(frozen=True)
class Encoder:
    """An encoder of images, for set metrics.

    Both functions raise MissingError if the weights are neither on this disk nor reachable, and UserError if they are damaged;
    `features` raises ValueError for images of another shape or dtype.

    Attributes:
        name: the encoder's name in references: network and, if there are several, resize.
        id: returns the name and the digest of the weights, the key for stored features and references.
        features: takes images, N x H x W x 3 uint8 RGB; returns N x d.
        width: d, the number of features.
        batch: how many images go through the network at a time: features of so many are the same as where there are more.
    """

    name: str
    id: Callable[[], str]
    features: Callable[[U8], F32]
    width: int
    batch: int


def _full_size(name: str, asset: str, features: Callable[[U8], F32], width: int, batch: int) -> Encoder:
    return Encoder(name, lambda: f"{name}-{weights.digest(asset)[:12]}", lambda images: features(verified_rgb(images)), width, batch)


_TABLE = (
    # lambdas, because the embedded networks are looked up when they are used
    Encoder(
        "scenes.features", lambda: scenes.encoder_id("features"), lambda images: scenes.features(verified_rgb(images)), 64, scenes.BATCH
    ),
    *(
        _full_size(f"inception.{resize}", inception.ASSET, partial(inception.features, resize), 2048, inception.BATCH)
        for resize in INCEPTION_RESIZES
    ),
    _full_size("dinov2.vit-l-14", vit.DINOV2, vit.dinov2, 1024, vit.BATCH),
    _full_size("clip.vit-l-14-336", vit.CLIP, vit.clip, 768, vit.BATCH),
)
ENCODERS = {encoder.name: encoder for encoder in _TABLE}
TOWERS: dict[str, Callable[[], Towers]] = {  # each raises MissingError if the weights are not on this disk
    "clip.scenes": scenes.clip,
    **{f"clip.{backbone}": partial(clip.load, backbone) for backbone in clip.BACKBONES},
    "preference.scenes": scenes.preference,
    "pickscore.v1": preference.pickscore,
    "hpsv2.1": preference.hps,
}
