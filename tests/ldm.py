"""A pipeline's weights in the original (LDM) names, written from the layout of Stability's `sd_xl_base_1.0.safetensors`."""

import re
from pathlib import Path

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor

from sdbench.models.text_encoders import hub_key

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "downsamplers.0.conv": "downsample.conv",
    "upsamplers.0.conv": "upsample.conv",
}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def save_ldm(pipeline: StableDiffusionXLPipeline, path: Path) -> None:
    """Write a single-file checkpoint; the UNet must have two resnets a block and a middle attention."""
    tensors = {f"model.diffusion_model.{unet_key(key)}": tensor for key, tensor in pipeline.unet.state_dict().items()}
    tensors |= {
        f"first_stage_model.{vae_key(key, len(pipeline.vae.config.block_out_channels))}": square(key, tensor)
        for key, tensor in pipeline.vae.state_dict().items()
    }
    tensors |= {f"conditioner.embedders.0.transformer.{hub_key(key)}": tensor for key, tensor in pipeline.text_encoder.state_dict().items()}
    tensors |= {
        f"conditioner.embedders.1.model.{key}": tensor
        for key, tensor in open_clip({hub_key(k): t for k, t in pipeline.text_encoder_2.state_dict().items()}).items()
    }
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path)


def unet_key(key: str) -> str:
    """LDM's name for diffusers' name of a UNet's tensor."""
    for ours, theirs in UNET.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs)
    side, *rest = key.split(".")
    where, kind, place, *parts = ["0", *rest] if side == "mid_block" else rest
    block, tail = int(where), ".".join(parts)
    if kind == "resnets":
        tail = re.sub(r"^\w+", lambda found: RESNET[found[0]], tail)
    number, slot = 3 * block + int(place), 0 if kind == "resnets" else 1
    if side == "mid_block":
        return f"middle_block.{2 * int(place) + slot}.{tail}"
    if kind == "downsamplers":
        return f"input_blocks.{3 * block + 3}.0.{tail.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * block + 2}.2.{tail}"
    return f"input_blocks.{number + 1}.{slot}.{tail}" if side == "down_blocks" else f"output_blocks.{number}.{slot}.{tail}"


def vae_key(key: str, n_blocks: int) -> str:
    """LDM's name for diffusers' name of a VAE's tensor."""
    for ours, theirs in VAE.items():
        key = key.replace(ours, theirs)
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{n_blocks - 1 - int(found[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d)\.", lambda found: f"up.{n_blocks - 1 - int(found[1])}.", key)
    return key.replace("down_blocks", "down")


def square(key: str, tensor: Tensor) -> Tensor:
    """Attention of the original VAE is 1 x 1 convolutions."""
    return tensor[:, :, None, None] if "attentions" in key and tensor.ndim == 2 else tensor


def open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of a CLIP text encoder of transformers under OpenCLIP's names, with one matrix for query, key and value."""
    found = {"logit_scale": torch.tensor(1.0), "text_projection": state.pop("text_projection.weight").T}
    found["positional_embedding"] = state.pop("text_model.embeddings.position_embedding.weight")
    found["token_embedding.weight"] = state.pop("text_model.embeddings.token_embedding.weight")
    for key, tensor in state.items():
        if ".q_proj." in key:
            fused = torch.cat([state[key.replace("q_proj", each)] for each in ("q_proj", "k_proj", "v_proj")])
            layer, kind = key.split(".")[3], key.rsplit(".", 1)[1]
            found[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = fused
        elif not re.search(r"\.[kv]_proj\.", key):
            name = key.replace("text_model.encoder.layers", "transformer.resblocks").replace("text_model.final_layer_norm", "ln_final")
            for ours, theirs in OPEN_CLIP.items():
                name = name.replace(ours, theirs)
            found[name] = tensor
    return found
