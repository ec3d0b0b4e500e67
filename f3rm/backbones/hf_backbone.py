"""What the backbones of transformers share: taps by one walk through a ``Vit``."""

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from f3rm.backbones.base import Backbone, Rgb
from f3rm.backbones.layers import LayerInfo
from f3rm.backbones.taps import Tap
from f3rm.backbones.vit import Vit
from f3rm.backbones.weights import not_loaded, provenance_of
from f3rm.errors import BackboneRef


class HfBackbone(Backbone):
    """A frozen image tower of transformers; a family describes it by :meth:`describe`."""

    has_text = False

    def __init__(
        self,
        ref: BackboneRef,
        network: PreTrainedModel | None,
        *,
        config: Any,
        mean: Rgb,
        std: Rgb,
    ) -> None:
        """Wraps a network; a family's ``load`` makes it.

        Args:
            ref: The model and weights.
            network: The image tower in evaluation mode, or None.
            config: Its configuration.
            mean: RGB mean of the network's input, for values in [0, 1].
            std: RGB standard deviation, likewise.
        """
        self.ref = ref
        self.network = network
        self.channels = config.hidden_size
        self.patch_size = config.patch_size
        self.num_heads = config.num_attention_heads
        self.mean = mean
        self.std = std

    @abstractmethod
    def describe(self, network: PreTrainedModel) -> Vit:
        """Describes the image tower."""

    @cached_property
    def _vit(self) -> Vit:
        if self.network is None:
            raise not_loaded(self.ref, "image")
        return self.describe(self.network)

    @torch.no_grad()
    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows cols channels"]:
        """Computes the default tap; see :meth:`f3rm.backbones.base.Backbone.encode_image`.

        Raises:
            ValueError: If a size is no multiple of the patch.
            BackboneUnavailableError: If the image tower was not loaded.
        """
        return self.run(images, [self.default_tap])[Tap.parse(self.default_tap)]

    def layers(self) -> list[LayerInfo]:
        """Describes the layers that taps can name: ``embed``, the blocks, ``final``, ``head``.

        Raises:
            BackboneUnavailableError: If the image tower was not loaded.
        """
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
        if self.network is None:
            raise not_loaded(self.ref, "image")
        return self.network.device
