"""Which transformer blocks matter: what the UNet's output loses when one is taken out (LAPTOP-Diff, arXiv 2404.11098).

The losses of single blocks add up well enough over sets of blocks to choose by, which is that paper's finding.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from tqdm import tqdm

from distillation.losses import mse
from sdbench.latents import Batch, noisy, predict
from sdbench.models.architectures import depths

F64 = npt.NDArray[np.float64]


@torch.no_grad()
def removal_losses(unet: UNet2DConditionModel, batches: Sequence[Batch], scheduler: DDIMScheduler) -> dict[str, F64]:
    """Mean squared change of the output without each block => by attention, blocks x batches.

    Args:
        unet: as it is trained.
        batches: to measure on; give each its own timesteps to see how a block's worth changes over them.
        scheduler: adds the batches' noise.
    """
    inputs = [noisy(scheduler, batch) for batch in batches]
    whole = [predict(unet, noised, batch) for noised, batch in zip(inputs, batches, strict=True)]
    blocks = [(path, block) for path, depth in depths(unet.config).items() for block in range(depth)]
    losses: dict[str, list[list[float]]] = {}
    for path, block in tqdm(blocks, desc="removing blocks one by one", mininterval=2):
        with without(unet.get_submodule(f"{path}.transformer_blocks.{block}")):
            changed = [
                mse(predict(unet, noised, batch), output).item() for noised, batch, output in zip(inputs, batches, whole, strict=True)
            ]
        losses.setdefault(path, []).append(changed)
    return {path: np.array(rows) for path, rows in losses.items()}


@contextmanager
def without(block: nn.Module) -> Iterator[None]:
    """While open, the block hands on its input."""

    def skip(_: nn.Module, inputs: tuple[Tensor, ...], kwargs: dict[str, Any], __: Tensor) -> Tensor:
        return inputs[0] if inputs else kwargs["hidden_states"]

    handle = block.register_forward_hook(skip, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def most_missed(losses: Mapping[str, F64], attention: str, there: Sequence[int], k: int) -> tuple[int, ...]:
    """Of an attention's blocks that are still there, the k whose removal costs most, in rising order."""
    cost = losses[attention].mean(1)
    return tuple(sorted(sorted(there, key=lambda block: -cost[block])[:k]))
