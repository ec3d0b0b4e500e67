"""open_clip's vision transformers taken apart for taps, at any resolution.

The pooled output of CLIP's image tower is in the space of its texts. Where it is an average of
projected patches, each patch is in that space too. Where it is the class token's, patches are not,
and a rule for the last block puts them there (:mod:`f3rm.backbones.clip.dense_rules`).

Source: the earlier f3rm extractor. Different here: positional embeddings are resized to the exact
grid, where f3rm scaled by (n + 0.1) / n (at most 0.07 source cells apart).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the customary name)

from f3rm.backbones.clip.dense_rules import RULES, apply_rule
from f3rm.backbones.clip.towers import is_averaged
from f3rm.backbones.vit import Vit, VitBlock

AVERAGED_RULES = ("maskclip",)
"""For towers that are pooled by averaging: their patches are in the text space as they are."""


def rules_of(visual: VisionTransformer) -> tuple[str, ...]:
    """Returns the last-block rules that fit how a tower is pooled."""
    return AVERAGED_RULES if is_averaged(visual) else tuple(RULES)


def clip_vit(visual: VisionTransformer) -> Vit:
    """Describes an image tower of open_clip's own, in evaluation mode.

    Its projection is the one to the space of the texts, its head the image's embedding.
    """
    modules = list(cast("Sequence[ResidualAttentionBlock]", visual.transformer.resblocks))
    proj = cast("Tensor", visual.proj)

    def project(tokens: Tensor) -> Tensor:
        return tokens @ proj

    def pooled(tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch channels"]:
        normed = visual.ln_post(tokens)
        return project(normed[:, 1:].mean(dim=1) if is_averaged(visual) else normed[:, 0])

    def dense(
        rule: str, tokens: Float[Tensor, "batch tokens width"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch patches channels"]:
        if is_averaged(visual):
            patches = blocks[-1].run(tokens)["token"][:, 1:]
        elif rule == "maskclip":
            patches = value_path(modules[-1], tokens)[:, 1:]
        else:
            patches = apply_rule(rule, blocks[-1], tokens, grid)
        return project(visual.ln_post(patches))

    blocks = [_block(module) for module in modules]
    return Vit(
        embed=partial(embed_patches, visual),
        blocks=blocks,
        norm=visual.ln_post,
        width=proj.shape[0],
        patch_size=visual.conv1.stride[0],
        proj=project,
        dense=dense,
        head=pooled,
        head_channels=proj.shape[1],
    )


def _block(block: ResidualAttentionBlock) -> VitBlock:
    attention = block.attn
    return VitBlock(
        norm1=block.ln_1,
        qkv=_packed_projection(attention),
        out=attention.out_proj,
        norm2=block.ln_2,
        mlp=block.mlp,
        num_heads=attention.num_heads,
        scale1=block.ls_1,
        scale2=block.ls_2,
    )


def _packed_projection(attention: nn.MultiheadAttention) -> Callable[[Tensor], Tensor]:
    return lambda tokens: F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)


def value_path(
    block: ResidualAttentionBlock, tokens: Float[Tensor, "batch tokens hidden"]
) -> Float[Tensor, "batch tokens hidden"]:
    """Passes each token alone through a block's first norm, value and output projections.

    The rule ``maskclip`` without the queries and keys that it would not use; the readable twin is
    ``apply_rule("maskclip", ...)``.
    """
    attention = block.attn
    values_from = slice(2 * attention.embed_dim, None)
    values = F.linear(
        block.ln_1(tokens),
        attention.in_proj_weight[values_from],
        attention.in_proj_bias[values_from],
    )
    return block.ls_1(attention.out_proj(values))


def embed_patches(
    visual: VisionTransformer, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch tokens hidden"]:
    """Turns images into the first block's tokens: the class token, then patches row by row.

    The patch dropout of some training configurations is left out; it is the identity in evaluation
    mode.

    Args:
        visual: The image tower.
        images: Normalised RGB; cast to the tower's dtype.

    Returns:
        Tokens with positional embeddings, after the tower's first norm.
    """
    patches = visual.conv1(images.to(visual.conv1.weight.dtype))  # (batch, hidden, rows, cols)
    grid = (patches.shape[-2], patches.shape[-1])
    class_tokens = visual.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
    tokens = torch.cat([class_tokens, patches.flatten(2).transpose(1, 2)], dim=1)
    trained_grid = (visual.grid_size[0], visual.grid_size[1])
    positions = resize_positions(visual.positional_embedding, trained_grid, grid)
    return visual.ln_pre(tokens + positions.to(tokens.dtype))


def resize_positions(
    positions: Float[Tensor, "trained_tokens hidden"],
    trained_grid: tuple[int, int],
    grid: tuple[int, int],
) -> Float[Tensor, "tokens hidden"]:
    """Resizes positional embeddings from the trained grid to another, bicubically in fp32.

    Args:
        positions: The class token's embedding, then one per cell of the trained grid, row by row.
        trained_grid: (rows, cols) of the embeddings.
        grid: (rows, cols) wanted.

    Returns:
        The class token's embedding as it was, then one per cell of the grid; the input itself if
        the grids are equal.
    """
    if grid == trained_grid:
        return positions
    cells = (
        positions[1:].float().unflatten(0, trained_grid).permute(2, 0, 1)[None]
    )  # (1, hidden, rows, cols)
    resized = F.interpolate(cells, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([positions[:1].float(), resized[0].flatten(1).T])
