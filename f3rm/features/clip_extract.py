"""The earlier extractor's CLIP function, on a model of open_clip."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.backbones.clip.backbone import ClipBackbone
from f3rm.backbones.clip.vit import clip_vit
from f3rm.backbones.taps import Tap


@torch.inference_mode()
def get_patch_encodings(
    model: Any, image_batch: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, "batch patches channels"]:
    """Computes patch features in the space of the texts, by MaskCLIP's value path.

    Args:
        model: A CLIP of open_clip whose image tower is a vision transformer.
        image_batch: Normalised RGB, a whole number of patches high and wide.

    Returns:
        Vectors of the patches row by row, without the class token; not normalised.
    """
    tap = Tap.parse(ClipBackbone.default_tap)
    return clip_vit(model.visual).read(image_batch, [tap])[tap].flatten(1, 2)
