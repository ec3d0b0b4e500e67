"""Preparation of a network input: an image is resized, then fitted to whole patches.

Sizes are (height, width). Image pixels are mapped to cells by :meth:`Placement.affine` only: the
ratio of a map's size to an image's is wrong as soon as something was cut, padded or rounded.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

from f3rm.errors import F3rmError
from f3rm.extract.encoder import prepare
from f3rm.extract.taps.settings import check_settings
from f3rm.store.geometry import PixelAffine, Size, ValidRect
from f3rm.store.spec import Interpolation

Resize = Literal["none", "short", "long", "exact", "cover"]
Fit = Literal["round", "floor", "crop", "pad"]
PadValue = Literal["zero", "black", "edge"]

_LARGEST_SIDE = 1 << 16


class PrepError(F3rmError):
    """A preparation has impossible settings, or an image is too small for it."""


@dataclass(frozen=True)
class Prep:
    """Sizes and borders of the network input.

    Attributes:
        resize: ``none`` keeps the image's size; ``short`` and ``long`` give that side the length
            ``size``; ``exact`` stretches to ``size``; ``cover`` scales until ``size`` is covered
            and cuts out the centre.
        size: A length in pixels, or (height, width) with ``exact`` and ``cover``, where a single
            number is a square. ``none`` ignores it.
        fit: How the result becomes a whole number of patches: ``round`` and ``floor`` resize to the
            nearest or the next smaller one, ``crop`` cuts off at the right and the bottom, ``pad``
            adds there.
        pad_value: Padding: ``zero`` after normalisation, ``black`` pixels, or the repeated
            ``edge``.
        interpolation: How images are resized, always with antialiasing.
    """

    resize: Resize = "short"
    size: int | tuple[int, int] | None = 224
    fit: Fit = "round"
    pad_value: PadValue = "zero"
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        check_settings(Prep, vars(self), PrepError)
        object.__setattr__(self, "size", _checked_size(self.size, self.resize))

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Prep":
        """Makes a preparation of YAML's or JSON's values; missing ones have their defaults.

        Raises:
            PrepError: If a name or a value is unknown.
        """
        check_settings(cls, plain, PrepError)
        # Before the constructor: values of a file may have any type.
        size = _checked_size(plain.get("size", cls.size), plain.get("resize", cls.resize))
        return cls(**{**plain, "size": size})

    def place(self, image_size: Size, patch: int) -> "Placement":
        """Computes the position of an image in the network input.

        Args:
            image_size: Height and width of the image in pixels.
            patch: The network input is a multiple of this many pixels.

        Raises:
            PrepError: If the image is smaller than one patch and ``fit`` is ``crop``.
        """
        scaled = self._scaled(image_size)
        canvas = self._pair() if self.resize == "cover" else scaled
        rows, cols = (self._fitted(*side, patch) for side in zip(scaled, canvas, strict=True))
        placement = Placement(*zip(rows, cols, strict=True))
        if min(placement.kept) < 1:
            msg = (
                f"Prep: fit='crop' needs images of at least one patch ({patch} pixels), got "
                f"{scaled}. Pass fit='pad', or resize to more."
            )
            raise PrepError(msg)
        return placement

    def _scaled(self, image_size: Size) -> Size:
        """Returns the size of the whole image after resizing, not yet of whole patches."""
        if self.resize == "none":
            return image_size
        if self.resize == "exact":
            return self._pair()
        if self.resize == "cover":
            wanted = self._pair()
            factor = max(want / side for want, side in zip(wanted, image_size, strict=True))
            # Rounded first, so that 360.0000000001 does not become 361.
            height, width = (math.ceil(round(side * factor, 6)) for side in image_size)
            return max(height, wanted[0]), max(width, wanted[1])
        side = min(image_size) if self.resize == "short" else max(image_size)
        length = self._pair()[0]
        height, width = (max(1, round(length * other / side)) for other in image_size)
        return height, width

    def _pair(self) -> Size:
        if isinstance(self.size, tuple):
            return self.size
        return (self.size or 1, self.size or 1)

    def _fitted(self, scaled: int, canvas: int, patch: int) -> tuple[int, int, int, int]:
        """Makes one side of the canvas a multiple of the patch.

        Returns:
            This side of a :class:`Placement`: resized, cut, kept, canvas.
        """
        cut = (scaled - canvas) // 2  # 0 unless the image was scaled to cover more than the canvas
        if self.fit == "pad":
            return scaled, cut, canvas, -(-canvas // patch) * patch
        if self.fit == "crop":
            kept = canvas // patch * patch
            return scaled, cut, kept, kept
        steps = 0.5 if self.fit == "round" else 0.0
        side = max(1, math.floor(canvas / patch + steps)) * patch
        factor = side / canvas
        return max(side, round(scaled * factor)), round(cut * factor), side, side


def _checked_size(size: object, resize: Resize) -> int | tuple[int, int] | None:
    """Returns a size that ``resize`` can use; None where sizes are ignored.

    Raises:
        PrepError: If it is no length in pixels, and no (height, width) either.
    """
    if resize == "none":
        return None  # so that two equal preparations do not differ in it
    if _is_length(size):
        return size
    if isinstance(size, list | tuple) and len(size) == 2 and resize in ("exact", "cover"):
        height, width = size
        if _is_length(height) and _is_length(width):
            return height, width
    msg = (
        "Prep: size must be a number of pixels, or (height, width) with exact and cover, got "
        f"{size!r} with resize={resize!r}. Give a size, or pass resize='none'."
    )
    raise PrepError(msg)


def _is_length(value: object) -> TypeGuard[int]:
    # type(), since True is an int, and YAML reads "size: yes" as True
    return type(value) is int and 0 < value <= _LARGEST_SIDE


@dataclass(frozen=True)
class Placement:
    """Position of an image in the network input.

    Attributes:
        resized: Size that the whole image is resized to.
        cut: Rows and columns of the resized image above and left of the kept part.
        kept: Size of the kept part, which is in the top left corner of the canvas.
        canvas: Size of the network input; padding fills the part beyond ``kept``.
    """

    resized: Size
    cut: Size
    kept: Size
    canvas: Size

    def affine(self, image_size: Size, patch: int) -> PixelAffine:
        """Returns the map from pixel centres of the image to feature coordinates.

        Args:
            image_size: Size of the original image.
            patch: Pixels of the network input per cell.
        """
        scale_y, scale_x = (new / old for new, old in zip(self.resized, image_size, strict=True))
        return PixelAffine(
            scale_x / patch,
            (0.5 * scale_x - self.cut[1]) / patch - 0.5,
            scale_y / patch,
            (0.5 * scale_y - self.cut[0]) / patch - 0.5,
        )

    def valid(self, patch: int) -> ValidRect:
        """Returns the part of the feature map that shows the image, without the padding."""
        return ValidRect(-0.5, -0.5, self.kept[1] / patch - 0.5, self.kept[0] / patch - 0.5)

    def mask(self, patch: int) -> Bool[Tensor, "rows cols"]:
        """Returns which cells have their centre in the image."""
        rows, cols = self.valid(patch).cells()
        mask = torch.zeros(self.canvas[0] // patch, self.canvas[1] // patch, dtype=torch.bool)
        mask[rows.start : rows.stop, cols.start : cols.stop] = True
        return mask


def network_input(
    pixels: UInt8[Tensor, "height width 3"],
    placement: Placement,
    prep: Prep,
    *,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    device: torch.device,
) -> Float[Tensor, "3 net_height net_width"]:
    """Resizes, cuts, normalises and pads one image.

    Args:
        pixels: Decoded RGB.
        placement: The result of :meth:`Prep.place` for the image's size.
        prep: The preparation.
        mean: RGB mean of the network's input, for values in [0, 1].
        std: RGB standard deviation, likewise.
        device: Where the input is computed.
    """
    if placement.resized == tuple(pixels.shape[:2]):
        # Resizing to the same size would not change a pixel, but take most of the time.
        image = pixels.to(device).permute(2, 0, 1).float() / 255  # (3, height, width)
    else:
        image = prepare(pixels, placement.resized, interpolation=prep.interpolation, device=device)
    (top, left), (height, width) = placement.cut, placement.kept
    image = image[:, top : top + height, left : left + width]
    borders = (0, placement.canvas[1] - width, 0, placement.canvas[0] - height)
    if prep.pad_value == "black":  # before normalisation, unlike the other two
        image = pad(image, borders)
    centre, spread = torch.tensor((mean, std), device=device)[..., None, None]  # (3, 1, 1) each
    normal = (image - centre) / spread
    if prep.pad_value == "black":
        return normal
    return pad(normal, borders, mode="replicate" if prep.pad_value == "edge" else "constant")
