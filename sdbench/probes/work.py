"""The work of each stage: multiply-accumulates, and numbers moved. Counted on PyTorch's meta device, which computes and stores nothing.

Numbers moved are those that operators read and write when each runs by itself, as in eager PyTorch: every input once, every
output once, and attention without its score matrix (as in flash attention). A compiler that fuses operators moves fewer.

PyTorch's counter covers convolutions, matrix products and attention, at 2 FLOPs for each multiply-accumulate. Norms, activations
and sums, a few per cent of the time but hardly any of the work, are left out, as is usual.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import diffusers
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sdbench.generate import is_guided
from sdbench.models.architectures import PARTS, pooled_width, unet_config
from sdbench.models.loading import build_on_meta, config_key, count_parameters
from sdbench.models.spec import ModelSpec
from sdbench.settings import Sampling

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class Load(NamedTuple):
    """FLOPs and bytes moved in one call."""

    flops: float
    moved_bytes: float


@dataclass(frozen=True)
class Work:
    """Multiply-accumulates of one call with one image, and the numbers that it moves: weights and others."""

    macs: int
    weights: int
    others: int

    def __add__(self, other: "Work") -> "Work":
        return Work(self.macs + other.macs, self.weights + other.weights, self.others + other.others)

    def __mul__(self, times: int) -> "Work":
        return Work(times * self.macs, times * self.weights, times * self.others)

    def batched(self, batch: int) -> "Work":
        """The work for a batch; the weights are moved once for all of it."""
        return Work(batch * self.macs, self.weights, batch * self.others)

    @property
    def numbers(self) -> int:
        """All numbers that are moved."""
        return self.weights + self.others


def by_stage(configs: Mapping[str, Mapping[str, Any]], sampling: Sampling, *, zero_negative: bool) -> dict[str, Work]:
    """Work of each stage for one image; the scheduler multiplies nothing, so it has none.

    Args:
        configs: the configurations of the four networks; see `setup.describe` and `random_configs`.
        zero_negative: the pipeline does not encode a missing negative prompt, but uses zeros for it.
    """
    (height, tokens), (width, _) = (input_sizes(configs, side_px) for side_px in sampling.shape_px)
    works = {part: _work(part, config, (height, width), tokens) for part, config in configs.items()}
    guided = is_guided(sampling, configs["unet"])
    encodes_negative = guided and not (sampling.negative_prompt is None and zero_negative)
    encode = (works["text_encoder"] + works["text_encoder_2"]) * (2 if encodes_negative else 1)
    step = works["unet"].batched(2 if guided else 1)
    return {"text_encoders": encode, "unet_step": step, "vae_decode": works["vae"]}


def unet_macs(config: Mapping[str, Any], latent_size: int, tokens: int) -> int:
    """Multiply-accumulates of one forward of a UNet at batch 1, attention included; `latent_size` is the side of the latents."""
    return _work("unet", config, (latent_size, latent_size), tokens).macs


def input_sizes(configs: Mapping[str, Mapping[str, Any]], size_px: int) -> tuple[int, int]:
    """The input sizes of a UNet, given the networks around it: side of an image's latents, and length of the text in tokens."""
    side = size_px // 2 ** (len(configs["vae"]["block_out_channels"]) - 1)
    return side, configs["text_encoder"]["max_position_embeddings"]


def empty_input(config: Mapping[str, Any], latent_size: int | tuple[int, int], tokens: int) -> dict[str, Any]:
    """Arguments of a UNet's forward for one image, uninitialised, on torch's default device.

    Args:
        latent_size: side of square latents, or height and width.
    """
    height, width = (latent_size, latent_size) if isinstance(latent_size, int) else latent_size
    return {
        "sample": torch.empty(1, config["in_channels"], height, width),
        "timestep": torch.empty(1),
        "encoder_hidden_states": torch.empty(1, tokens, config["cross_attention_dim"]),
        "timestep_cond": None if (guidance := config.get("time_cond_proj_dim")) is None else torch.empty(1, guidance),
        "added_cond_kwargs": {"text_embeds": torch.empty(1, pooled_width(config)), "time_ids": torch.empty(1, 6)},
    }


