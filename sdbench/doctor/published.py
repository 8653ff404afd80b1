"""Values that others published for inputs that anyone can make again, held against what the weights at hand give.

They show that weights, preprocessing and tokens are those of the publication, which golden pictures cannot: these only rank.
The inputs are captions and seeded random pictures of 224 px, the side that the network takes, so no resize has a part in it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from sdbench.encoders import clip
from sdbench.encoders.clip import Clip
from sdbench.errors import MissingError
from sdbench.metrics.cosine import caption_score

BACKBONE = "vit-b-16"
SOURCE = "torchmetrics 1.9.0, functional/multimodal/clip_score.py, examples with openai/clip-vit-base-patch16"
TOLERANCE = 0.01  # other kernels move float32 features by 1e-5 of a cosine, 0.001 here; older versions print 24.4255 for 24.426
CAPTIONS = (
    "28-year-old chef found dead in San Francisco mall",
    "A 28-year-old chef who recently moved to San Francisco was found dead.",
)


@dataclass(frozen=True)
class Known:
    """One published value, 100 * cosine, and how to make it again."""

    what: str
    expected: float
    make: Callable[[Clip], npt.NDArray[np.float64]]


def noise(seed: int) -> npt.NDArray[np.uint8]:
    """`torch.randint(255, (3, 224, 224))` of a generator with this seed, as 1 x 224 x 224 x 3 uint8."""
    drawn = torch.randint(255, (3, 224, 224), generator=torch.Generator().manual_seed(seed))
    return drawn.permute(1, 2, 0)[None].to(torch.uint8).numpy()


KNOWN = (
    Known(
        "noise and 'a photo of a cat'", 24.426, lambda towers: caption_score(towers.images(noise(42)), towers.texts(["a photo of a cat"]))
    ),
    Known("two pictures of noise", 99.486, lambda towers: caption_score(towers.images(noise(42)), towers.images(noise(43)))),
    Known("two headlines", 91.395, lambda towers: caption_score(towers.texts(CAPTIONS[:1]), towers.texts(CAPTIONS[1:]))),
)


@dataclass(frozen=True)
class Comparison:
    """A published value beside the one found."""

    what: str
    expected: float
    found: float

    @property
    def fits(self) -> bool:
        """Whether they agree within `TOLERANCE`."""
        return abs(self.found - self.expected) <= TOLERANCE


def compare() -> Iterator[Comparison]:
    """Each known value with what the weights at hand give; nothing where there are none.

    Raises:
        UserError: the weights are damaged.
    """
    try:
        towers = clip.load(BACKBONE)
    except MissingError:
        return
    for known in KNOWN:
        yield Comparison(f"CLIP score ({BACKBONE}) of {known.what}", known.expected, float(known.make(towers)[0]))
