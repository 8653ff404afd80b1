"""The encoders by name: of set metrics, which a reference is built with and found again by, and of scores of captioned pictures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from sdbench.arrays import F32, U8
from sdbench.assets import weights
from sdbench.encoders import clip, inception, preference, scenes, vit
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


class Towers(Protocol):
    """Pictures and captions to one space, in which the cosine of a pair, times `scale`, is their score."""

    @property
    def name(self) -> str:
        """Tells its weights by digest too; features are kept under it."""

    @property
    def scale(self) -> float:
        """The factor of the cosine."""

    def images(self, images: U8) -> F32:
        """N x H x W x 3 uint8 RGB => N x d."""

    def texts(self, captions: Sequence[str]) -> F32:
        """Captions => N x d."""


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
TOWERS: dict[str, Callable[[], Towers]] = {  # each raises MissingError where the weights are not at hand
    "clip.scenes": scenes.clip,
    **{f"clip.{backbone}": partial(clip.load, backbone) for backbone in clip.BACKBONES},
    "preference.scenes": scenes.preference,
    "pickscore.v1": preference.pickscore,
    "hpsv2.1": preference.hps,
}
