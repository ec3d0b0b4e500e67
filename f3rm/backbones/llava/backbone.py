"""The vision half of a LLaVA-style model, RoboPoint's for one: image tower and projector.

A CLIP vision transformer reads a square image; the projector turns the patches of its second last
block into the language model's inputs. The language model itself is neither read nor kept.

Source: Liu et al., "Improved Baselines with Visual Instruction Tuning", CVPR 2024; Yuan et al.,
"RoboPoint", CoRL 2024. Different here: any size works, with resized positional embeddings.
"""

from collections.abc import Collection
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from f3rm.backbones.base import Tower
from f3rm.backbones.hf_backbone import HfBackbone
from f3rm.backbones.hf_vit import hf_vit
from f3rm.backbones.llava.source import LlavaParts, read_llava
from f3rm.backbones.vit import Vit
from f3rm.backbones.weights import unavailable
from f3rm.errors import BackboneRef

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class LlavaBackbone(HfBackbone):
    """A frozen image tower and multimodal projector; it has no text tower."""

    default_tap = "-2|proj"

    def __init__(self, ref: BackboneRef, parts: LlavaParts) -> None:
        """Wraps the parts that :func:`~f3rm.backbones.llava.source.read_llava` returns.

        Args:
            ref: The model and weights.
            parts: The tower and the projector, in evaluation mode.
        """
        config = parts.tower.config
        super().__init__(ref, parts.tower, config=config, mean=CLIP_MEAN, std=CLIP_STD)
        self.tower = parts.tower
        self.projector = parts.projector
        self.channels = parts.channels

    @classmethod
    def load(
        cls,
        ref: BackboneRef,
        *,
        device: str | torch.device = "cpu",
        towers: Collection[Tower] = ("image",),
    ) -> "LlavaBackbone":
        """Loads tower and projector; see :meth:`f3rm.backbones.base.Backbone.load`.

        Args:
            ref: ``weights`` is a hub name (empty: the model's name is one) or a local folder in the
                hub's layout, sharded or not, ``.safetensors`` or ``.bin``. Only the shards that
                hold the tower or the projector are opened, or downloaded.
            device: Where the parameters go.
            towers: Must be the image tower alone.

        Returns:
            The frozen parts in fp32.

        Raises:
            BackboneUnavailableError: If the weights are not available or are no LLaVA's, or a text
                tower is asked for.
        """
        if "text" in towers:
            raise unavailable(ref, "its language model is not loaded; query a CLIP model instead")
        parts = read_llava(ref)
        cast("nn.Module", parts.tower).to(device)
        parts.projector.to(device)
        return cls(ref, parts)

    def describe(self, network: PreTrainedModel) -> Vit:
        """Describes the tower; ``proj`` after one of its layers is the projector."""
        return hf_vit(network, self._embed, proj=self.projector)

    def _embed(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        tokens = self.tower.embeddings(images.to(self.tower.dtype), interpolate_pos_encoding=True)
        return self.tower.pre_layrnorm(tokens)
