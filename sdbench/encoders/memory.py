"""The memory that full-size evaluators take, some 15 GB with all of them: on the device that a run is of, and only as long as it scores."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sdbench.encoders import clip, inception, perceptual, pixels, preference, vit

LOADERS = (clip.load, inception.network, perceptual.network, preference.hps, preference.pickscore, vit.clip_network, vit.dinov2_network)


@contextmanager
def evaluators(device: str) -> Iterator[None]:
    """Full-size encoders run on this device inside, and give its memory back at the end.

    Args:
        device: "cuda", "cuda:<index>", or anything else for the CPU.
    """
    release()  # what was read before may lie on another device
    token = pixels.CHOSEN.set(torch.device(device if device.startswith("cuda") else "cpu"))
    try:
        yield
    finally:
        pixels.CHOSEN.reset(token)
        release()


def release() -> None:
    """Forget the networks, so that a training loop has its GPU to itself again; the next use reads them anew."""
    for load in LOADERS:
        load.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()