def loads(works: Mapping[str, Work], *, steps: int, batch: int, dtypes: Mapping[str, str]) -> dict[str, Load]:
    """FLOPs and bytes of a call of each stage, and of the pipeline; `dtypes` are those that the stages run in."""
    batches = {stage: work.batched(batch) for stage, work in works.items()}
    loads_by_stage = {stage: Load(2.0 * work.macs, float(work.numbers * ITEM_BYTES[dtypes[stage]])) for stage, work in batches.items()}
    calls = {"text_encoders": 1, "unet_step": steps, "vae_decode": 1}
    pipeline = Load(
        flops=sum(calls[stage] * load.flops for stage, load in loads_by_stage.items()),
        moved_bytes=sum(calls[stage] * load.moved_bytes for stage, load in loads_by_stage.items()),
    )
    return {"pipeline": pipeline, **loads_by_stage}


def random_configs(spec: ModelSpec) -> dict[str, Any]:
    """The configurations of the networks of a model with random weights, without loading it."""
    parts = PARTS[spec.known_family]
    return {
        "unet": unet_config(spec.architecture, spec.known_family),
        **{part: parts[part] for part in ("vae", "text_encoder", "text_encoder_2")},
    }


def _build_on_meta(name: str, config: Mapping[str, Any]) -> Any:
    """A network on the meta device; the VAE may be the tiny one of a setting."""
    if config.get("_class_name") != "AutoencoderTiny":
        return build_on_meta(name, config)
    tiny: Any = diffusers.AutoencoderTiny
    with torch.device("meta"):
        return tiny.from_config(dict(config))


def _work(part: str, config: Mapping[str, Any], latent_size: tuple[int, int], tokens: int) -> Work:
    """The work of a network for one image, with latents of this height and width and a text of this length."""
    return _count_part(part, config_key(config), latent_size, tokens)


@cache  # takes seconds at full size; models of a family, and settings of a model, share networks
def _count_part(part: str, config_json: str, latent_size: tuple[int, int], tokens: int) -> Work:
    config = json.loads(config_json)
    built = _build_on_meta(part, config)
    if part == "vae":  # decoding reads neither
        built.encoder = built.quant_conv = None

    def call(network: Any) -> None:
        if part == "unet":
            network(**empty_input(config, latent_size, tokens))
        elif part == "vae":
            network.decode(torch.empty(1, config["latent_channels"], *latent_size))
        else:
            network(torch.empty(1, tokens, dtype=torch.long), output_hidden_states=True)

    return _count(built, call)


def _count(network: torch.nn.Module, call: Callable[[Any], object]) -> Work:
    """The work of a call of the network."""
    moved, flops = _MovedNumbers(), FlopCounterMode(display=False)
    # The last one sees operators first, and FLOPs are counted by taking some apart, such as upsampling, into copies that no device makes.
    with torch.device("meta"), torch.no_grad(), _FusedAttention(moved), flops, moved:
        call(network)
    tables = sum(count_parameters(part) for part in network.modules() if isinstance(part, torch.nn.Embedding))
    weights = count_parameters(network) - tables
    return Work(int(flops.get_total_flops()) // 2, weights, max(0, moved.numbers - weights))


class _MovedNumbers(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Adds up the numbers that operators read and write; views move nothing, and an embedding reads only the rows that it gives back."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        read = (result, args[1:]) if func is torch.ops.aten.embedding.default else (args, kwargs)
        is_view = func.is_view or func is torch.ops.aten._unsafe_view.default  # noqa: SLF001  # a view after matrix products, not declared as one
        if not is_view and (taken := _numbers(read)):  # an operator without inputs only allocates
            self.numbers += taken + _numbers(result)
        return result


class _FusedAttention(TorchFunctionMode):
    """Counts attention as its fused kernels run it; on the meta device PyTorch runs it operator by operator.

    They keep no score matrices, and lay the result out as (batch, tokens, heads, features), so that heads are joined without a copy.
    """

    def __init__(self, moved: _MovedNumbers) -> None:
        super().__init__()
        self.moved = moved

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.moved.numbers
        result = func(*args, **(kwargs or {}))
        if func is torch.nn.functional.scaled_dot_product_attention:
            result = result.transpose(1, 2).contiguous().transpose(1, 2)
            self.moved.numbers = before + _numbers((args, kwargs, result))
        return result


def _numbers(tree: Any) -> int:
    return sum(leaf.numel() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))
