"""What is lost without a block: nothing where the block does nothing, and the UNet is as before afterwards."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from tiny import tiny_unet

from distillation.sensitivity import most_missed, removal_losses
from sdbench.latents import Batch, predict
from sdbench.models.architectures import depths

DEAD = "down_blocks.2.attentions.1"


def batch(seed: int) -> Batch:
    torch.manual_seed(seed)
    timesteps = torch.randint(0, 1000, (2,))
    return Batch(torch.randn(2, 4, 8, 8), torch.randn(2, 5, 96), torch.randn(2, 64), torch.ones(2, 6), torch.randn(2, 4, 8, 8), timesteps)


def test_a_block_that_does_nothing_is_not_missed_and_any_other_is() -> None:
    unet = tiny_unet("sdxl").eval()
    dead = unet.get_submodule(f"{DEAD}.transformer_blocks.3")
    for layer in (dead.attn1.to_out[0], dead.attn2.to_out[0], dead.ff.net[2]):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    with torch.no_grad():
        before = predict(unet, batch(0).noise, batch(0))
        losses = removal_losses(unet, [batch(1), batch(2)], DDIMScheduler())
        assert torch.equal(predict(unet, batch(0).noise, batch(0)), before)
    assert {path: rows.shape for path, rows in losses.items()} == {path: (depth, 2) for path, depth in depths(unet.config).items()}
    assert not losses[DEAD][3].any()
    assert sum((rows > 0).sum() for rows in losses.values()) == 2 * (70 - 1)


@pytest.mark.parametrize(("there", "k", "expected"), [((0, 1, 2, 3), 2, (0, 3)), ((1, 2, 3), 2, (1, 3)), ((0, 1, 2, 3), 0, ())])
def test_the_blocks_most_missed_are_kept_in_rising_order(there: tuple[int, ...], k: int, expected: tuple[int, ...]) -> None:
    losses = {"a": np.array([[9.0, 1.0], [2.0, 2.0], [0.0, 0.0], [3.0, 9.0]])}
    assert most_missed(losses, "a", there, k) == expected
