"""Controls where full-size evaluators run and how long they stay in memory: together they take some 17 GB."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sdbench.encoders import inference


@contextmanager
def evaluators_on(device: str) -> Iterator[None]:
    """Run full-size encoders on this device, and build all in float32, inside the block; free their memory at its end.

    Args:
        device: "cuda", "cuda:<index>", or anything else for the CPU.
    """
    release_evaluators()  # loaded ones may be on another device
    token = inference.RUN_DEVICE.set(torch.device(device if device.startswith("cuda") else "cpu"))
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)  # a training loop may have set a lower one, for networks and for the constants of their inputs
    try:
        yield
    finally:
        torch.set_default_dtype(default)
        inference.RUN_DEVICE.reset(token)
        release_evaluators()


def release_evaluators() -> None:
    """Unload the networks, so that the GPU has room for another metric or a training loop; the next use loads them again."""
    for load in inference.LOADERS:
        load.cache_clear()
    gc.collect()
    torch.cuda.empty_cache()
