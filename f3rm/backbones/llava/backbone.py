"""The vision half of a LLaVA-style model, RoboPoint's for one: image tower and projector.

A CLIP vision transformer reads a square image; the projector turns the patches of its second last
block into the language model's inputs. The language model itself is neither read nor kept.

Source: Liu et al., "Improved Baselines with Visual Instruction Tuning", CVPR 2024; Yuan et al.,
"RoboPoint", CoRL 2024. Different here: any size works, with resized positional embeddings.
"""

from collections.abc import Collection, Sequence
from typing import cast

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn

from f3rm.backbones.base import Backbone, Tower
from f3rm.backbones.hf_vit import hf_vit
from f3rm.backbones.layers import LayerInfo
from f3rm.backbones.llava.source import LlavaParts, read_llava
from f3rm.backbones.taps import Tap
from f3rm.backbones.weights import provenance_of, unavailable
from f3rm.errors import BackboneRef

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class LlavaBackbone(Backbone):
    """A frozen image tower and multimodal projector; it has no text tower."""

    default_tap = "-2|proj"

    def __init__(self, ref: BackboneRef, parts: LlavaParts) -> None:
        """Wraps the parts that :func:`~f3rm.backbones.llava.source.read_llava` returns.

        Args:
            ref: The model and weights.
            parts: The tower and the projector, in evaluation mode.
        """
        self.ref = ref
        self.mean = CLIP_MEAN
        self.std = CLIP_STD
        self.has_text = False
        self.tower = parts.tower
        self.projector = parts.projector
        self.channels = parts.channels
        self.patch_size = cast("int", parts.tower.config.patch_size)
        self.num_heads = parts.tower.config.num_attention_heads
        self._vit = hf_vit(parts.tower, self._embed, proj=parts.projector)

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

    @torch.no_grad()
    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows cols channels"]:
        """Computes projected patches; see :meth:`f3rm.backbones.base.Backbone.encode_image`.

        Raises:
            ValueError: If a size is no multiple of the patch.
        """
        return self.run(images, [self.default_tap])[Tap.parse(self.default_tap)]

    def layers(self) -> list[LayerInfo]:
        """Describes the tower's layers; ``proj`` after one of them is the projector."""
        return self._vit.layers()

    def read_taps(
        self, images: Float[Tensor, "batch 3 height width"], taps: Sequence[Tap]
    ) -> dict[Tap, Tensor]:
        """Computes checked taps; see :meth:`f3rm.backbones.base.Backbone.run`.

        Raises:
            ValueError: If a size is no multiple of the patch.
        """
        self.feature_grid(images)
        return self._vit.read(images, taps)

    def provenance(self) -> dict[str, str]:
        """Returns transformers' and torch's versions and the weights' identity."""
        return provenance_of(self.ref, transformers)

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return self.tower.device

    def _embed(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch tokens hidden"]:
        tokens = self.tower.embeddings(images.to(self.tower.dtype), interpolate_pos_encoding=True)
        return self.tower.pre_layrnorm(tokens)
