"""From image pixels to cells: the preparation of a network input, and the affine that follows.

Sizes are (height, width). A pixel centre has integer coordinates: x = 0 is the centre of the first
pixel; u = 0 is the centre of the first cell. Pixels are mapped to cells by :class:`PixelAffine`
only: the ratio of a map's size to an image's is wrong as soon as something was cut, padded or
rounded. No tensors and no files here.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeGuard

from f3rm.errors import F3rmError
from f3rm.store.settings import check_settings

Size = tuple[int, int]
"""(height, width), in pixels or in cells."""

Resize = Literal["none", "short", "long", "exact", "cover"]
Fit = Literal["round", "floor", "crop", "pad", "square"]
PadValue = Literal["zero", "black", "edge"]
Interpolation = Literal["bicubic", "bilinear"]

_LARGEST_SIDE = 1 << 16
_LARGEST_SCALE = 64


class PrepError(F3rmError):
    """A preparation has impossible settings, or an image is too small for it."""


@dataclass(frozen=True)
class PixelAffine:
    """Maps pixel coordinates of the image file to feature coordinates: u = scale_x * x + offset_x.

    Attributes:
        scale_x: Cells per pixel, horizontally.
        offset_x: Feature coordinate of the first pixel's centre, horizontally.
        scale_y: Cells per pixel, vertically.
        offset_y: Feature coordinate of the first pixel's centre, vertically.
    """

    scale_x: float
    offset_x: float
    scale_y: float
    offset_y: float

    @classmethod
    def between(cls, image_size: Size, grid: Size) -> "PixelAffine":
        """Returns the map of an image that was stretched over the whole feature grid.

        It is ``u = (x + 0.5) * cols / width - 0.5``, and likewise for rows: the outer edges of
        image and grid coincide.

        Args:
            image_size: Height and width of the original image in pixels.
            grid: Rows and columns of the feature map.
        """
        scale_y, scale_x = (cells / pixels for cells, pixels in zip(grid, image_size, strict=True))
        return cls(scale_x, 0.5 * scale_x - 0.5, scale_y, 0.5 * scale_y - 0.5)

    def cells_from_pixels(self, x: float, y: float) -> tuple[float, float]:
        """Returns the feature coordinates (u, v) of the pixel coordinates (x, y)."""
        return self.scale_x * x + self.offset_x, self.scale_y * y + self.offset_y


@dataclass(frozen=True)
class ValidRect:
    """The part of a feature map that shows the image and no padding, in feature coordinates.

    The first cell's edges are at -0.5 and 0.5: a map without padding has the rectangle
    ``(-0.5, -0.5, cols - 0.5, rows - 0.5)``.

    Attributes:
        x_min: Left edge.
        y_min: Top edge.
        x_max: Right edge.
        y_max: Bottom edge.
    """

    x_min: float
    y_min: float
    x_max: float
    y_max: float

    @classmethod
    def full(cls, grid: Size) -> "ValidRect":
        """Returns the rectangle of a map without padding, given its rows and columns."""
        return cls(-0.5, -0.5, grid[1] - 0.5, grid[0] - 0.5)

    def cells(self) -> tuple[range, range]:
        """Returns the rows and the columns whose cell centres are inside the rectangle."""
        rows = range(math.ceil(self.y_min), math.floor(self.y_max) + 1)
        cols = range(math.ceil(self.x_min), math.floor(self.x_max) + 1)
        return rows, cols


@dataclass(frozen=True)
class Prep:
    """How an image becomes a network input: size, borders, windows and scales.

    Attributes:
        resize: ``none`` keeps the image's size; ``short`` and ``long`` give that side the length
            ``size``; ``exact`` stretches to ``size``; ``cover`` scales until ``size`` is covered
            and cuts out the centre.
        size: A length in pixels, or (height, width) with ``exact`` and ``cover``, where a single
            number is a square. ``none`` ignores it.
        fit: How the result becomes a whole number of patches: ``round`` and ``floor`` resize to the
            nearest or the next smaller one, ``crop`` cuts off at the right and the bottom, ``pad``
            adds there. ``square`` puts the image into the middle of a square first, as LLaVA does.
        pad_value: Padding of ``pad``: ``zero`` after normalisation, ``black`` pixels, or the
            repeated ``edge``. The border of ``square`` has the network's mean colour.
        interpolation: How images are resized, always with antialiasing.
        crop: Side of the square that is cut from the centre after ``short``, as torchvision's
            ``Resize`` and ``CenterCrop`` do; None keeps all.
        window: Side and step in pixels of windows that are read one by one and blended; None reads
            the image as a whole.
        scales: Factors of the network input whose feature maps are averaged.
    """

    resize: Resize = "short"
    size: int | tuple[int, int] | None = 224
    fit: Fit = "round"
    pad_value: PadValue = "zero"
    interpolation: Interpolation = "bicubic"
    crop: int | None = None
    window: tuple[int, int] | None = None
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        check_settings(Prep, vars(self), PrepError)
        object.__setattr__(self, "size", _checked_size(self.size, self.resize))
        if self.crop is not None and not self._can_crop():
            raise PrepError(
                "Prep: crop must be a number of pixels up to size, with resize='short', got "
                f"{self.crop!r} with size={self.size!r} and resize={self.resize!r}."
            )
        if self.window is not None and not 1 <= self.window[1] <= self.window[0] <= _LARGEST_SIDE:
            raise PrepError(
                f"window must be a side and a step from 1 to the side, got {self.window}. Take "
                "e.g. (336, 224)."
            )
        if not self.scales or not all(0 < scale <= _LARGEST_SCALE for scale in self.scales):
            raise PrepError(
                f"scales must be one or more positive factors, got {self.scales}. Take e.g. "
                "(0.75, 1, 1.25)."
            )

    @property
    def reads_whole(self) -> bool:
        """Whether the network sees the input once and as a whole."""
        return self.window is None and self.scales == (1.0,)

    def place(self, image_size: Size, patch: int) -> "Placement":
        """Computes the position of an image in the network input.

        Args:
            image_size: Height and width of the image in pixels.
            patch: The network input is a multiple of this many pixels.

        Raises:
            PrepError: If the image is smaller than one patch and ``fit`` is ``crop``.
        """
        side = max(image_size)
        framed = (side, side) if self.fit == "square" else image_size
        scaled = self._scaled(framed)
        canvas = self._pair() if self.resize == "cover" else scaled
        canvas = canvas if self.crop is None else (self.crop, self.crop)
        rows, cols = (self._fitted(*side, patch) for side in zip(scaled, canvas, strict=True))
        top, left = ((side - pixels) // 2 for side, pixels in zip(framed, image_size, strict=True))
        placement = Placement((top, left), framed, *zip(rows, cols, strict=True))
        if min(placement.kept) < 1:
            raise PrepError(
                f"Prep: fit='crop' needs images of at least one patch ({patch} pixels), got "
                f"{scaled}. Pass fit='pad', or resize to more."
            )
        return placement

    def _scaled(self, framed: Size) -> Size | tuple[float, float]:
        """Returns the size of the whole image after resizing, not yet of whole patches."""
        if self.resize == "none":
            return framed
        if self.resize == "exact":
            return self._pair()
        if self.resize == "cover":
            wanted = self._pair()
            factor = max(want / side for want, side in zip(wanted, framed, strict=True))
            # Rounded first, so that 360.0000000001 does not become 361.
            height, width = (math.ceil(round(side * factor, 6)) for side in framed)
            return max(height, wanted[0]), max(width, wanted[1])
        length, reference = self._pair()[0], (min if self.resize == "short" else max)(framed)
        if self.crop is not None:  # torchvision rounds the long side down
            return length * framed[0] // reference, length * framed[1] // reference
        height, width = (side * (length / reference) for side in framed)
        if self.fit in ("crop", "pad"):  # the others round once, to whole patches
            return max(1, round(height)), max(1, round(width))
        return height, width

    def _pair(self) -> Size:
        if isinstance(self.size, tuple):
            return self.size
        return (self.size or 1, self.size or 1)

    def _can_crop(self) -> bool:
        return self.resize == "short" and _is_length(self.crop) and self.crop <= self._pair()[0]

    def _fitted(
        self, scaled: float | int, canvas: float | int, patch: int
    ) -> tuple[int, int, int, int]:
        """Makes one side of the canvas a multiple of the patch.

        Returns:
            This side of a :class:`Placement`: resized, cut, kept, canvas.
        """
        # 0 unless the image was scaled to cover more; rounded as torchvision's CenterCrop does.
        cut = round((scaled - canvas) / 2)
        if self.fit == "pad":
            return int(scaled), int(cut), int(canvas), -(-int(canvas) // patch) * patch
        if self.fit == "crop":
            kept = int(canvas) // patch * patch
            return int(scaled), int(cut), kept, kept
        steps = 0.0 if self.fit == "floor" else 0.5  # not round(), which takes halves to even
        side = max(1, math.floor(canvas / patch + steps)) * patch
        factor = side / canvas
        return max(side, round(scaled * factor)), round(cut * factor), side, side


@dataclass(frozen=True)
class Placement:
    """Position of an image in the network input.

    Attributes:
        border: Rows above and columns left of the image in its square, in pixels of the image.
        framed: Size of the image with its border, in the same pixels.
        resized: Size that the framed image is resized to.
        cut: Rows and columns of the resized image above and left of the kept part.
        kept: Size of the kept part, which is in the top left corner of the canvas.
        canvas: Size of the network input; padding fills the part beyond ``kept``.
    """

    border: Size
    framed: Size
    resized: Size
    cut: Size
    kept: Size
    canvas: Size

    def affine(self, patch: int) -> PixelAffine:
        """Returns the map from pixel centres of the image to feature coordinates.

        Args:
            patch: Pixels of the network input per cell.
        """
        (scale_y, offset_y), (scale_x, offset_x) = (
            _line(resized / patch / framed, border, cut / patch)
            for resized, framed, border, cut in zip(
                self.resized, self.framed, self.border, self.cut, strict=True
            )
        )
        return PixelAffine(scale_x, offset_x, scale_y, offset_y)

    def valid(self, image_size: Size, patch: int) -> ValidRect:
        """Returns the part of the feature map that shows the image, without border and padding.

        Args:
            image_size: Height and width of the original image in pixels. One so narrow that it
                covers no cell's centre in its square gets the nearest row or column.
            patch: Pixels of the network input per cell.
        """
        if self.framed == image_size:
            return ValidRect(-0.5, -0.5, self.kept[1] / patch - 0.5, self.kept[0] / patch - 0.5)
        affine = self.affine(patch)
        x_min, y_min = affine.cells_from_pixels(-0.5, -0.5)
        x_max, y_max = affine.cells_from_pixels(image_size[1] - 0.5, image_size[0] - 0.5)
        x_min, x_max = _with_a_centre(x_min, x_max)
        y_min, y_max = _with_a_centre(y_min, y_max)
        return ValidRect(x_min, y_min, x_max, y_max)


def _line(scale: float, border: int, cut: float) -> tuple[float, float]:
    """Returns scale and offset of one axis; the cut is in cells."""
    return scale, (border + 0.5) * scale - cut - 0.5


def _with_a_centre(low: float, high: float) -> tuple[float, float]:
    """Widens an interval to the nearest whole number if it holds none."""
    if math.ceil(low) <= math.floor(high):
        return low, high
    nearest = float(round((low + high) / 2))
    return min(low, nearest), max(high, nearest)


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
    raise PrepError(
        "Prep: size must be a number of pixels, or (height, width) with exact and cover, got "
        f"{size!r} with resize={resize!r}. Give a size, or pass resize='none'."
    )


def _is_length(value: object) -> TypeGuard[int]:
    # type(), since True is an int, and YAML reads "size: yes" as True
    return type(value) is int and 0 < value <= _LARGEST_SIDE
