"""ImageReward v1 (Xu et al. 2023): a BLIP whose text tower reads the caption while it looks at the image, and a head of linear layers.

The authors' package needs old versions of transformers and timm, and fairscale, so their network is read into transformers' own BLIP.
Sources: zai-org/ImageReward, `ImageReward/ImageReward.py` (preprocessing, tokens, head) and `ImageReward/models/BLIP` (the network, from
salesforce/BLIP); the names of tensors as in transformers' `convert_blip_original_pytorch_to_hf.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel
from transformers.initialization import no_init_weights

from sdbench.arrays import F32, U8
from sdbench.assets import weights
from sdbench.encoders import aesthetic
from sdbench.encoders.aesthetic import Head
from sdbench.encoders.inference import device, evaluator, exact_inference
from sdbench.encoders.pixels import resize_shortest_edge
from sdbench.errors import UserError
from sdbench.models.checks import check_finite

ASSET, VOCABULARY = "imagereward-v1", "bert-base-uncased"
BATCH = 16  # fixed: another size may change the last digits of features
TOKENS = 35  # the beginning and the end of the caption included
VISION: dict[str, Any] = {  # ViT-L/16, `create_vit` and `VisionTransformer`
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
}  # fmt: skip  # a table
TEXT: dict[str, Any] = {  # BERT base with cross-attention, `train/src/config/med_config.json`
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "encoder_hidden_size": 1024,
    "vocab_size": 30524, "max_position_embeddings": 512, "hidden_act": "gelu", "layer_norm_eps": 1e-12, "is_decoder": True,
}  # fmt: skip  # a table
_RENAMED = {  # in this order
    "blip.visual_encoder": "vision",
    "blip.text_encoder": "text",
    "vision.cls_token": "vision.embeddings.class_embedding",
    "vision.pos_embed": "vision.embeddings.position_embedding",
    "vision.patch_embed.proj": "vision.embeddings.patch_embedding",
    "vision.blocks": "vision.encoder.layers",
    "vision.norm": "vision.post_layernorm",
    ".norm1": ".layer_norm1",
    ".norm2": ".layer_norm2",
    ".attn.proj": ".self_attn.projection",
    ".attn.qkv": ".self_attn.qkv",
}
# The projections of BLIP's contrastive training, and numbers from 0 that transformers counts itself.
_UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")


@dataclass(frozen=True, eq=False)
class ImageReward:
    """ImageReward, a judge of images with their captions.

    Attributes:
        name: the name and the digest of the weights, the key for stored features.
    """

    vision: BlipVisionModel
    text: BlipTextModel
    head: Head
    tokenizer: BertWordPieceTokenizer
    name: str

    def features(self, images: U8, captions: Sequence[str]) -> F32:
        """What the head reads, the output at the first token of each image's caption; images N x H x W x 3 uint8 RGB; returns N x d."""
        encoded, to = self.tokenizer.encode_batch(list(captions)), self.text.device
        ids, mask = (torch.tensor([getattr(tokens, part) for tokens in encoded], device=to) for part in ("ids", "attention_mask"))
        with exact_inference():
            batches = (slice(start, start + BATCH) for start in range(0, len(images), BATCH))
            return np.concatenate([self._features(images[batch], ids[batch], mask[batch]).cpu().numpy() for batch in batches])

    def _features(self, images: U8, ids: Tensor, mask: Tensor) -> Tensor:
        pixels = resize_shortest_edge(images, self.vision.config.image_size, self.vision.device).to(self.vision.dtype)
        seen = self.vision(pixel_values=pixels).last_hidden_state
        read: Tensor = self.text(input_ids=ids, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        return read[:, 0]


def tokenizer(vocabulary: Path) -> BertWordPieceTokenizer:
    """BERT's tokenizer with BLIP's two tokens, which nothing uses; all captions get `TOKENS` tokens, and long ones keep the last."""
    tokens: BertWordPieceTokenizer = BertWordPieceTokenizer.from_file(str(vocabulary))
    tokens.add_special_tokens(["[DEC]", "[ENC]"])
    tokens.enable_truncation(TOKENS)
    tokens.enable_padding(length=TOKENS)
    return tokens


def build(state: Mapping[str, Tensor], file: Path) -> tuple[BlipVisionModel, BlipTextModel, Head]:
    """Build the towers and the head from the published state dict of a file.

    Raises:
        UserError: a tensor is missing, unknown, of another shape, or not finite.
    """
    with no_init_weights():  # all are replaced
        vision = BlipVisionModel(BlipVisionConfig(**VISION))
        text = BlipTextModel(BlipTextConfig(**TEXT), add_pooling_layer=False)
    towers = nn.ModuleDict({"vision": vision, "text": text}).eval()
    of_head = {f"mlp.{name}": name for name in aesthetic.TENSORS}
    head = {of_head[name]: tensor for name, tensor in state.items() if name in of_head}
    tensors = {_rename(name): tensor for name, tensor in state.items() if name not in of_head and not name.startswith(_UNUSED)}
    expected, found = ({name: tensor.shape for name, tensor in some.items()} for some in (towers.state_dict(), tensors))
    if wrong := sorted({name for name, _ in expected.items() ^ found.items()}):
        raise UserError(
            f"{file} does not hold {ASSET}: {len(wrong)} tensors are missing, unknown or of another shape, such as {wrong[0]!r} "
            "(in transformers' names); fetch it again"
        )
    towers.load_state_dict(tensors)
    check_finite(towers, ASSET, file)
    return vision, text, aesthetic.fold(head, ASSET)


def _rename(name: str) -> str:
    """The name of a tensor of the published towers in ours."""
    for published, ours in _RENAMED.items():
        name = name.replace(published, ours)
    return name


@evaluator
def load() -> ImageReward:
    """Load ImageReward v1.

    Raises:
        MissingError: its weights or its vocabulary are neither on this disk nor reachable.
        UserError: they are damaged.
    """
    file, vocabulary = weights.find(ASSET), weights.find(VOCABULARY)  # fails before the network is built
    vision, text, head = build(torch.load(file, map_location="cpu", weights_only=True), file)
    name = f"imagereward.v1-{weights.digest(ASSET)[:12]}"
    return ImageReward(vision.to(device()), text.to(device()), head, tokenizer(vocabulary), name)
