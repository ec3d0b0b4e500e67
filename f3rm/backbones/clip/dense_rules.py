"""Rules for the last block of a CLIP that make its patches' vectors comparable with texts.

CLIP trains its class token only. In the last block, attention gathers the image into that token,
and mixes patches as a side effect. Every rule here replaces how that block mixes the values of the
tokens, from the same queries q, keys k and values v (per head, of d channels); output projection,
last norm and projection stay.

Sources: Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022 (maskclip); Lan et al.,
"ClearCLIP", ECCV 2024; Hajimiri et al., "Pay Attention to Your Neighbours", WACV 2025 (nacclip);
Wang et al., "SCLIP", ECCV 2024; Procrustes-aligned attention (pearl).
"""

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from f3rm.backbones.vit import Heads, VitBlock

Mix = Callable[[Tensor, Tensor, Tensor, tuple[int, int]], Tensor]
"""Queries, keys and values, each (batch, heads, tokens, d) with the class token first, and the
(rows, cols) of patches to mixed values."""

_NEIGHBOURHOOD = 5.0
"""NACLIP's standard deviation in cells."""
_KEY_SHARE = 0.08
"""Weight of pearl's key-key term."""


def mix_maskclip(_: Heads, __: Heads, values: Heads, ___: tuple[int, int]) -> Heads:
    """Keeps every token's own value."""
    return values


def mix_clearclip(queries: Heads, _: Heads, values: Heads, __: tuple[int, int]) -> Heads:
    """Weighs values by softmax(q q^T / sqrt(d))."""
    return scaled_dot_product_attention(queries, queries, values)


def mix_nacclip(_: Heads, keys: Heads, values: Heads, grid: tuple[int, int]) -> Heads:
    """Weighs values by softmax(k k^T / sqrt(d) + G), G a Gaussian of the distance of patches."""
    nearness = gaussian_nearness(grid, _NEIGHBOURHOOD).to(keys)
    return scaled_dot_product_attention(keys, keys, values, attn_mask=nearness)


def mix_sclip(queries: Heads, keys: Heads, values: Heads, _: tuple[int, int]) -> Heads:
    """Weighs values by softmax(q q^T / sqrt(d)) + softmax(k k^T / sqrt(d))."""
    by_queries = scaled_dot_product_attention(queries, queries, values)
    return by_queries + scaled_dot_product_attention(keys, keys, values)


def mix_pearl(queries: Heads, keys: Heads, values: Heads, _: tuple[int, int]) -> Heads:
    """Rotates keys onto queries before attending, and adds a share of centred key-key similarity.

    With q_c and k_c centred by means that weigh every patch by the length of its query, R is the
    orthogonal matrix nearest to k_c^T q_c; the logits are q (k R)^T / sqrt(d) + 0.08 k_c k_c^T /
    sqrt(d). Computed in fp32.
    """
    with torch.autocast(queries.device.type, enabled=False):
        mixed = _procrustes(queries.float(), keys.float(), values.float())
    return mixed.to(values.dtype)


def _procrustes(queries: Heads, keys: Heads, values: Heads) -> Heads:
    weights = queries.norm(dim=-1, keepdim=True)  # (batch, heads, tokens, 1)
    # The class token is no patch: it must not pull the means.
    weights = torch.cat([torch.zeros_like(weights[:, :, :1]), weights[:, :, 1:]], dim=2)
    weights = weights / weights.sum(dim=2, keepdim=True)
    centred_queries = queries - (weights * queries).sum(dim=2, keepdim=True)
    centred_keys = keys - (weights * keys).sum(dim=2, keepdim=True)
    left, _, right = torch.linalg.svd(centred_keys.transpose(-1, -2) @ centred_queries)
    rotated = keys @ (left @ right)
    # Logits of concatenated channels are the sum of both products, so that the fused attention
    # takes them and no matrix of logits is kept.
    shared = _KEY_SHARE**0.5 * centred_keys
    return scaled_dot_product_attention(
        torch.cat([queries, shared], dim=-1),
        torch.cat([rotated, shared], dim=-1),
        values,
        scale=queries.shape[-1] ** -0.5,
    )


RULES: Mapping[str, Mix] = {
    "maskclip": mix_maskclip,
    "clearclip": mix_clearclip,
    "nacclip": mix_nacclip,
    "sclip": mix_sclip,
    "pearl": mix_pearl,
}
"""How the rules mix values, by the name that ``dense(...)`` takes."""

_WHOLE_BLOCK = ("sclip",)
"""Rules that keep the block's residual connections and MLP; the others keep its attention alone."""


def apply_rule(
    rule: str,
    block: VitBlock,
    tokens: Float[Tensor, "batch tokens width"],
    grid: tuple[int, int],
) -> Float[Tensor, "batch patches width"]:
    """Runs the last block by a rule.

    Args:
        rule: A name in :data:`RULES`.
        block: The last block.
        tokens: Its input: the class token, then patches row by row.
        grid: (rows, cols) of patches.

    Returns:
        The patches, before the last norm.
    """
    queries, keys, values = block.heads(tokens)
    attended = block.attended(RULES[rule](queries, keys, values, grid))
    if rule in _WHOLE_BLOCK:
        attended = tokens + attended
        attended = attended + block.transformed(attended)
    return attended[:, 1:]


def gaussian_nearness(grid: tuple[int, int], sigma: float) -> Float[Tensor, "tokens tokens"]:
    """Returns exp(-distance^2 / (2 sigma^2)) of every two patches; 0 for the class token.

    Args:
        grid: (rows, cols) of patches.
        sigma: Standard deviation in cells.
    """
    by_row, by_col = (_gaussian(length, sigma) for length in grid)
    patches = torch.kron(by_row, by_col)  # (patches, patches): a 2D Gaussian factorises
    nearness = torch.zeros(len(patches) + 1, len(patches) + 1)
    nearness[1:, 1:] = patches
    return nearness


def _gaussian(length: int, sigma: float) -> Float[Tensor, "cells cells"]:
    cells = torch.arange(length, dtype=torch.float32)
    return torch.exp(-((cells[:, None] - cells[None]) ** 2) / (2 * sigma**2))
