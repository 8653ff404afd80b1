"""The evaluators of the embedded family encode in batches."""

import numpy as np
import torch
from torch import Tensor

from sdbench.encoders.scenes import CAPTIONS_BATCH, SceneTowers


def test_captions_are_embedded_in_batches_so_memory_does_not_grow_with_their_number() -> None:
    sizes = list[int]()

    def embed(ids: Tensor) -> Tensor:
        sizes.append(len(ids))
        return ids[:, 1:3].float()  # after the start of the text: the article and the size

    towers = SceneTowers("counting", 1.0, torch.neg, embed)
    embedded = towers.texts([*["a small red star on a black background"] * CAPTIONS_BATCH, "a large blue ring on a gray background"])
    assert sizes == [CAPTIONS_BATCH, 1]
    assert (embedded[:-1] == embedded[0]).all()
    assert not np.array_equal(embedded[-1], embedded[0])
