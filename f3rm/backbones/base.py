"""The contract between feature extraction and a frozen 2D foundation model.

An adapter file per model family implements :class:`Backbone`; everything above this room sees only
the contract.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm._types import BackboneRef, BackboneUnavailableError

Tower = Literal["image", "text"]
"""Which half of a backbone is loaded: extraction needs the image tower, queries the text tower."""


class Backbone(ABC):
    """A frozen model: images to dense features and, where it can, texts into the same space.

    Attributes:
        ref: What was loaded.
        channels: Feature channels C.
        patch_size: Pixels per feature cell; network inputs are a whole number of patches.
        mean: Per-channel RGB mean that the input is normalised with, for values in [0, 1].
        std: Per-channel RGB standard deviation, likewise.
        has_text: Whether the model has a text tower, so that :meth:`encode_text` works once that
            tower is loaded. A property of the model, not of the towers at hand.
    """

    ref: BackboneRef
    channels: int
    patch_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    has_text: bool

    @classmethod
    def load(
        cls, ref: BackboneRef, *, device: str | torch.device, towers: Collection[Tower]
    ) -> "Backbone":
        """Loads the weights; every adapter that the registry can load has this method.

        Args:
            ref: What to load.
            device: Where the parameters go.
            towers: Which halves to keep in memory.

        Returns:
            The frozen backbone in evaluation mode.

        Raises:
            BackboneUnavailableError: If the weights, or a tower, cannot be had.
            NotImplementedError: If the class is built directly, as a test's stand-in is.
        """
        raise NotImplementedError(f"{cls.__name__}.load: this backbone is built directly.")

    @abstractmethod
    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows cols channels"]:
        """Computes dense features, one vector per patch, not normalised.

        Args:
            images: Normalised RGB on :attr:`device`; height and width are multiples of
                ``patch_size``.

        Returns:
            Features with ``rows = height / patch_size`` and ``cols = width / patch_size``.

        Raises:
            ValueError: If a size is no multiple of the patch.
        """

    def encode_text(self, texts: Sequence[str]) -> Float[Tensor, "texts channels"]:
        """Embeds texts into the feature space, one unit vector each, fp32.

        Raises:
            BackboneUnavailableError: If the backbone has no text tower, or was loaded without it.
        """
        del texts
        msg = (
            f"encode_text: the backbone {self.ref.adapter!r} ({self.ref.model}) has no text tower. "
            "Query a CLIP-like feature type (CLIP, DINOCLIP) instead."
        )
        raise BackboneUnavailableError(msg)

    @abstractmethod
    def provenance(self) -> dict[str, str]:
        """Returns what a cache records: the library, its version, and the weights' identity."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device that the parameters are on."""

    def feature_grid(self, images: Float[Tensor, "batch 3 height width"]) -> tuple[int, int]:
        """Returns the (rows, cols) of features that a batch gives.

        Raises:
            ValueError: If a size is no positive multiple of the patch.
        """
        height, width = images.shape[-2:]
        if (
            min(height, width) < self.patch_size
            or height % self.patch_size
            or width % self.patch_size
        ):
            msg = (
                f"encode_image: images must be a whole number of {self.patch_size}-pixel patches, "
                f"got (height, width) = {(height, width)}. Resize them to a multiple first."
            )
            raise ValueError(msg)
        return height // self.patch_size, width // self.patch_size
