import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st

from sdbench.models.architectures import TOPOLOGIES, architecture_of, depths, depths_of_keys, family_of, unet_config
from sdbench.models.random_weights import random_parts

GOLDEN: dict[str, Any] = tomllib.loads((Path(__file__).parents[1] / "golden" / "parameters.toml").read_text(encoding="utf-8"))


def build_on_meta(config: dict[str, Any]) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**config)


@cache
def unet_on_meta(name: str, family: Any) -> UNet2DConditionModel:
    return build_on_meta(unet_config(name, family))


def count_parameters(module: torch.nn.Module | None) -> int:
    return sum(weight.numel() for weight in module.parameters()) if module else 0


def count_transformer_blocks(unet: UNet2DConditionModel) -> int:
    return sum(type(module).__name__ == "BasicTransformerBlock" for module in unet.modules())


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_full_size_counts_match_the_published_ones(name: str) -> None:
    with torch.device("meta"):
        parts = random_parts("sdxl", name)
    unet = parts["unet"]
    assert isinstance(unet, UNet2DConditionModel)
    found = {
        "unet": count_parameters(unet),
        "down": count_parameters(unet.down_blocks),
        "mid": count_parameters(unet.mid_block),
        "up": count_parameters(unet.up_blocks),
        "transformer_blocks": count_transformer_blocks(unet),
        "tensors": len(unet.state_dict()),
        "pipeline": sum(map(count_parameters, parts.values())),
    }
    assert found == GOLDEN.get(name), "the published counts are in tests/golden/parameters.toml"
    assert count_parameters(parts["text_encoder"]) == GOLDEN["clip_l"]
    assert count_parameters(parts["text_encoder_2"]) == GOLDEN["clip_bigg_with_projection"]
    assert count_parameters(parts["vae"]) == GOLDEN["vae"]


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_scenes_have_the_same_tensors_but_narrower(name: str) -> None:
    full, narrow = (unet_on_meta(name, family).state_dict() for family in ("sdxl", "scenes"))
    assert full.keys() == narrow.keys()
    assert all(len(full[key].shape) == len(narrow[key].shape) for key in full)
    assert sum(tensor.numel() for tensor in narrow.values()) < sum(tensor.numel() for tensor in full.values()) / 100


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_depths_from_a_config_match_the_built_unet(name: str) -> None:
    config = unet_config(name, "scenes")
    unet = unet_on_meta(name, "scenes")
    assert depths(config) == depths_of_keys(unet.state_dict())
    assert sum(depths(config).values()) == count_transformer_blocks(unet)


@given(
    st.lists(st.integers(1, 3), min_size=3, max_size=3),
    st.integers(1, 2),
    st.sampled_from(["UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None]),
)
@settings(max_examples=8, deadline=None)
def test_depths_match_for_any_topology(per_block: list[int], layers: int, mid: str | None) -> None:
    changes = {"transformer_layers_per_block": per_block, "layers_per_block": layers, "mid_block_type": mid}
    config = {**unet_config("sdxl", "scenes"), **changes}
    assert depths(config) == depths_of_keys(build_on_meta(config).state_dict())


@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("family", ["sdxl", "scenes"])
def test_config_is_recognised_after_a_round_trip_through_diffusers(name: str, family: Any) -> None:
    config = dict(unet_on_meta(name, family).config)
    assert (architecture_of(config), family_of(config)) == (name, family)


def test_changed_topology_or_width_is_custom() -> None:
    config = unet_config("vega")
    assert architecture_of({**config, "transformer_layers_per_block": [1, 1, 3]}) == "custom"
    assert architecture_of({**config, "mid_block_type": None}) == "custom"
    assert architecture_of({**config, "down_block_types": ["DownBlock2D"] * 3}) == "custom"
    assert family_of({**config, "cross_attention_dim": 768}) == "custom"


def test_config_whose_lists_do_not_fit_its_blocks_has_no_known_architecture() -> None:
    assert architecture_of({**unet_config("sdxl"), "transformer_layers_per_block": [1, 2, 10, 10]}) == "custom"
    assert architecture_of({**unet_config("sdxl"), "layers_per_block": "2"}) == "custom"
