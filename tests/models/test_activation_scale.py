"""Random weights are scaled so that activations are as large as a trained network's."""

import pytest
import torch
from torch import nn

from sdbench.models import activation_scale
from sdbench.models.architectures import TOPOLOGIES
from sdbench.models.loading import load
from sdbench.models.random_weights import random_pipeline, random_tiny_vae
from sdbench.models.resolve import resolve
from sdbench.models.spec import ModelSpec


@pytest.mark.parametrize("architecture", ["sdxl", "koala-700m"])
def test_block_outputs_stay_in_range_while_an_image_is_generated(architecture: str) -> None:
    assert architecture in TOPOLOGIES
    pipe = load(ModelSpec(architecture, "scenes", architecture, "random", ""), dtype="float32", device="cpu")
    networks = [pipe.text_encoder, pipe.text_encoder_2, pipe.unet, pipe.vae]
    stds = activation_scale.output_stds(
        networks, lambda: pipe("a red circle", num_inference_steps=4, height=64, width=64, guidance_scale=3.0)
    )
    low, high = activation_scale.OUTPUT_STD_RANGE
    assert {block: std for block, std in stds.items() if not low <= std <= high} == {}
    assert {block.split()[0] for block in stds} == {
        *("ResnetBlock2D", "BasicTransformerBlock", "Transformer2DModel", "Downsample2D", "Upsample2D", "CLIPEncoderLayer")
    }


def test_random_weights_and_the_tiny_vae_are_deterministic() -> None:
    def weights() -> list[torch.Tensor]:
        pipe = load(resolve("scenes-vega", random=True), dtype="float32", device="cpu")
        return [*pipe.unet.parameters(), *pipe.vae.parameters(), *random_tiny_vae(pipe.vae).parameters()]

    assert all(torch.equal(one, other) for one, other in zip(weights(), weights(), strict=True))


def test_only_the_networks_are_built_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_scale, "calibrate", lambda _: None)
    pipe = random_pipeline(resolve("sdxl", random=True), torch.bfloat16, torch.device("meta"))
    assert pipe.unet.device.type == pipe.vae.device.type == pipe.text_encoder_2.device.type == "meta"
    pipe.scheduler.set_timesteps(3, device="cpu")
    assert len(pipe.scheduler.timesteps) == 3, "NumPy reads the scheduler's tables, which it cannot from a GPU"


def test_each_layer_is_scaled_to_its_target_output() -> None:
    torch.manual_seed(0)
    network, first, conv2 = nn.Sequential(), nn.Linear(64, 64), nn.Linear(64, 64)
    network.add_module("first", first)
    network.add_module("conv2", conv2)  # named like the end of a residual branch
    network.requires_grad_(requires_grad=False)
    given = torch.randn(512, 64)
    activation_scale.calibrate_networks([network], lambda: network(given))
    hidden = first(given)
    assert float(hidden.std()) == pytest.approx(1.0, abs=1e-4)
    assert float(conv2(hidden).std()) == pytest.approx(activation_scale.BRANCH_STD, abs=1e-4)


def test_layer_is_scaled_by_its_first_run_alone() -> None:
    torch.manual_seed(0)
    layer, given = nn.Linear(64, 64).requires_grad_(requires_grad=False), torch.randn(512, 64)
    activation_scale.calibrate_networks([nn.Sequential(layer)], lambda: (layer(given), layer(10 * given)))
    assert float(layer(given).std()) == pytest.approx(1.0, abs=1e-4)


def test_output_that_stays_out_of_range_is_an_error() -> None:
    class Upsample2D(nn.Module):  # named like a block, with nothing to scale
        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return 100 * given

    network = nn.Sequential(Upsample2D())
    with pytest.raises(RuntimeError, match=r"1 blocks .* Upsample2D 0: 100$"):
        activation_scale.calibrate_networks([network], lambda: network(torch.tensor([-1.0, 1.0]).repeat(500)))
