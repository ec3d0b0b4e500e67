"""Names of the vision half's tensors in a LLaVA-style checkpoint.

LLaVA's own checkpoints and those that transformers writes name them differently; both are known.
Nothing is imported here, so that a cache can be identified without transformers.
"""

import re

TOWER = re.compile(
    r"(?:^|(?:^|\.)vision_model\.)"
    r"(?P<name>(?:embeddings|pre_layrnorm|encoder|post_layernorm)\..*)$"
)
"""Tensors of the image tower; ``name`` is the name in transformers' ``CLIPVisionModel``."""

PROJECTOR = re.compile(
    r"(?:^|\.)(?:mm_projector\.(?P<number>\d+)|multi_modal_projector\.linear_(?P<linear>\d))"
    r"\.(?P<kind>weight|bias)$"
)
"""Tensors of the multimodal projector's linear layers."""


def is_vision(name: str) -> bool:
    """Returns whether a tensor belongs to the image tower or the projector."""
    return bool(TOWER.search(name) or PROJECTOR.search(name))
