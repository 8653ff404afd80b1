"""Published values of inputs that anyone can reproduce, compared with what the weights on this machine give.

They show that weights, preprocessing and tokenisation are those of the publication. Golden images cannot show that, since they only
rank. The inputs are captions and seeded random images of 224 px, the input size of the network, so no resize is involved.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from sdbench.arrays import F64, U8
from sdbench.encoders import clip
from sdbench.encoders.towers import Towers
from sdbench.errors import MissingError
from sdbench.metrics.cosine import caption_score

BACKBONE = "vit-b-16"
ASSET = f"clip-{BACKBONE}"
SOURCE = "torchmetrics 1.9.0, functional/multimodal/clip_score.py, examples with openai/clip-vit-base-patch16"
TOLERANCE = 0.01  # other kernels change a cosine by 1e-5 in float32, which is 0.001 here; older versions print 24.4255 for 24.426
CAPTIONS = (
    "28-year-old chef found dead in San Francisco mall",
    "A 28-year-old chef who recently moved to San Francisco was found dead.",
)


@dataclass(frozen=True)
class PublishedValue:
    """A published value, 100 * cosine, and the function that reproduces it."""

    what: str
    expected: float
    compute: Callable[[Towers], F64]


def noise_image(seed: int) -> U8:
    """`torch.randint(255, (3, 224, 224))` from a generator with this seed, as 1 x 224 x 224 x 3 uint8."""
    pixels = torch.randint(255, (3, 224, 224), generator=torch.Generator().manual_seed(seed))
    return pixels.permute(1, 2, 0)[None].to(torch.uint8).numpy()


PUBLISHED_VALUES = (
    PublishedValue(
        "noise and 'a photo of a cat'",
        24.426,
        lambda towers: caption_score(towers.images(noise_image(42)), towers.texts(["a photo of a cat"])),
    ),
    PublishedValue(
        "two images of noise", 99.486, lambda towers: caption_score(towers.images(noise_image(42)), towers.images(noise_image(43)))
    ),
    PublishedValue("two headlines", 91.395, lambda towers: caption_score(towers.texts(CAPTIONS[:1]), towers.texts(CAPTIONS[1:]))),
)


def compare() -> Iterator[tuple[PublishedValue, float]]:
    """Each published value with the one computed here; none if the weights are not on this machine.

    Raises:
        UserError: the weights are damaged.
    """
    try:
        towers = clip.load(BACKBONE)
    except MissingError:
        return
    for value in PUBLISHED_VALUES:
        yield value, float(value.compute(towers)[0])
