"""The memory that full-size evaluators take, some 15 GB with all of them: given back when a run is scored."""

import gc

import torch

from sdbench.encoders import clip, inception, perceptual, preference, vit

LOADERS = (clip.load, inception.network, perceptual.network, preference.hps, preference.pickscore, vit.clip_network, vit.dinov2_network)


def release() -> None:
    """Forget the networks, so that a training loop has its GPU to itself again; the next use reads them anew."""
    for load in LOADERS:
        load.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()
