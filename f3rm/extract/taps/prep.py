"""How an image becomes a network input: resized, then fitted to whole patches.

Sizes are (height, width). Everything that looks a pixel up goes through the affine that
:meth:`Placement.affine` gives; nobody divides a map's size by an image's.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.nn.functional import pad

from f3rm.errors import F3rmError
from f3rm.extract.encoder import prepare
from f3rm.extract.taps.choices import check_settings
from f3rm.store.geometry import PixelAffine, Size, ValidRect
from f3rm.store.spec import Interpolation

Resize = Literal["none", "short", "long", "exact", "cover"]
Fit = Literal["round", "floor", "crop", "pad"]
PadValue = Literal["zero", "black", "edge"]

_CHOICES = {"resize": Resize, "fit": Fit, "pad_value": PadValue, "interpolation": Interpolation}


_LARGEST_SIDE = 1 << 16


class PrepError(F3rmError):
    """A preparation has settings that make no network input."""


@dataclass(frozen=True)
class Prep:
    """Sizes and borders of the network input.

    Attributes:
        resize: ``none`` keeps the image's size; ``short`` and ``long`` give that side the length
            ``size``; ``exact`` stretches to ``size``; ``cover`` scales until ``size`` is covered
            and cuts out the centre.
        size: A length in pixels, or (height, width); a single number is a square for ``exact`` and
            ``cover``. ``none`` ignores it.
        fit: How the result becomes a whole number of patches: ``round`` and ``floor`` resize to the
            nearest or the next smaller one, ``crop`` cuts off at the right and the bottom, ``pad``
            adds there.
        pad_value: What ``pad`` adds: ``zero`` after normalisation, ``black`` pixels, or the
            repeated ``edge``.
        interpolation: How images are resized, always with antialiasing.
    """

    resize: Resize = "short"
    size: int | tuple[int, int] | None = 224
    fit: Fit = "round"
    pad_value: PadValue = "zero"
    interpolation: Interpolation = "bicubic"

    def __post_init__(self) -> None:
        check_settings(Prep, vars(self), _CHOICES, PrepError)
        if self.resize == "none":
            object.__setattr__(self, "size", None)
            return
        sides = self.size if isinstance(self.size, tuple) else (self.size,)
        lengths = all(isinstance(side, int) and 0 < side <= _LARGEST_SIDE for side in sides)
        several = len(sides) == 2 and self.resize in ("exact", "cover")
        if lengths and (several or len(sides) == 1):
            return
        msg = (
            f"Prep: size must be a number of pixels, or (height, width) with exact and cover, got "
            f"{self.size!r} with resize={self.resize!r}. Name a size, or pass resize='none'."
        )
        raise PrepError(msg)

    def place(self, image_size: Size, patch: int) -> "Placement":
        """Computes where an image comes to lie in the network input.

        Args:
            image_size: Height and width of the image in pixels.
            patch: The network input is a multiple of this many pixels.

        Raises:
            PrepError: If the image is smaller than one patch and is to be cut to patches.
        """
        scaled = self._scaled(image_size)
        if self.resize == "cover":
            canvas = self._pair()
            cut = tuple((have - want) // 2 for have, want in zip(scaled, canvas, strict=True))
            return self._fitted(scaled, (cut[0], cut[1]), canvas, patch)
        return self._fitted(scaled, (0, 0), scaled, patch)

    def _scaled(self, image_size: Size) -> Size:
        if self.resize == "none":
            return image_size
        if self.resize == "exact":
            return self._pair()
        if self.resize == "cover":
            wanted = self._pair()
            factor = max(want / side for want, side in zip(wanted, image_size, strict=True))
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

    def _fitted(self, scaled: Size, cut: Size, canvas: Size, patch: int) -> "Placement":
        """Makes the canvas a multiple of the patch."""
        down = tuple(side // patch * patch for side in canvas)
        if self.fit == "pad":
            up = tuple(-(-side // patch) * patch for side in canvas)
            return Placement(scaled, cut, canvas, (up[0], up[1]))
        if self.fit == "crop":
            if min(down) < 1:
                raise PrepError(_too_small("crop", scaled, patch))
            return Placement(scaled, cut, (down[0], down[1]), (down[0], down[1]))
        steps = 0.5 if self.fit == "round" else 0.0
        sides = tuple(max(1, math.floor(side / patch + steps)) * patch for side in canvas)
        factor = [new / old for new, old in zip(sides, canvas, strict=True)]
        resized = [
            max(new, round(old * f)) for new, old, f in zip(sides, scaled, factor, strict=True)
        ]
        moved = [round(offset * f) for offset, f in zip(cut, factor, strict=True)]
        size = (sides[0], sides[1])
        return Placement((resized[0], resized[1]), (moved[0], moved[1]), size, size)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for YAML and JSON."""
        size = list(self.size) if isinstance(self.size, tuple) else self.size
        return {**asdict(self), "size": size}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "Prep":
        """Rebuilds the value written by :meth:`to_dict`; what is left out has its default.

        Raises:
            PrepError: If a name or a value makes no sense.
        """
        values = dict(plain)
        check_settings(cls, values, _CHOICES, PrepError)
        if "size" in values:
            values["size"] = _size_of(values["size"])
        return cls(**values)


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the network input.

    Attributes:
        resized: Size that the whole image is resized to.
        cut: Rows and columns of the resized image above and left of what is kept.
        kept: Size of the kept part; it lies in the top left corner.
        canvas: Size of the network input; what is beyond ``kept`` is padding.
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
        """Returns the part of the feature map that shows the image and not padding."""
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
        placement: What :meth:`Prep.place` gave for its size.
        prep: The preparation.
        mean: RGB mean of the network's input, for values in [0, 1].
        std: RGB standard deviation, likewise.
        device: Where the work is done.
    """
    if placement.resized == tuple(pixels.shape[:2]):
        image = pixels.to(device).permute(2, 0, 1).float() / 255  # (3, height, width)
    else:
        image = prepare(pixels, placement.resized, interpolation=prep.interpolation, device=device)
    (top, left), (height, width) = placement.cut, placement.kept
    image = image[:, top : top + height, left : left + width]
    if prep.pad_value == "black":
        image = pad(image, _borders(placement))
    normal = (image - _column(mean, device)) / _column(std, device)
    if prep.pad_value == "zero":
        return pad(normal, _borders(placement))
    if prep.pad_value == "edge":
        return pad(normal, _borders(placement), mode="replicate")
    return normal


def _size_of(value: object) -> int | tuple[int, int] | None:
    """Returns a size as YAML or JSON has it.

    Raises:
        PrepError: If it is none.
    """
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    sides = list(value) if isinstance(value, list | tuple) else []
    if len(sides) == 2 and all(isinstance(side, int) for side in sides):
        return sides[0], sides[1]
    msg = (
        f"Prep: size must be a number of pixels, or (height, width) with exact and cover, got "
        f"{value!r}. Name a size, or pass resize='none'."
    )
    raise PrepError(msg)


def _borders(placement: Placement) -> tuple[int, int, int, int]:
    """Returns the padding (left, right, top, bottom)."""
    bottom, right = (
        whole - part for whole, part in zip(placement.canvas, placement.kept, strict=True)
    )
    return 0, right, 0, bottom


def _column(values: tuple[float, float, float], device: torch.device) -> Float[Tensor, "3 1 1"]:
    return torch.tensor(values, device=device)[:, None, None]


def _too_small(fit: str, scaled: Size, patch: int) -> str:
    return (
        f"Prep.place: an image must be at least one patch of {patch} pixels with fit={fit!r}, got "
        f"{scaled}. Pass fit='pad', or resize it."
    )
