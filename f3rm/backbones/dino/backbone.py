"""DINO, DINOv2 and DINOv3 through transformers: patch tokens after the final norm, at any size.

transformers resizes the positional embeddings to the exact grid, where the original DINO and DINOv2
code scaled by (n + 0.1) / n (at most 0.07 source cells apart). DINOv3 has none: it turns queries
and keys by the positions of their patches.
"""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    Dinov2Model,
    Dinov2WithRegistersModel,
    DINOv3ViTModel,
    PreTrainedModel,
    ViTModel,
)
from transformers.models.dinov3_vit.modeling_dinov3_vit import apply_rotary_pos_emb

from f3rm.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Rgb, Tower
from f3rm.backbones.hf_backbone import HfBackbone
from f3rm.backbones.hf_source import read_config, read_hf, read_network, read_statistics
from f3rm.backbones.hf_vit import hf_vit
from f3rm.backbones.vit import Rotation, Vit
from f3rm.backbones.weights import unavailable
from f3rm.errors import BackboneRef

_MODEL_CLASSES: dict[str, type[PreTrainedModel]] = {
    "vit": ViTModel,
    "dinov2": Dinov2Model,
    "dinov2_with_registers": Dinov2WithRegistersModel,
    "dinov3_vit": DINOv3ViTModel,
}


class DinoBackbone(HfBackbone):
    """A DINO, DINOv2 or DINOv3 vision transformer, with or without registers, without texts."""

    def __init__(
        self,
        ref: BackboneRef,
        network: PreTrainedModel,
        *,
        mean: Rgb = IMAGENET_MEAN,
        std: Rgb = IMAGENET_STD,
    ) -> None:
        """Wraps a frozen network; :meth:`load` makes it.

        Args:
            ref: The model and weights.
            network: A ``ViTModel``, ``Dinov2Model``, ``Dinov2WithRegistersModel`` or
                ``DINOv3ViTModel`` in evaluation mode.
            mean: RGB mean of the network's input, for values in [0, 1].
            std: RGB standard deviation, likewise.
        """
        super().__init__(ref, network, config=network.config, mean=mean, std=std)

    @classmethod
    def load(
        cls,
        ref: BackboneRef,
        *,
        device: str | torch.device = "cpu",
        towers: Collection[Tower] = ("image",),
    ) -> "DinoBackbone":
        """Loads the network; see :meth:`f3rm.backbones.base.Backbone.load`.

        Args:
            ref: ``weights`` is a hub name (empty: the model's name is one) or a local folder in the
                hub's layout, whose ``preprocessor_config.json``, if there is one, gives the input
                statistics.
            device: Where the parameters go.
            towers: Must be the image tower alone.

        Returns:
            The frozen network in fp32.

        Raises:
            BackboneUnavailableError: If the weights are not available or do not fit, or a text
                tower is asked for.
        """
        if "text" in towers:
            raise unavailable(ref, "DINO models have no text tower; ask a CLIP-like model instead")
        network = read_hf(ref, lambda source: _read(ref, source))
        mean, std = read_statistics(ref, IMAGENET_MEAN, IMAGENET_STD)
        cast("nn.Module", network).to(device)
        return cls(ref, network, mean=mean, std=std)

    def describe(self, network: PreTrainedModel) -> Vit:
        """Describes the network; DINOv3's queries and keys are turned."""
        embeddings, dtype = cast("nn.Module", network.embeddings), network.dtype
        # The later classes always resize their positional embeddings and refuse the option.
        options = {"interpolate_pos_encoding": True} if isinstance(network, ViTModel) else {}
        vit = hf_vit(network, lambda images: embeddings(images.to(dtype), **options))
        if not isinstance(network, DINOv3ViTModel):
            return vit
        return replace(vit, rotation=partial(_rotation, network))


def _rotation(network: DINOv3ViTModel, images: Tensor) -> Rotation:
    cos, sin = network.rope_embeddings(images)
    return lambda queries, keys: apply_rotary_pos_emb(queries, keys, cos, sin)


def _read(ref: BackboneRef, source: str) -> PreTrainedModel:
    raw = read_config(ref, source, tuple(_MODEL_CLASSES))
    model_class = _MODEL_CLASSES[raw["model_type"]]
    config_class: Any = model_class.config_class
    options: dict[str, Any] = {"add_pooling_layer": False} if model_class is ViTModel else {}
    return read_network(ref, model_class, source, config_class.from_dict(raw), **options)
