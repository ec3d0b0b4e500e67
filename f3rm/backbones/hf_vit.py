"""The vision transformers of transformers (DINO, CLIP, SigLIP, RADIO), taken apart for taps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from f3rm.backbones.vit import TokenFunction, Vit, VitBlock
from f3rm.errors import BackboneUnavailableError


@dataclass(frozen=True)
class _Names:
    """Dotted names of a model class's parts.

    Attributes:
        blocks: The list of blocks.
        norm: The last norm; empty if there is none.
        attention: In a block, the module with the separate projections.
        parts: In a block, by field of :class:`~f3rm.backbones.vit.VitBlock`.
    """

    blocks: str
    norm: str
    attention: str
    parts: Mapping[str, str]


_DINOV2 = _Names(
    "encoder.layer",
    "layernorm",
    "attention",
    {
        "norm1": "norm1",
        "out": "attention.o_proj",
        "norm2": "norm2",
        "scale1": "layer_scale1",
        "scale2": "layer_scale2",
    },
)
_CLIP = _Names(
    "encoder.layers",
    "post_layernorm",
    "self_attn",
    {"norm1": "layer_norm1", "out": "self_attn.out_proj", "norm2": "layer_norm2"},
)
_NAMES = {
    "vit": _Names(
        "layers",
        "layernorm",
        "attention",
        {"norm1": "layernorm_before", "out": "attention.o_proj", "norm2": "layernorm_after"},
    ),
    "dinov2": _DINOV2,
    "dinov2_with_registers": _DINOV2,
    "dinov3_vit": replace(_DINOV2, blocks="model.layer", norm="norm"),
    "tipsv2_vision_model": _DINOV2,
    "radio": replace(_DINOV2, norm=""),
    "clip_vision_model": _CLIP,
    "siglip_vision_model": _CLIP,
    "siglip2_vision_model": _CLIP,
}
"""By model type; all call a block's MLP ``mlp``."""

_WITHOUT_CLASS_TOKEN = ("siglip_vision_model", "siglip2_vision_model")


def hf_vit(
    network: PreTrainedModel, embed: TokenFunction, *, proj: TokenFunction | None = None
) -> Vit:
    """Describes a network in evaluation mode.

    Args:
        network: Of a model type in this module's table.
        embed: Images to the first block's tokens.
        proj: The projection after it, if there is one.

    Raises:
        BackboneUnavailableError: If this version of transformers names its parts differently.
    """
    config: Any = network.config
    names = _NAMES[config.model_type]
    try:
        blocks: Sequence[nn.Module] = attrgetter(names.blocks)(network)
        return Vit(
            embed=embed,
            blocks=[_block(block, names, config.num_attention_heads) for block in blocks],
            norm=attrgetter(names.norm)(network) if names.norm else nn.Identity(),
            width=config.hidden_size,
            patch_size=config.patch_size,
            prefix_tokens=_prefix_tokens(config),
            proj=proj,
        )
    except AttributeError as error:
        msg = (
            f"transformers {transformers.__version__} names the parts of "
            f"{type(network).__name__} differently than f3rm expects ({error}). Install the "
            "version in constraints.txt."
        )
        raise BackboneUnavailableError(msg) from error


def _prefix_tokens(config: Any) -> int:
    """Counts class tokens and registers."""
    if config.model_type in _WITHOUT_CLASS_TOKEN:
        return 0
    registers = getattr(config, "num_registers", getattr(config, "num_register_tokens", 0))
    return getattr(config, "num_cls_tokens", 1) + registers


def _block(block: nn.Module, names: _Names, num_heads: int) -> VitBlock:
    attention = attrgetter(names.attention)(block)
    parts = {field: attrgetter(name)(block) for field, name in names.parts.items()}
    qkv = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
    return VitBlock(qkv=qkv, mlp=attrgetter("mlp")(block), num_heads=num_heads, **parts)


def _joined(*projections: Callable[[Tensor], Tensor]) -> TokenFunction:
    return lambda tokens: torch.cat([project(tokens) for project in projections], dim=-1)
