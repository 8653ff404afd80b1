"""CLIP models with random weights, the same for open_clip and transformers, and HPSv2's preprocessing."""

from functools import cache
from typing import Any

import open_clip
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.initialization import no_init_weights

from sdbench.encoders import pixels

TINY: dict[str, Any] = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
CAPTIONS = [
    "a large red circle left of a small blue star",
    "A photo, of   TWO cats & a dog's bowl (1990s film still) -- 35mm!",
    "ünïcödé 🦄 in the rain",
    " ".join(["a very detailed city at night"] * 20),
    "x",
]


def tiny() -> open_clip.CLIP:
    """A tiny CLIP whose random embeddings point in all directions."""
    torch.manual_seed(0)
    return open_clip.CLIP(**TINY).eval()


def for_transformers(model: open_clip.CLIP, config: dict[str, Any]) -> CLIPModel:
    """The same network in transformers' layout."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    shared = {"hidden_act": "quick_gelu" if config.get("quick_gelu") else "gelu", "projection_dim": config["embed_dim"]}
    towers = {
        "vision_config": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            **shared,
        },
        "text_config": {
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "eos_token_id": 2,  # as in the published models: the end token is at the largest id
            **shared,
        },
    }
    with no_init_weights():  # all are replaced
        other = CLIPModel(CLIPConfig(**towers, projection_dim=config["embed_dim"]))
    state = model.state_dict()
    other.load_state_dict({name: _tensor_for(name, state) for name in other.state_dict()})
    return other.eval()


class Adapted:
    """A CLIPModel for torchmetrics 1.9, which expects features where transformers >= 5 returns an object (torchmetrics#3407)."""

    def __init__(self, model: CLIPModel) -> None:
        self.model, self.config = model, model.config

    def to(self, device: Any) -> "Adapted":
        self.model.to(device)
        return self

    def get_image_features(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model.get_image_features(pixels).pooler_output
        return features

    def get_text_features(self, ids: Tensor, mask: Tensor) -> Tensor:
        features: Tensor = self.model.get_text_features(ids, mask).pooler_output
        return features


def _tensor_for(name: str, state: dict[str, Tensor]) -> Tensor:
    """The tensor of open_clip's state that transformers calls `name`."""
    exact = {
        "logit_scale": "logit_scale",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    }
    if name in exact:
        return state[exact[name]]
    if name in ("text_projection.weight", "visual_projection.weight"):
        return state["text_projection" if name.startswith("text") else "visual.proj"].T.contiguous()
    words = {
        "vision_model.pre_layrnorm": "visual.ln_pre",
        "vision_model.post_layernorm": "visual.ln_post",
        "text_model.final_layer_norm": "ln_final",
        "vision_model.encoder.layers": "visual.transformer.resblocks",
        "text_model.encoder.layers": "transformer.resblocks",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    key = name
    for part, open_clip_part in words.items():
        key = key.replace(part, open_clip_part)
    for place, kind in enumerate("qkv"):
        if f"self_attn.{kind}_proj." in key:
            return state[key.replace(f"self_attn.{kind}_proj.", "attn.in_proj_")].chunk(3)[place]
    return state[key]


@cache
def processor(side: int, kind: type = CLIPImageProcessorPil) -> CLIPProcessor:
    """CLIP's own processor, with open_clip's copy of the vocabulary; `kind` uses Pillow, or torchvision (the default since 2025)."""
    simple = open_clip.tokenizer.SimpleTokenizer()
    ends = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {ends.get(word, word): number for word, number in simple.encoder.items()}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=list(simple.bpe_ranks), model_max_length=77)
    return CLIPProcessor(kind(size={"shortest_edge": side}, crop_size={"height": side, "width": side}), tokenizer)


def hps_transform(image: Image.Image, side: int) -> torch.Tensor:
    """HPSv2's `image_transform` with `resize_longest_max`, reimplemented: to 0..1, the longer edge to `side`, black borders."""
    tensor = functional.to_tensor(image)
    scale = side / max(tensor.shape[1:])
    if scale != 1:
        height, width = (round(edge * scale) for edge in tensor.shape[1:])
        tensor = functional.resize(tensor, [height, width], functional.InterpolationMode.BICUBIC)
        left, top = (side - width) // 2, (side - height) // 2
        tensor = functional.pad(tensor, [left, top, side - width - left, side - height - top])
    normalised: Tensor = functional.normalize(tensor, pixels.MEAN, pixels.STD)
    return normalised
