"""Dense CLIP features at any resolution, by the rule that fits how the tower is pooled.

The pooled output of CLIP's image tower is in the space of its texts. Where it is an average of
projected patches, each patch is in that space too. Where it is the class token's, patches are not:
MaskCLIP reads the last block's values instead of its attention: each patch is passed alone through
the value and output projections, which puts it into the text space without mixing in its
neighbours.

Source: Zhou et al., "Extract Free Dense Labels from CLIP", ECCV 2022, section 3.2; the earlier f3rm
extractor. What differs from f3rm: positional embeddings are resized to the exact grid, where f3rm
scaled by (n + 0.1) / n (at most 0.07 source cells apart).
"""

from collections.abc import Sequence
from itertools import product
from typing import cast

import torch
from jaxtyping import Float
from open_clip.modified_resnet import Bottleneck, ModifiedResNet
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the customary name)

RESNET_STRIDE = 8
"""Pixels between the cells of a ResNet's features."""


def maskclip_features(
    visual: VisionTransformer, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch patches channels"]:
    """Computes MaskCLIP's vector per patch, for towers that are pooled by their class token.

    Args:
        visual: A class-token image tower in evaluation mode.
        images: Normalised RGB, a whole number of patches high and wide.

    Returns:
        Features in the space of the text embeddings, not normalised, in the tower's dtype; patches
        row by row.
    """
    *blocks, last_block = _blocks(visual)
    tokens = embed_patches(visual, images)
    for block in blocks:
        tokens = run_block(block, tokens)
    values = value_path(last_block, tokens)[:, 1:]  # (batch, patches, hidden)
    return visual.ln_post(values) @ visual.proj


def projected_tokens(
    visual: VisionTransformer, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch patches channels"]:
    """Computes the projected final token per patch, for towers that are pooled by averaging.

    Their mean is the image embedding that training compared with texts, so each patch's own token
    is in that space already.

    Args:
        visual: An image tower whose patches are averaged after its last norm.
        images: Normalised RGB, a whole number of patches high and wide.

    Returns:
        Features in the space of the text embeddings, not normalised, in the tower's dtype; patches
        row by row.
    """
    tokens = embed_patches(visual, images)
    for block in _blocks(visual):
        tokens = run_block(block, tokens)
    return visual.ln_post(tokens[:, 1:]) @ visual.proj


def resnet_features(
    visual: ModifiedResNet, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch patches channels"]:
    """Computes MaskCLIP's vector per cell, for CLIP's ResNets.

    Cells are 8 pixels apart, a quarter of the network's stride: its last two stages run once for
    each of the 2 x 2 places that their cells can begin at, and the results are interleaved. A
    cell's vector is what the network gives for the picture moved there, so nothing has to be
    trained for it.

    Source: Long et al., "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015,
    section 3.2 (shift and stitch). What differs: the stages before the last two run once.

    Args:
        visual: A ResNet in evaluation mode.
        images: Normalised RGB, a whole number of 8-pixel cells high and wide.

    Returns:
        Features in the space of the text embeddings, not normalised, in the tower's dtype; cells
        row by row.
    """
    # The network's own cells are centred 16 pixels from their first; with this border, 4 pixels
    # from the first of the picture.
    padded = F.pad(images, (RESNET_STRIDE + RESNET_STRIDE // 2,) * 4, mode="replicate")
    third = _at_all_places(visual.layer3, _second_maps(visual, padded))
    rows, cols = images.shape[-2] // RESNET_STRIDE, images.shape[-1] // RESNET_STRIDE
    maps = third.new_empty(len(images), _channels(visual.layer4), rows, cols)
    for down, right in product(range(2), range(2)):
        part = _at_all_places(visual.layer4, third[..., down::2, right::2])
        maps[..., down::2, right::2] = part
    return project_cells(visual, maps)


def _at_all_places(
    stage: nn.Sequential, maps: Float[Tensor, "batch hidden rows_before cols_before"]
) -> Float[Tensor, "batch channels rows cols"]:
    """Runs a stage that halves its input; cells are as far apart as the input's, one fewer."""
    rows, cols = maps.shape[-2] - 1, maps.shape[-1] - 1
    result = maps.new_empty(len(maps), _channels(stage), rows, cols)
    for down, right in product(range(min(2, rows)), range(min(2, cols))):
        result[..., down::2, right::2] = stage(maps[..., down:, right:])
    return result


def _channels(stage: nn.Sequential) -> int:
    return cast("Bottleneck", stage[-1]).conv3.out_channels


def resnet_maps(
    visual: ModifiedResNet, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch hidden rows cols"]:
    """Computes a ResNet's last feature map, which its attention pooling takes: stride 32."""
    return visual.layer4(visual.layer3(_second_maps(visual, images)))


def _second_maps(
    visual: ModifiedResNet, images: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch hidden rows cols"]:
    maps = visual.stem(images.to(visual.conv1.weight.dtype))
    return visual.layer2(visual.layer1(maps))


def project_cells(
    visual: ModifiedResNet, maps: Float[Tensor, "batch hidden rows cols"]
) -> Float[Tensor, "batch patches channels"]:
    """Passes each cell alone through the value and output projections of the attention pooling.

    The pooling takes the place of a transformer's last block (Zhou et al., section 3.2).
    """
    pool = visual.attnpool
    return pool.c_proj(pool.v_proj(maps.flatten(2).transpose(1, 2)))


def _blocks(visual: VisionTransformer) -> list[ResidualAttentionBlock]:
    return list(cast("Sequence[ResidualAttentionBlock]", visual.transformer.resblocks))


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


def run_block(
    block: ResidualAttentionBlock, tokens: Float[Tensor, "batch tokens hidden"]
) -> Float[Tensor, "batch tokens hidden"]:
    """Runs an ordinary transformer block.

    The same function as the block's own forward, whose inference path on a CPU builds the attention
    matrix of (tokens, tokens) per head: measured at 4000 tokens and 16 heads, the attention here is
    14 times faster and needs 1 GB less.
    """
    tokens = tokens + block.ls_1(_attend(block.attn, block.ln_1(tokens)))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


def value_path(
    block: ResidualAttentionBlock, tokens: Float[Tensor, "batch tokens hidden"]
) -> Float[Tensor, "batch tokens hidden"]:
    """Passes each token through a block's first norm, value and output projections only."""
    attention = block.attn
    values_from = slice(2 * attention.embed_dim, None)
    values = F.linear(
        block.ln_1(tokens),
        attention.in_proj_weight[values_from],
        attention.in_proj_bias[values_from],
    )
    return block.ls_1(attention.out_proj(values))


def _attend(
    attention: nn.MultiheadAttention, tokens: Float[Tensor, "batch tokens hidden"]
) -> Float[Tensor, "batch tokens hidden"]:
    projected = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)
    heads = projected.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    queries, keys, values = heads  # each (batch, heads, tokens, hidden / heads)
    mixed = F.scaled_dot_product_attention(queries, keys, values)
    return attention.out_proj(mixed.transpose(1, 2).flatten(2))
