"""Sizes of network inputs, and the affine from image pixels to cells of the feature map.

Sizes are (height, width). A pixel centre has integer coordinates: x = 0 is the centre of the first
pixel; u = 0 is the centre of the first cell. No tensors and no files here.
"""

import math
from dataclasses import dataclass
from typing import Literal

Size = tuple[int, int]
"""(height, width), in pixels or in cells."""

Fit = Literal["stretch", "square"]
"""How an image becomes a network input: stretched to a whole number of patches, or centred in a
square whose border does not belong to the image."""


def network_size(image_size: Size, short_side: int, patch: int, fit: Fit = "stretch") -> Size:
    """Computes the size that an image is resized to for the network.

    Stretched, the short side becomes ``short_side`` and the aspect ratio is kept; then both sides
    are rounded to the nearest whole number of patches, at least one. A square has ``short_side``
    on both sides, rounded likewise.

    Args:
        image_size: Height and width of the image in pixels.
        short_side: Wanted length of the shorter side in pixels.
        patch: Pixels per feature cell.
        fit: How the image becomes a network input.

    Returns:
        Height and width of the network input in pixels, multiples of ``patch``.

    Raises:
        ValueError: If a number is not positive.
    """
    if min(*image_size, short_side, patch) < 1:
        raise ValueError(
            "Image size, short side and patch must be positive, got "
            f"{image_size}, {short_side}, {patch}. Check the image and the feature type."
        )
    if fit == "square":
        image_size = (1, 1)
    scale = short_side / min(image_size)
    # floor(x + 0.5), because round() takes halves to the even number.
    height, width = (max(1, math.floor(side * scale / patch + 0.5)) * patch for side in image_size)
    return height, width


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


def border_of(image_size: Size) -> Size:
    """Returns the rows above and the columns left of an image centred in its square."""
    height, width = image_size
    side = max(height, width)
    return (side - height) // 2, (side - width) // 2


def placed(image_size: Size, grid: Size, fit: Fit) -> tuple[PixelAffine, ValidRect]:
    """Returns the map from an image's pixels to its feature map, and the part that shows the image.

    Args:
        image_size: Height and width of the original image in pixels.
        grid: Rows and columns of the feature map.
        fit: How the image became the network's input. In a square, an image so narrow that it
            covers no cell's centre gets the nearest row or column.
    """
    if fit == "stretch":
        return PixelAffine.between(image_size, grid), ValidRect.full(grid)
    side = max(image_size)
    square = PixelAffine.between((side, side), grid)
    top, left = border_of(image_size)
    offset_x, offset_y = square.cells_from_pixels(float(left), float(top))
    affine = PixelAffine(square.scale_x, offset_x, square.scale_y, offset_y)
    x_min, y_min = affine.cells_from_pixels(-0.5, -0.5)
    x_max, y_max = affine.cells_from_pixels(image_size[1] - 0.5, image_size[0] - 0.5)
    x_min, x_max = _with_a_centre(x_min, x_max)
    y_min, y_max = _with_a_centre(y_min, y_max)
    return affine, ValidRect(x_min, y_min, x_max, y_max)


def _with_a_centre(low: float, high: float) -> tuple[float, float]:
    """Widens an interval to the nearest whole number if it holds none."""
    if math.ceil(low) <= math.floor(high):
        return low, high
    nearest = float(round((low + high) / 2))
    return min(low, nearest), max(high, nearest)
