"""The memory that full-size evaluators take, some 15 GB with all of them: on the card that a run is of, and only as long as it scores."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from sdbench.encoders import clip, inception, perceptual, preference, vit

LOADERS = (clip.load, inception.network, perceptual.network, preference.hps, preference.pickscore, vit.clip_network, vit.dinov2_network)


@contextmanager
def evaluators(device: str) -> Iterator[None]:
    """Encoders run on this card inside, and give its memory back at the end.

    Args:
        device: "cuda" or "cuda:<index>"; with "cpu" they run on the GPU where there is one, as outside.
    """
    try:
        with torch.cuda.device(device) if device.startswith("cuda") else nullcontext():
            yield
    finally:
        release()


def release() -> None:
    """Forget the networks, so that a training loop has its GPU to itself again; the next use reads them anew."""
    for load in LOADERS:
        load.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()
