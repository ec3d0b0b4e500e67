"""SigLIP2 through transformers: image and text towers, at any resolution.

Its image embedding is pooled by attention: a learnt query weighs the values of all patches, and an
MLP follows. Patches are not comparable with texts, but the head's value of a patch alone is: with
one patch, it is the image embedding. The rule ``values`` is MaskCLIP's idea for this head.

Source: Tschannen et al., "SigLIP 2", 2025. Texts are in lower case and end with one end token;
padding is not masked, as in training.
"""

from dataclasses import replace
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 (the customary name)
from transformers import (
    PreTrainedModel,
    Siglip2Config,
    Siglip2TextModel,
    Siglip2Tokenizer,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipTextModel,
    SiglipVisionModel,
)

from f3rm.backbones.hf_source import read_config
from f3rm.backbones.hf_text import HfText, HfTextBackbone, HfTowers
from f3rm.backbones.hf_vit import hf_vit
from f3rm.backbones.vit import Vit
from f3rm.backbones.weights import unavailable
from f3rm.errors import BackboneRef

_HALF = (0.5, 0.5, 0.5)


class Siglip2Backbone(HfTextBackbone):
    """A frozen SigLIP2, of a fixed resolution or NaFlex; it has no class token."""

    default_tap = "-1|dense(values)"
    dense_rules = ("values",)
    statistics = _HALF, _HALF

    @classmethod
    def find_towers(cls, ref: BackboneRef, source: str) -> HfTowers:
        """Chooses the classes; those of a fixed resolution have SigLIP's architecture.

        Raises:
            BackboneUnavailableError: If the image tower has no head.
        """
        raw = read_config(ref, source, ("siglip", "siglip2"))
        if raw["model_type"] == "siglip2":
            towers = HfTowers(Siglip2Config.from_dict(raw), Siglip2VisionModel, Siglip2TextModel)
        else:
            towers = HfTowers(SiglipConfig.from_dict(raw), SiglipVisionModel, SiglipTextModel)
        if not towers.config.vision_config.vision_use_head:
            raise unavailable(ref, "its image tower has no head, which dense features need")
        return towers

    @classmethod
    def tokenised(cls, network: PreTrainedModel, source: str) -> HfText:
        """Adds the tokenizer."""
        tokenizer = Siglip2Tokenizer.from_pretrained(source)
        return HfText(network, tokenizer, ending=(tokenizer.eos_token_id,))

    def describe(self, network: PreTrainedModel) -> Vit:
        """Describes the image tower, whose pooled output is in the space of the texts."""
        head = cast("nn.Module", network.head)
        embed = _embed_flexible if isinstance(network, Siglip2VisionModel) else _embed_fixed
        vit = hf_vit(network, lambda images: embed(network, images.to(network.dtype)))

        def dense(_: str, tokens: Tensor, __: tuple[int, int]) -> Tensor:
            return pooled_alone(head, vit.norm(vit.blocks[-1].run(tokens)["token"]))

        return replace(
            vit,
            dense=dense,
            head=lambda tokens: head(vit.norm(tokens)),
            head_channels=vit.width,
        )


def pooled_alone(
    head: Any, patches: Float[Tensor, "batch patches width"]
) -> Float[Tensor, "batch patches width"]:
    """Passes each patch through an attention head as if it were the only one.

    Args:
        head: transformers' pooling head: attention by a learnt query, norm, MLP.
        patches: Patches after the last norm.
    """
    attention: nn.MultiheadAttention = head.attention
    values_from = slice(2 * attention.embed_dim, None)
    values = F.linear(
        patches, attention.in_proj_weight[values_from], attention.in_proj_bias[values_from]
    )
    attended = attention.out_proj(values)
    return attended + head.mlp(head.layernorm(attended))


def _embed_fixed(network: Any, images: Tensor) -> Tensor:
    return network.embeddings(images, interpolate_pos_encoding=True)


def _embed_flexible(network: Any, images: Tensor) -> Tensor:
    """Cuts images into patches, whose pixels transformers expects with channels last."""
    side = network.config.patch_size
    cells = images.unflatten(3, (-1, side)).unflatten(2, (-1, side))
    patches = cells.permute(0, 2, 4, 3, 5, 1)  # (batch, rows, cols, side, side, channels)
    grid = torch.tensor([patches.shape[1:3]] * len(images))
    return network.embeddings(patches.flatten(3).flatten(1, 2), grid)
