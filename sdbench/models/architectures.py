"""Architectures as data: the UNets of SDXL and its students, and the text encoders and VAE that they share.

An architecture is a topology: which blocks, how many resnets, how many transformer blocks in each attention. A family is
a set of widths. Any architecture in any family is a `UNet2DConditionModel` with the same module paths, so that one recipe
prunes both the full-size teacher and the embedded one. The depths come from `comfy/model_detection.py` of ComfyUI.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Family = Literal["sdxl", "scenes"]
AnyFamily = Literal[Family, "custom"]  # "custom": text embeddings of another width
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Shape:
    """What distinguishes the UNets of a teacher and its students.

    Attributes:
        resnets: number of resnets, by down or up block.
        blocks: number of transformer blocks, by attention.
        middle: type of the middle block; None without one.
    """

    resnets: dict[str, int]
    blocks: dict[str, int]
    middle: str | None


CROSS, PLAIN = "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"

# fmt: off
TOPOLOGIES: dict[str, dict[str, Any]] = {
    #            resnets a block          transformer blocks of each attention, down
    #            up, where it is not the reverse                                              middle
    "sdxl":       {"layers_per_block": 2, "transformer_layers_per_block": [1, 2, 10],
                   "reverse_transformer_layers_per_block": None,                              "mid_block_type": CROSS},
    "ssd-1b":     {"layers_per_block": 2, "transformer_layers_per_block": [[1], [2, 2], [4, 4]],
                   "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],        "mid_block_type": PLAIN},
    "vega":       {"layers_per_block": 2, "transformer_layers_per_block": [1, 1, 2],
                   "reverse_transformer_layers_per_block": None,                              "mid_block_type": PLAIN},
    "koala-1b":   {"layers_per_block": 1, "transformer_layers_per_block": [1, 2, 6],
                   "reverse_transformer_layers_per_block": None,                              "mid_block_type": CROSS},
    "koala-700m": {"layers_per_block": 1, "transformer_layers_per_block": [1, 2, 5],
                   "reverse_transformer_layers_per_block": None,                              "mid_block_type": None},
}
# fmt: on

COMMON_UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "use_linear_projection": True,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}

WIDTHS: dict[str, dict[str, Any]] = {
    "sdxl": {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "attention_head_dim": [5, 10, 20],  # the number of heads, not their width: a misnomer in diffusers
        "cross_attention_dim": 2048,  # 768 + 1280
        "norm_num_groups": 32,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,  # 6 * 256 + 1280
    },
    "scenes": {
        "sample_size": 16,
        "block_out_channels": [16, 32, 64],
        "attention_head_dim": [1, 2, 4],
        "cross_attention_dim": 96,  # 32 + 64
        "norm_num_groups": 4,
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 112,  # 6 * 8 + 64
    },
}


def _text_encoder_config(width: int, layers: int, heads: int, *, act: str, tokens: int, vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "projection_dim": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "max_position_embeddings": tokens,
        "hidden_act": act,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": vocabulary - 1,
    }


_DDPM_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}

# Everything in a pipeline but its UNet: for pipelines with random weights, and for training the embedded family. The embedded family's
# vocabulary comes from its own tokenizer instead; a random pipeline has one token a letter, hence 514.
PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "sdxl": {
        "text_encoder": _text_encoder_config(768, 12, 12, act="quick_gelu", tokens=77, vocabulary=49408),  # OpenAI's CLIP ViT-L/14
        "text_encoder_2": _text_encoder_config(1280, 32, 20, act="gelu", tokens=77, vocabulary=49408),  # OpenCLIP's ViT-bigG/14
        "vae": {
            "sample_size": 1024,
            "latent_channels": 4,
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 2,
            "norm_num_groups": 32,
            "scaling_factor": 0.13025,
            "force_upcast": True,
        },
        "scheduler": {"_class_name": "EulerDiscreteScheduler", **_DDPM_BETAS, "steps_offset": 1, "timestep_spacing": "leading"},
    },
    "scenes": {
        "text_encoder": _text_encoder_config(32, 3, 2, act="quick_gelu", tokens=20, vocabulary=514),
        "text_encoder_2": _text_encoder_config(64, 3, 4, act="gelu", tokens=20, vocabulary=514),
        "vae": {
            "sample_size": 64,
            "latent_channels": 4,
            "block_out_channels": [16, 32, 48],
            "down_block_types": ["DownEncoderBlock2D"] * 3,
            "up_block_types": ["UpDecoderBlock2D"] * 3,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "scaling_factor": 1.0,
            "force_upcast": False,
        },
        "scheduler": {
            "_class_name": "DDIMScheduler",
            **_DDPM_BETAS,
            "prediction_type": "v_prediction",
            "rescale_betas_zero_snr": True,
            "timestep_spacing": "trailing",
            "clip_sample": False,
            "set_alpha_to_one": True,
        },
    },
}


def unet_config(architecture: str, family: Family = "sdxl") -> dict[str, Any]:
    """The keyword arguments of `UNet2DConditionModel` for an architecture in the widths of a family."""
    return {**COMMON_UNET, **TOPOLOGIES[architecture], **WIDTHS[family]}


def pooled_width(config: Config) -> int:
    """The width of the pooled text embedding that a UNet takes, in addition to the six numbers of SDXL's micro-conditioning."""
    return int(config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"])


def depths(config: Config) -> dict[str, int]:
    """Number of transformer blocks in each attention of a UNet, by its path in the state dict: `{"down_blocks.1.attentions.0": 2, ...}`."""
    down, up = config["down_block_types"], config["up_block_types"]
    layers = _as_list(config.get("layers_per_block", 2), len(down))
    blocks = _as_list(config.get("transformer_layers_per_block", 1), len(down))
    upwards = config.get("reverse_transformer_layers_per_block") or blocks[::-1]
    found: dict[str, int] = {}
    for side, kinds, counts, each in (("down", down, layers, blocks), ("up", up, [count + 1 for count in layers[::-1]], upwards)):
        for index, (kind, count, depth) in enumerate(zip(kinds, counts, each, strict=True)):
            if "CrossAttn" in kind:
                found |= {f"{side}_blocks.{index}.attentions.{place}": deep for place, deep in enumerate(_as_list(depth, count))}
    if config.get("mid_block_type", CROSS) == CROSS:
        found["mid_block.attentions.0"] = _as_list(blocks[-1], 1)[0]
    return found


def resnet_counts(config: Config) -> dict[str, int]:
    """The number of resnets in each down and up block of a UNet: `{"down_blocks.0": 2, ..., "up_blocks.2": 3}`."""
    layers = _as_list(config.get("layers_per_block", 2), len(config["down_block_types"]))
    down = {f"down_blocks.{index}": count for index, count in enumerate(layers)}
    return down | {f"up_blocks.{index}": count + 1 for index, count in enumerate(layers[::-1])}


def shape_of(config: Config) -> Shape:
    """The shape of a UNet, by its config."""
    return Shape(resnet_counts(config), depths(config), config.get("mid_block_type", CROSS))


def depths_of_keys(keys: Iterable[str]) -> dict[str, int]:
    """The result of `depths`, read from the names of a UNet's tensors."""
    found: dict[str, int] = {}
    for key in keys:
        path, divider, rest = key.partition(".transformer_blocks.")
        if divider:
            found[path] = max(found.get(path, 0), int(rest.split(".")[0]) + 1)
    return found


def ldm_depths(config: Config) -> dict[str, int]:
    """The result of `depths`, with paths of the original (LDM) layout, which numbers all layers of a side consecutively."""
    entries_per_block = _as_list(config.get("layers_per_block", 2), 1)[0] + 1  # on the way down, the last entry is the downsampler
    found: dict[str, int] = {}
    for path, depth in depths(config).items():
        if path.startswith("mid_block"):
            found["model.diffusion_model.middle_block.1"] = depth
            continue
        side, block, _, place = path.split(".")
        number = int(block) * entries_per_block + int(place)
        entry = f"input_blocks.{number + 1}" if side == "down_blocks" else f"output_blocks.{number}"
        found[f"model.diffusion_model.{entry}.1"] = depth
    return found


def architecture_of(config: Config) -> str:
    """The name of the architecture with the topology of a UNet config, at any width; "custom" where none fits."""
    try:
        topology = _topology(config)
    except (TypeError, ValueError, IndexError):  # lists that do not fit its blocks; building the network says so
        return "custom"
    return next((name for name in TOPOLOGIES if topology == _topology(unet_config(name))), "custom")


def family_of(config: Config) -> AnyFamily:
    """The family whose text embeddings have the width that a UNet takes; "custom" where none fits."""
    for family in ("sdxl", "scenes"):
        if config.get("cross_attention_dim") == WIDTHS[family]["cross_attention_dim"]:
            return family
    return "custom"


def _topology(config: Config) -> tuple[Any, ...]:
    types = [list(config.get(side, ())) for side in ("down_block_types", "up_block_types")]
    if types != [COMMON_UNET["down_block_types"], COMMON_UNET["up_block_types"]]:
        return (*types,)
    return (*types, shape_of(config))


def _as_list(value: Any, n: int) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value] * n
