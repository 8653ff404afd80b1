"""Random weights at a scale that keeps activations as large as a trained network's.

As LSUV does (Mishkin and Matas 2016), in one forward pass: each layer's weights and bias are divided by the standard
deviation of its output, in the order in which the layers run, so that each sees inputs that are calibrated already. A
layer that ends a residual branch is brought to `BRANCH`, so that a stack of some thirty sums stays within `SANE`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

SANE = (0.3, 3.0)  # standard deviation of every block's output
BRANCH = 0.25
LATENT_SIDE = 16  # pictures to calibrate with: what a UNet of three levels can still halve twice
_PROMPT = "a photograph of an astronaut riding a horse"
_LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)
# Last layers of residual branches: attention, feed-forward, transformer and resnet of diffusers; CLIP's two; the tiny VAE's.
_ENDS = ("to_out.0", "ff.net.2", "proj_out", "conv2", "out_proj", "fc2", "conv.4")
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
    """Calibrate all networks of a pipeline that the making of a picture runs through, in place.

    Raises:
        RuntimeError: a block's output is still not of a sane size.
    """
    networks = [pipe.text_encoder, pipe.text_encoder_2, pipe.unet, pipe.vae]
    _settle(networks, lambda: _draw(pipe))


def calibrate_network(network: nn.Module, call: Callable[[], object]) -> None:
    """Likewise one network, by a call that runs it on inputs like those it will be given."""
    _settle([network], call)


def spreads(networks: list[nn.Module], call: Callable[[], object]) -> dict[str, float]:
    """Standard deviation of every block's output in a call, by the block's class and name."""
    found: dict[str, float] = {}
    blocks = [(name, part) for network in networks for name, part in network.named_modules() if type(part).__name__ in _BLOCKS]

    def note(title: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[title] = _spread(output if isinstance(output, torch.Tensor) else output[0])

        return hook

    with _hooked([(part, note(f"{type(part).__name__} {name}")) for name, part in blocks]), torch.no_grad():
        call()
    return found


def _settle(networks: list[nn.Module], call: Callable[[], object]) -> None:
    layers = [(name, part) for network in networks for name, part in network.named_modules() if isinstance(part, _LAYERS)]
    with _hooked([(part, _scale(BRANCH if name.endswith(_ENDS) else 1.0)) for name, part in layers]), torch.no_grad():
        call()
    wrong = {title: spread for title, spread in spreads(networks, call).items() if not SANE[0] <= spread <= SANE[1]}
    if wrong:
        title, spread = next(iter(wrong.items()))
        raise RuntimeError(f"{len(wrong)} blocks of random weights have outputs out of {SANE}, such as {title}: {spread:.3g}")


def _scale(target: float) -> Callable[..., Any]:
    """A hook that scales its layer to this spread of output, the first time that it runs."""
    done = False

    def hook(layer: nn.Module, _: Any, output: torch.Tensor) -> Any:
        nonlocal done
        spread = _spread(output)
        if done or not spread:
            return output
        done = True
        for weights in layer.parameters():
            weights.mul_(target / spread)
        return output * (target / spread)

    return hook


def _spread(output: torch.Tensor) -> float:
    return float(output.float().std())


def _draw(pipe: Any) -> object:
    size_px = LATENT_SIDE * pipe.vae_scale_factor
    noise = torch.Generator().manual_seed(0)
    return pipe(_PROMPT, num_inference_steps=1, height=size_px, width=size_px, output_type="pt", generator=noise)


@contextmanager
def _hooked(hooks: list[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    handles = [part.register_forward_hook(hook) for part, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
