"""The encoders of set metrics by name: what a reference is built with, and what finds it again."""

from collections.abc import Callable
from dataclasses import dataclass

from sdbench.encoders import scenes
from sdbench.store import F32, U8


@dataclass(frozen=True)
class Encoder:
    """Pictures to features.

    Attributes:
        name: what references name it by.
        id: tells its weights and resize by digest; features and references are kept under it.
        features: N x H x W x 3 uint8 RGB => N x d.
    """

    name: str
    id: Callable[[], str]
    features: Callable[[U8], F32]


ENCODERS = {
    # late, since the embedded networks are looked up when they are used
    "scenes.features": Encoder("scenes.features", lambda: scenes.encoder_id("features"), lambda pictures: scenes.features(pictures)),  # noqa: PLW0108
}
