"""The contract between feature extraction and a frozen 2D foundation model.

An adapter file per model family implements :class:`Backbone`; everything above this room sees only
the contract.

An adapter that only implements :meth:`Backbone.encode_image` offers one layer, ``final``. One that
offers more overrides :meth:`Backbone.layers` and :meth:`Backbone.read_taps`, and
:meth:`Backbone.layer_shape` where a map's size does not follow from its stride.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.backbones.layers import LayerInfo, check_tap, find_layer
from f3rm.backbones.tap_values import apply_ops, result_of_ops
from f3rm.backbones.taps import Tap, parse_taps
from f3rm.errors import BackboneRef, BackboneUnavailableError

Tower = Literal["image", "text"]
"""Which half of a backbone is loaded: extraction needs the image tower, queries the text tower."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""RGB mean that most models trained on ImageNet normalise with, for values in [0, 1]."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""RGB standard deviation, likewise."""


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
        default_tap: What :meth:`encode_image` gives, as a tap.
        num_heads: Heads of the attention, which the tap operation ``heads`` splits channels into.
        dense_rules: What the tap operation ``dense(...)`` may name.
    """

    default_tap: ClassVar[str] = "final"
    num_heads: int = 1
    dense_rules: tuple[str, ...] = ()

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

    def layers(self) -> list[LayerInfo]:
        """Describes the layers that taps can name, in the order in which they are computed."""
        return [LayerInfo("final", "map", self.channels, self.patch_size)]

    def check(self, taps: Sequence[Tap | str]) -> None:
        """Checks that this backbone can give what taps ask for, without computing anything.

        Raises:
            TapError: If a tap is malformed, or names a layer, a facet or an operation that the
                model does not have; the message has near matches.
        """
        layers = self.layers()
        for tap in parse_taps(taps):
            check_tap(layers, tap, dense_rules=self.dense_rules)

    @torch.no_grad()
    def run(
        self, images: Float[Tensor, "batch 3 height width"], taps: Sequence[Tap | str]
    ) -> dict[Tap, Tensor]:
        """Computes taps in one forward pass that stops at the deepest layer asked for.

        Args:
            images: As for :meth:`encode_image`.
            taps: What to read; :mod:`f3rm.backbones.taps` has the expressions and the shapes.

        Returns:
            One tensor per tap, in the order of ``taps``; on the device, with every operation done.

        Raises:
            TapError: If a tap does not fit the model.
            ValueError: If a size does not.
        """
        wanted = tuple(dict.fromkeys(parse_taps(taps)))
        self.check(wanted)
        values = self.read_taps(images, wanted) if wanted else {}
        return {tap: values[tap] for tap in wanted}

    def read_taps(
        self, images: Float[Tensor, "batch 3 height width"], taps: Sequence[Tap]
    ) -> dict[Tap, Tensor]:
        """Computes checked, distinct taps in any order; what :meth:`run` calls.

        Raises:
            ValueError: If the size of the images does not fit.
        """
        features = self.encode_image(images)
        is_dense = self.layers()[0].is_dense_only  # then the features are what the rule gives
        return {tap: apply_ops(features, tap.ops[is_dense:], "map") for tap in taps}

    def shape(self, tap: Tap | str, height: int, width: int) -> tuple[int, ...]:
        """Returns the shape that a tap gives for one image, without the batch axis.

        Args:
            tap: What would be read.
            height: Of the network input in pixels.
            width: Likewise.

        Raises:
            TapError: If the tap does not fit the model.
            ValueError: If the size does not.
        """
        (wanted,) = parse_taps([tap])
        self.check([wanted])
        layer = find_layer(self.layers(), wanted)
        shape = (1, *self.layer_shape(wanted, height, width))
        form = wanted.read_form(layer.kind)
        widths = {"norm": layer.channels, "proj": self.channels, "dense": self.channels}
        return result_of_ops(shape, wanted.ops, form, widths=widths, num_heads=self.num_heads)[1:]

    def layer_shape(self, tap: Tap, height: int, width: int) -> tuple[int, ...]:
        """Returns the shape of what a checked tap reads before its operations, without batch.

        Raises:
            ValueError: If the size does not fit the model.
        """
        layer = find_layer(self.layers(), tap)
        form = tap.read_form(layer.kind)
        if layer.kind == "vector":
            return (layer.channels,)
        rows, cols = self.grid_of((height, width))
        num_tokens = layer.prefix_tokens + rows * cols
        if form == "matrix":
            num_tokens = rows * cols if tap.select == "patch" else num_tokens
            return (self.num_heads, num_tokens, num_tokens)
        channels = self.num_heads if tap.facet == "attn" else layer.channels
        if form == "map":
            return (rows, cols, channels)
        if form == "vector":
            return (channels,)
        return (layer.prefix_tokens - 1 if tap.select == "reg" else num_tokens, channels)

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
        return self.grid_of((images.shape[-2], images.shape[-1]))

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the (rows, cols) of features that images of a (height, width) give.

        Raises:
            ValueError: If a size is no positive multiple of the patch.
        """
        height, width = size
        if min(size) < self.patch_size or height % self.patch_size or width % self.patch_size:
            msg = (
                f"encode_image: images must be a whole number of {self.patch_size}-pixel patches, "
                f"got (height, width) = {size}. Resize them to a multiple first."
            )
            raise ValueError(msg)
        return height // self.patch_size, width // self.patch_size
