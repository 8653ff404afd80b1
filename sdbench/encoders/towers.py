"""open_clip's two towers without what cannot change their answer, which is that of `encode_image` and `encode_text` to float32's last digits.

Both answer with one token, the class token or the end of the text. So the last block is taken of it alone, and texts
without the padding behind their end, which causal attention never sees. Attention is one fused call, where open_clip
leaves it to `nn.MultiheadAttention`, which in inference goes through its steps one by one on the CPU.
"""

from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor


def image_features(model: open_clip.CLIP, pixels: Tensor) -> Tensor:
    """Prepared pictures, N x 3 x side x side => N x d, not of length 1."""
    tower = model.visual
    patches = tower.conv1(pixels).flatten(2).transpose(1, 2)  # N x patches x width
    tokens = torch.cat([tower.class_embedding.expand(len(patches), 1, -1), patches], dim=1) + tower.positional_embedding
    first = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    answer: Tensor = tower.ln_post(_token(tower.transformer.resblocks, tower.ln_pre(tokens), first)) @ tower.proj
    return answer


def text_features(model: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """Token ids, N x 77 => N x d, not of length 1."""
    tokens = tokens.to(model.text_projection.device)
    ends = tokens.argmax(dim=1)  # the end of text has the largest id
    length = int(ends.max()) + 1
    embedded = model.token_embedding(tokens[:, :length]) + model.positional_embedding[:length]
    answer: Tensor = (
        model.ln_final(_token(model.transformer.resblocks, embedded, ends, model.attn_mask[:length, :length])) @ model.text_projection
    )
    return answer


def _token(blocks: Any, tokens: Tensor, at: Tensor, mask: Tensor | None = None) -> Tensor:
    """What the blocks make of one token of each sequence: N x L x width, N places, L x L added to the logits => N x width."""
    *rest, last = blocks
    for block in rest:
        normed = block.ln_1(tokens)
        tokens = _block(block, tokens, normed, normed, mask)
    normed, rows = last.ln_1(tokens), torch.arange(len(tokens), device=tokens.device)
    return _block(last, tokens[rows, at][:, None], normed[rows, at][:, None], normed, None if mask is None else mask[at][:, None, None])[
        :, 0
    ]


def _block(block: Any, residual: Tensor, queries: Tensor, normed: Tensor, mask: Tensor | None) -> Tensor:
    """A residual block of M queries to L tokens: N x M x width, the same normed, N x L x width => N x M x width."""
    residual = residual + block.ls_1(_attention(block.attn, queries, normed, mask))
    made: Tensor = residual + block.ls_2(block.mlp(block.ln_2(residual)))
    return made


def _attention(attention: Any, queries: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
    width, weight, bias = attention.embed_dim, attention.in_proj_weight, attention.in_proj_bias
    query = F.linear(queries, weight[:width], bias[:width])
    key, value = F.linear(tokens, weight[width:], bias[width:]).chunk(2, dim=-1)
    query, key, value = (part.reshape(*part.shape[:2], attention.num_heads, -1).transpose(1, 2) for part in (query, key, value))
    made: Tensor = attention.out_proj(F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2))
    return made
