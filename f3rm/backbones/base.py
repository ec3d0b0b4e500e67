"""The contract between feature extraction and a frozen 2D foundation model.

One package per model family implements :class:`Backbone`; every room above sees only the contract.

An adapter that implements :meth:`Backbone.encode_image` alone offers one layer, ``final``. One that
offers more overrides :meth:`Backbone.layers` and :meth:`Backbone.read_taps`, and
:meth:`Backbone.layer_shape` where a map's size does not follow from its stride.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.backbones.calibration import Calibration
from f3rm.backbones.known_words import KnownWords
from f3rm.backbones.layers import LayerInfo, check_tap, find_layer
from f3rm.backbones.tap_values import apply_ops, result_of_ops
from f3rm.backbones.taps import Tap, parse_taps
from f3rm.errors import BackboneRef, BackboneUnavailableError

Tower = Literal["image", "text"]
"""A half of a backbone: extraction needs the image tower, queries the text tower."""

Rgb = tuple[float, float, float]
"""One number per colour channel, for values in [0, 1]."""

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
"""RGB mean of the input of most models trained on ImageNet."""
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)
"""RGB standard deviation, likewise."""


def rgb(values: Iterable[float | int]) -> Rgb:
    """Reads three numbers from a configuration file.

    Raises:
        ValueError: If there are not three, or they are no numbers.
        TypeError: Likewise.
    """
    red, green, blue = map(float, values)
    return red, green, blue


class Backbone(ABC):
    """A frozen model: images to dense features and, where it can, texts into the same space.

    Attributes:
        ref: The model and weights.
        channels: Feature channels C.
        patch_size: Pixels per feature cell; network inputs are a whole number of patches.
        mean: Per-channel RGB mean that the input is normalised with, for values in [0, 1].
        std: Per-channel RGB standard deviation, likewise.
        has_text: Whether the model has a text tower, so that :meth:`encode_text` works once that
            tower is loaded. A property of the model, not of the loaded towers.
        known_words: The only words that the text tower understands; None where any may be asked.
        calibration: What its features are like in general; None where nobody measured it.
        default_tap: The tap of :meth:`encode_image`.
        num_heads: Heads of the attention, which the tap operation ``heads`` splits channels into.
        dense_rules: Names that the tap operation ``dense(...)`` takes.
    """

    default_tap: ClassVar[str] = "final"
    known_words: KnownWords | None = None
    calibration: Calibration | None = None
    num_heads: int = 1
    dense_rules: tuple[str, ...] = ()

    ref: BackboneRef
    channels: int
    patch_size: int
    mean: Rgb
    std: Rgb
    has_text: bool

    @classmethod
    def load(
        cls, ref: BackboneRef, *, device: str | torch.device, towers: Collection[Tower]
    ) -> "Backbone":
        """Loads the weights; every adapter that the registry can load has this method.

        Args:
            ref: The model and weights.
            device: Where the parameters go.
            towers: The halves to keep in memory.

        Returns:
            The frozen backbone in evaluation mode.

        Raises:
            BackboneUnavailableError: If the weights, or a tower, are not available.
            NotImplementedError: If the class can only be built directly, as a test's stand-in.
        """
        raise NotImplementedError(f"{cls.__name__} has no load method; build it directly.")

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
        """Checks taps against this backbone, without computing anything.

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
            taps: Expressions of :mod:`f3rm.backbones.taps`, which has the shapes of the results.

        Returns:
            One tensor per distinct tap, in the order of ``taps``, on :attr:`device`.

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
        """Computes checked, distinct taps, in any order; :meth:`run` calls it.

        Raises:
            ValueError: If the size of the images does not fit.
        """
        features = self.encode_image(images)
        # The features of a dense-only layer are those of its rule, whose operation is thus done.
        is_dense = self.layers()[0].is_dense_only
        return {tap: apply_ops(features, tap.ops[is_dense:], "map") for tap in taps}

    def shape(self, tap: Tap | str, height: int, width: int) -> tuple[int, ...]:
        """Returns the shape of a tap of one image, without the batch axis.

        Args:
            tap: The tap.
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
        """Returns the shape of a checked tap before its operations, without the batch axis.

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
            f"The backbone {self.ref.adapter!r} ({self.ref.model}) has no text tower. "
            "Query a CLIP-like feature type (CLIP, DINOCLIP) instead."
        )
        raise BackboneUnavailableError(msg)

    @abstractmethod
    def provenance(self) -> dict[str, str]:
        """Returns a cache's record: the library, its version, and the weights' identity."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device that the parameters are on."""

    def feature_grid(self, images: Float[Tensor, "batch 3 height width"]) -> tuple[int, int]:
        """Returns the (rows, cols) of a batch's features.

        Raises:
            ValueError: If a size is no positive multiple of the patch.
        """
        return self.grid_of((images.shape[-2], images.shape[-1]))

    def grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns the (rows, cols) of the features of images of a (height, width).

        Raises:
            ValueError: If a size is no positive multiple of the patch.
        """
        height, width = size
        if min(size) < self.patch_size or height % self.patch_size or width % self.patch_size:
            msg = (
                f"Images must be a whole number of {self.patch_size}-pixel patches, got (height, "
                f"width) = {size}. Resize them to a multiple first."
            )
            raise ValueError(msg)
        return height // self.patch_size, width // self.patch_size
