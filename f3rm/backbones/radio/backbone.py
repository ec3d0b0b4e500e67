"""RADIO through transformers: one image tower distilled from several, without a text tower.

Its tokens are class tokens (one per teacher), registers, then patches; there is no last norm. The
input is normalised inside the network by transformers, before it here.

Source: Ranzinger et al., "AM-RADIO", CVPR 2024; Heinrich et al., "RADIOv2.5", CVPR 2025.
"""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from transformers import PreTrainedModel, RadioConfig, RadioModel

from f3rm.backbones.base import Tower, rgb
from f3rm.backbones.hf_backbone import HfBackbone
from f3rm.backbones.hf_source import read_config, read_hf, read_network
from f3rm.backbones.hf_vit import hf_vit
from f3rm.backbones.vit import Vit
from f3rm.backbones.weights import unavailable
from f3rm.errors import BackboneRef


class RadioBackbone(HfBackbone):
    """A frozen RADIO; its summary is the tap ``head``."""

    @classmethod
    def load(
        cls,
        ref: BackboneRef,
        *,
        device: str | torch.device = "cpu",
        towers: Collection[Tower] = ("image",),
    ) -> "RadioBackbone":
        """Loads the network; see :meth:`f3rm.backbones.base.Backbone.load`.

        Args:
            ref: ``weights`` is a hub name (empty: the model's name is one) or a local folder.
            device: Where the parameters go.
            towers: Must be the image tower alone.

        Returns:
            The frozen network in fp32.

        Raises:
            BackboneUnavailableError: If the weights are not available or do not fit, or a text
                tower is asked for.
        """
        if "text" in towers:
            raise unavailable(ref, "RADIO has no text tower; ask a CLIP-like model instead")
        network = read_hf(ref, lambda source: _read(ref, source))
        conditioner: Any = network.input_conditioner
        mean = rgb(conditioner.norm_mean.flatten().tolist())
        std = rgb(conditioner.norm_std.flatten().tolist())
        cast("nn.Module", network).to(device)
        return cls(ref, network, config=network.config, mean=mean, std=std)

    def describe(self, network: PreTrainedModel) -> Vit:
        """Describes the network, whose input is normalised already."""
        embeddings, dtype = cast("nn.Module", network.embeddings), network.dtype
        config: Any = network.config
        summaries = list(config.summary_idxs)
        return replace(
            hf_vit(network, lambda images: embeddings(images.to(dtype))),
            head=lambda tokens: tokens[:, summaries].flatten(1),
            head_channels=len(summaries) * config.hidden_size,
        )


def _read(ref: BackboneRef, source: str) -> PreTrainedModel:
    config = RadioConfig.from_dict(read_config(ref, source, ("radio",)))
    return read_network(ref, RadioModel, source, config)
