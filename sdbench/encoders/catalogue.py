"""The encoders of set metrics by name: what a reference is built with, and what finds it again."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from sdbench.arrays import F32, U8
from sdbench.assets import weights
from sdbench.encoders import inception, scenes, vit
from sdbench.encoders.pixels import rgb
from sdbench.encoders.resize import INCEPTION


@dataclass(frozen=True)
class Encoder:
    """Pictures to features. Both functions raise MissingError where the weights are not at hand, `features` ValueError for other pictures.

    Attributes:
        name: what references name it by: network and, where there are several, resize.
        id: tells its weights by digest too; features and references are kept under it.
        features: N x H x W x 3 uint8 RGB => N x d.
    """

    name: str
    id: Callable[[], str]
    features: Callable[[U8], F32]


def _full_size(name: str, asset: str, features: Callable[[U8], F32]) -> Encoder:
    return Encoder(name, lambda: f"{name}-{weights.digest(asset)[:12]}", lambda pictures: features(rgb(pictures)))


_TABLE = (
    # late, since the embedded networks are looked up when they are used
    Encoder("scenes.features", lambda: scenes.encoder_id("features"), lambda pictures: scenes.features(rgb(pictures))),
    *(_full_size(f"inception.{resize}", inception.ASSET, partial(inception.features, resize)) for resize in INCEPTION),
    _full_size("dinov2.vit-l-14", vit.DINOV2, vit.dinov2),
    _full_size("clip.vit-l-14-336", vit.CLIP, vit.clip),
)
ENCODERS = {encoder.name: encoder for encoder in _TABLE}
