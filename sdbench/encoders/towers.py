"""The two towers of a CLIP; and open_clip's, faster than its `encode_image` and `encode_text`, and equal up to float32's last digits.

Both of open_clip's return the output of one token, the class token or the end of the text. So the last block is computed only for that
token, and the padding after the end of a text, which causal attention never sees, is cut off. Attention is one fused call, while
open_clip uses `nn.MultiheadAttention`, which computes it step by step in inference on the CPU.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

from sdbench.arrays import F32, U8


@dataclass(frozen=True, eq=False)
class Towers:
    """Encoders of images and captions to one space; the cosine of a pair, times `scale`, is its score.

    Attributes:
        name: the name and the digest of the weights, the key for stored features.
        scale: the factor of the cosine.
        images: embeds images, N x H x W x 3 uint8 RGB; returns N x d.
        texts: embeds captions; returns N x d.
    """

    name: str
    scale: float
    images: Callable[[U8], F32]
    texts: Callable[[Sequence[str]], F32]


def image_features(model: open_clip.CLIP, pixels: Tensor) -> Tensor:
    """Embed preprocessed images, N x 3 x side x side; returns N x d, not normalised."""
    tower = model.visual
    patches = tower.conv1(pixels).flatten(2).transpose(1, 2)  # N x patches x width
    tokens = torch.cat([tower.class_embedding.expand(len(patches), 1, -1), patches], dim=1) + tower.positional_embedding
    first = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    features: Tensor = tower.ln_post(_output_of_token(tower.transformer.resblocks, tower.ln_pre(tokens), first)) @ tower.proj
    return features


def text_features(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """Embed captions, N x 77 token ids; returns N x d, not normalised."""
    tokens = tokens.to(model.text_projection.device)
    ends = tokens.argmax(dim=1)  # the end of text has the largest id
    length = int(ends.max()) + 1
    embedded = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    output = _output_of_token(model.transformer.resblocks, embedded, ends, model.attn_mask[:length, :length])
    features: Tensor = model.ln_final(output) @ model.text_projection
    return features


def _output_of_token(blocks: Any, tokens: Tensor, at: Tensor, mask: Tensor | None = None) -> Tensor:
    """Run the blocks and return their output for one token of each sequence, N x width.

    Args:
        tokens: N x L x width.
        at: N, the position of that token in its sequence.
        mask: L x L, added to the attention logits.
    """
    *rest, last = blocks
    for block in rest:
        normed = block.ln_1(tokens)
        tokens = _block(block, tokens, normed, normed, mask)
    normed, rows = last.ln_1(tokens), torch.arange(len(tokens), device=tokens.device)
    token_mask = None if mask is None else mask[at][:, None, None]
    return _block(last, tokens[rows, at][:, None], normed[rows, at][:, None], normed, token_mask)[:, 0]


def _block(block: Any, residual: Tensor, queries: Tensor, normed: Tensor, mask: Tensor | None) -> Tensor:
    """Run a residual block for M of L tokens; returns N x M x width.

    Args:
        residual: N x M x width, the M tokens.
        queries: N x M x width, the M tokens after the first norm.
        normed: N x L x width, all tokens after the first norm.
    """
    residual = residual + block.ls_1(_attention(block.attn, queries, normed, mask))
    output: Tensor = residual + block.ls_2(block.mlp(block.ln_2(residual)))
    return output


def _attention(attention: Any, queries: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    width, weight, bias = attention.embed_dim, attention.in_proj_weight, attention.in_proj_bias
    query = F.linear(queries, weight[:width], bias[:width])
    key, value = F.linear(tokens, weight[width:], bias[width:]).chunk(2, dim=-1)
    query, key, value = (part.reshape(*part.shape[:2], attention.num_heads, -1).transpose(1, 2) for part in (query, key, value))
    output: Tensor = attention.out_proj(F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2))
    return output
