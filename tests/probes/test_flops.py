"""Multiply-accumulates against counts made by hand and against those of the full-size architectures."""

import pytest

from sdbench.probes.flops import random_unet_input, unet_macs

# One forward, 1024 px, batch 1, computed once with diffusers 0.42.1 on the meta device (TMACs).
TMACS = {"sdxl": 3.3806, "ssd-1b": 2.1039, "vega": 1.4112, "koala-1b": 1.7159, "koala-700m": 1.3508}


@pytest.mark.parametrize("architecture", TMACS)
def test_full_size_architectures(architecture: str) -> None:
    assert unet_macs(**random_unet_input(architecture, "sdxl", 1024)) / 1e12 == pytest.approx(TMACS[architecture], abs=5e-5)


def test_convolutions_and_linear_layers_by_hand() -> None:
    pooled, side, width = 6, 8, 4
    times = 4 * width  # width of the time embedding
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [width],
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "mid_block_type": None,
        "layers_per_block": 1,
        "norm_num_groups": 2,
        "cross_attention_dim": 3,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 2,
        "projection_class_embeddings_input_dim": pooled + 6 * 2,
    }
    pixels = side * side

    def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
        return pixels * inputs * outputs * kernel**2

    embeddings = (width * times + times * times) + ((pooled + 12) * times + times * times)
    down = conv(width, width) + times * width + conv(width, width)
    up = 2 * (conv(2 * width, width) + times * width + conv(width, width) + conv(2 * width, width, kernel=1))  # two resnets, each on a skip
    assert unet_macs(config, latent_size=side, tokens=5) == embeddings + conv(4, width) + down + up + conv(width, 4)


def test_attention_is_counted() -> None:
    """A longer text adds to each cross-attention its keys and values, and two products with the queries."""
    config = {**random_unet_input("vega", "scenes", 64)["config"], "transformer_layers_per_block": [1, 1, 1]}
    longer = unet_macs(config, latent_size=16, tokens=21) - unet_macs(config, latent_size=16, tokens=20)
    # width, queries of each block: 2 attentions down and 3 up at each of the two lower resolutions; no transformer in the middle
    assert longer == sum(5 * (2 * 96 * width + 2 * queries * width) for width, queries in ((32, 8 * 8), (64, 4 * 4)))
