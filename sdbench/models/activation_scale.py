"""Scales random weights so that activations are as large as in a trained network.

This is LSUV (Mishkin and Matas 2016) in one forward pass: the weights and bias of each layer are divided by the standard
deviation of its output, in the order in which the layers run, so that each layer sees inputs that are already calibrated.
A layer that ends a residual branch gets an output of `BRANCH_STD`, so that a stack of some thirty sums stays within
`OUTPUT_STD_RANGE`.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

OUTPUT_STD_RANGE = (0.3, 3.0)  # standard deviation of every block's output
BRANCH_STD = 0.25
LATENT_SIDE = 16  # of the images to calibrate with; a UNet of three levels halves it twice
_PROMPT = "a photograph of an astronaut riding a horse"
_LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)
# Last layers of residual branches: attention, feed-forward, transformer and resnet of diffusers; two of CLIP; the tiny VAE's.
_BRANCH_ENDS = ("to_out.0", "ff.net.2", "proj_out", "conv2", "out_proj", "fc2", "conv.4")
_BLOCKS = frozenset(
    {
        "ResnetBlock2D",
        "BasicTransformerBlock",
        "Transformer2DModel",
        "CLIPEncoderLayer",
        "Downsample2D",
        "Upsample2D",
        "AutoencoderTinyBlock",
    }
)


def calibrate(pipe: Any) -> None:
    """Calibrate, in place, all networks that a pipeline draws an image with.

    Raises:
        RuntimeError: the output of a block is still outside `OUTPUT_STD_RANGE`.
    """
    calibrate_networks([pipe.text_encoder, pipe.text_encoder_2, pipe.unet, pipe.vae], lambda: _draw_image(pipe))


def calibrate_networks(networks: list[nn.Module], call: Callable[[], object]) -> None:
    """Calibrate networks, in place, by a call that runs them on typical inputs.

    Raises:
        RuntimeError: the output of a block is still outside `OUTPUT_STD_RANGE`.
    """
    layers = [(name, part) for network in networks for name, part in network.named_modules() if isinstance(part, _LAYERS)]
    with torch.no_grad(), ExitStack() as hooks:
        for name, part in layers:
            hooks.enter_context(part.register_forward_hook(_scaling_hook(BRANCH_STD if name.endswith(_BRANCH_ENDS) else 1.0)))
        call()
    low, high = OUTPUT_STD_RANGE
    outside = {title: std for title, std in output_stds(networks, call).items() if not low <= std <= high}
    if outside:
        title, std = next(iter(outside.items()))
        raise RuntimeError(
            f"the outputs of {len(outside)} blocks of random weights have standard deviations out of {OUTPUT_STD_RANGE}, such as {title}: "
            f"{std:.3g}"
        )


def output_stds(networks: list[nn.Module], call: Callable[[], object]) -> dict[str, float]:
    """The standard deviation of every block's output in a call, by the block's class and name."""
    stds: dict[str, float] = {}
    blocks = [(name, part) for network in networks for name, part in network.named_modules() if type(part).__name__ in _BLOCKS]

    def record(title: str, _: nn.Module, __: Any, output: Any) -> None:
        stds[title] = _std(output if isinstance(output, torch.Tensor) else output[0])

    with torch.no_grad(), ExitStack() as hooks:
        for name, part in blocks:
            hooks.enter_context(part.register_forward_hook(partial(record, f"{type(part).__name__} {name}")))
        call()
    return stds


def _scaling_hook(target: float) -> Callable[..., Any]:
    """A hook that scales its layer to an output of this standard deviation, the first time that the layer runs."""
    is_scaled = False

    def hook(layer: nn.Module, _: Any, output: torch.Tensor) -> Any:
        nonlocal is_scaled
        std = _std(output)
        if is_scaled or not std:
            return output
        is_scaled = True
        for weights in layer.parameters():
            weights.mul_(target / std)
        return output * (target / std)

    return hook


def _std(output: torch.Tensor) -> float:
    return float(output.float().std())


def _draw_image(pipe: Any) -> object:
    size_px = LATENT_SIDE * pipe.vae_scale_factor
    noise = torch.Generator().manual_seed(0)
    return pipe(_PROMPT, num_inference_steps=1, height=size_px, width=size_px, output_type="pt", generator=noise)
