"""PE-Core through timm and open_clip: image and text towers, at any resolution.

Its image embedding is pooled by attention, as SigLIP2's: a learnt query weighs the values of all
tokens, an MLP and a projection follow. A patch passed through that head as if it were alone is in
the space of the texts; the rule ``values`` does so, its authors published none.

Source: Bolya et al., "Perception Encoder", 2025. timm's ``vit_pe_core_*`` turn queries and keys by
the patches' positions, and leave the class token as it is.
"""

from collections.abc import Collection, Sequence
from typing import Any, cast

import open_clip
import timm
import torch
from jaxtyping import Float
from timm.layers import (  # pyright: ignore[reportMissingImports] - not in the pinned timm
    apply_rot_embed_cat,
    resample_abs_pos_embed,
)
from torch import Tensor, nn

from f3rm.backbones.base import Tower
from f3rm.backbones.checkpoint import read_state_dict
from f3rm.backbones.clip.backbone import ClipBackbone
from f3rm.backbones.clip.source import ClipSource, find_source
from f3rm.backbones.clip.towers import fill, load_text_tower
from f3rm.backbones.vit import Heads, Rotation, Vit, VitBlock
from f3rm.backbones.weights import unavailable
from f3rm.errors import BackboneRef

INSTALL = 'pip install --no-deps -U "timm>=1.0.17" "open_clip_torch>=3"'

_TRUNK = "visual.trunk."


class PeBackbone(ClipBackbone):
    """A frozen PE-Core of open_clip."""

    default_tap = "-1|dense(values)"

    @classmethod
    def load(
        cls,
        ref: BackboneRef,
        *,
        device: str | torch.device = "cpu",
        towers: Collection[Tower] = ("image",),
    ) -> "PeBackbone":
        """Loads one tower or both; see :meth:`f3rm.backbones.clip.backbone.ClipBackbone.load`.

        Raises:
            BackboneUnavailableError: If open_clip is too old, the weights are not available, or the
                model is no PE-Core.
        """
        if int(open_clip.__version__.partition(".")[0]) < 3:
            raise unavailable(ref, f"open_clip {open_clip.__version__} has no PE: {INSTALL}")
        source = find_source(ref)
        if not str(source.config["vision_cfg"].get("timm_model_name")).startswith("vit_pe_core"):
            raise unavailable(ref, "it is no PE-Core; other CLIP models are of the adapter clip")
        text = load_text_tower(ref, source) if "text" in towers else None
        backbone = cls(ref, source, text=text)
        if text is not None:
            text.network.to(device)
        if "image" in towers:
            state = read_state_dict(source.checkpoint, keep=lambda name: name.startswith(_TRUNK))
            trunk = make_trunk(source)
            fill(ref, trunk, {name.removeprefix(_TRUNK): state[name] for name in state})
            backbone.show(trunk.eval().requires_grad_(requires_grad=False).to(device))
        return backbone

    def __init__(self, ref: BackboneRef, source: ClipSource, **towers: Any) -> None:
        super().__init__(ref, source, **towers)
        name = source.config["vision_cfg"]["timm_model_name"]
        self.patch_size = int(name.partition("patch")[2].partition("_")[0])

    def show(self, trunk: nn.Module) -> None:
        """Adds the image tower, in evaluation mode and built by :func:`make_trunk`."""
        self.visual = cast("Any", trunk)
        self._vit = pe_vit(trunk)
        self.num_heads, self.dense_rules = self._vit.num_heads, ("values",)


def make_trunk(source: ClipSource, **changes: Any) -> nn.Module:
    """Builds the image tower in fp32, for images of any size.

    Args:
        source: Its configuration.
        changes: Settings of timm's other than the model's.
    """
    name, channels = source.config["vision_cfg"]["timm_model_name"], source.config["embed_dim"]
    with torch.random.fork_rng(devices=[]):
        return timm.create_model(
            name, num_classes=channels, global_pool="map", dynamic_img_size=True, **changes
        )


def pe_vit(trunk: Any) -> Vit:
    """Describes timm's image tower, whose head is the image's embedding."""
    prefix, side = trunk.num_prefix_tokens, trunk.patch_embed.patch_size[0]
    blocks = [_block(block) for block in trunk.blocks]

    def embed(images: Tensor) -> Tensor:
        cells = trunk.patch_embed(images)  # (batch, rows, cols, width)
        positions = resample_abs_pos_embed(
            trunk.pos_embed,
            new_size=list(cells.shape[1:3]),
            old_size=list(trunk.patch_embed.grid_size),
            num_prefix_tokens=prefix,
        )
        first = [trunk.cls_token.expand(len(images), -1, -1)] if prefix else []
        return trunk.norm_pre(torch.cat([*first, cells.flatten(1, 2)], dim=1) + positions)

    def turn(grid: Sequence[int]) -> Rotation:
        turns = trunk.rope.get_embed(shape=list(grid))

        def turned(heads: Heads) -> Heads:
            patches = apply_rot_embed_cat(heads[:, :, prefix:], turns)
            return torch.cat([heads[:, :, :prefix], patches], dim=2)

        return lambda queries, keys: (turned(queries), turned(keys))

    def dense(_: str, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        patches = trunk.norm(blocks[-1].run(tokens, rotate=turn(grid))["token"])[:, prefix:]
        return trunk.head(trunk.fc_norm(pooled_alone(trunk.attn_pool, patches)))

    return Vit(
        embed=embed,
        blocks=blocks,
        norm=trunk.norm,
        width=trunk.embed_dim,
        patch_size=side,
        prefix_tokens=prefix,
        dense=dense,
        head=lambda tokens: trunk.head(trunk.fc_norm(trunk.attn_pool(trunk.norm(tokens)))),
        head_channels=trunk.head.out_features,
        rotation=lambda images: turn([pixels // side for pixels in images.shape[2:]]),
    )


def _block(block: Any) -> VitBlock:
    attention = block.attn
    return VitBlock(
        norm1=block.norm1,
        qkv=attention.qkv,
        out=lambda mixed: attention.proj(attention.norm(mixed)),
        norm2=block.norm2,
        mlp=block.mlp,
        num_heads=attention.num_heads,
        scale1=_scaled(block.gamma_1),
        scale2=_scaled(block.gamma_2),
    )


def _scaled(gamma: Tensor | None) -> Any:
    return nn.Identity() if gamma is None else lambda values: gamma * values


def pooled_alone(
    pool: Any, tokens: Float[Tensor, "batch tokens width"]
) -> Float[Tensor, "batch tokens width"]:
    """Passes each token through timm's attention pooling as if it were the only one."""
    values = pool.kv(tokens)[..., tokens.shape[-1] :]
    attended = pool.proj(values)
    return attended if pool.mlp is None else attended + pool.mlp(pool.norm(attended))
