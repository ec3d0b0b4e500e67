"""Which tensors of a LLaVA-style checkpoint are its vision half; knows names only.

LLaVA's own checkpoints and those that transformers writes name them differently; both are known.
"""

import re

TOWER = re.compile(
    r"(?:^|(?:^|\.)vision_model\.)"
    r"(?P<name>(?:embeddings|pre_layrnorm|encoder|post_layernorm)\..*)$"
)
"""Tensors of the image tower; ``name`` is what transformers' ``CLIPVisionModel`` calls it."""

PROJECTOR = re.compile(
    r"(?:^|\.)(?:mm_projector\.(?P<number>\d+)|multi_modal_projector\.linear_(?P<linear>\d))"
    r"\.(?P<kind>weight|bias)$"
)
"""Tensors of the multimodal projector's linear layers."""

INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Files that say which shard holds which tensor."""


def is_vision(name: str) -> bool:
    """Tells whether a tensor is part of the vision half."""
    return bool(TOWER.search(name) or PROJECTOR.search(name))
