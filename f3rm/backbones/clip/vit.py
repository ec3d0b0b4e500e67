"""open_clip's vision transformers, taken apart for taps."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from jaxtyping import Float
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the customary name)

from f3rm.backbones.clip.dense import embed_patches
from f3rm.backbones.clip.dense_rules import RULES, apply_rule
from f3rm.backbones.clip.towers import is_averaged
from f3rm.backbones.vit import Vit
from f3rm.backbones.vit_block import VitBlock

AVERAGED_RULES = ("maskclip",)
"""For towers that are pooled by averaging: their patches are in the text space as they are."""


def rules_of(visual: VisionTransformer) -> tuple[str, ...]:
    """Returns the last-block rules that fit how a tower is pooled."""
    return AVERAGED_RULES if is_averaged(visual) else tuple(RULES)


def clip_vit(visual: VisionTransformer) -> Vit:
    """Describes an image tower of open_clip's own, in evaluation mode.

    Its projection is the one to the space of the texts, its head the image's embedding.
    """
    blocks = [
        _block(block)
        for block in cast("Sequence[ResidualAttentionBlock]", visual.transformer.resblocks)
    ]
    proj = cast("Tensor", visual.proj)
    dense = _averaged_features if is_averaged(visual) else _class_token_features
    return Vit(
        embed=partial(embed_patches, visual),
        blocks=blocks,
        norm=visual.ln_post,
        width=proj.shape[0],
        patch_size=visual.conv1.stride[0],
        proj=lambda tokens: tokens @ proj,
        dense=partial(dense, visual, blocks[-1]),
        head=partial(_pooled, visual),
        head_channels=proj.shape[1],
    )


def _block(block: ResidualAttentionBlock) -> VitBlock:
    attention = block.attn
    return VitBlock(
        norm1=block.ln_1,
        qkv=_linear(attention),
        out=attention.out_proj,
        norm2=block.ln_2,
        mlp=block.mlp,
        num_heads=attention.num_heads,
        scale1=block.ls_1,
        scale2=block.ls_2,
    )


def _linear(attention: nn.MultiheadAttention) -> Callable[[Tensor], Tensor]:
    return lambda tokens: F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias)


def _class_token_features(
    visual: VisionTransformer,
    last: VitBlock,
    rule: str,
    tokens: Float[Tensor, "batch tokens width"],
    grid: tuple[int, int],
) -> Float[Tensor, "batch patches channels"]:
    return visual.ln_post(apply_rule(rule, last, tokens, grid)) @ visual.proj


def _averaged_features(
    visual: VisionTransformer,
    last: VitBlock,
    _: str,
    tokens: Float[Tensor, "batch tokens width"],
    __: tuple[int, int],
) -> Float[Tensor, "batch patches channels"]:
    return visual.ln_post(last.run(tokens)["token"][:, 1:]) @ visual.proj


def _pooled(
    visual: VisionTransformer, tokens: Float[Tensor, "batch tokens width"]
) -> Float[Tensor, "batch channels"]:
    normed = visual.ln_post(tokens)
    pooled = normed[:, 1:].mean(dim=1) if is_averaged(visual) else normed[:, 0]
    return pooled @ visual.proj
