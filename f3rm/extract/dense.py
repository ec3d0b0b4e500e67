"""A backbone read as a specification says: another tap, sliding windows, several scales.

Windows keep the network near the size that it was trained at: each is read alone, and where they
overlap their features are blended with weights that fall off linearly towards a window's edge.
Several scales are read one after the other, brought to the same grid, and averaged.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from f3rm.backbones.base import Backbone
from f3rm.backbones.layers import find_layer
from f3rm.backbones.taps import Tap
from f3rm.errors import FeatureTypeError, TapError
from f3rm.store.geometry import Size
from f3rm.store.spec import FeatureSpec

_CELLS = 4
"""Cells per side of the input that a tap's shape is tried with."""


def dense_backbone(backbone: Backbone, spec: FeatureSpec) -> Backbone:
    """Returns a backbone whose ``encode_image`` gives what a specification asks for.

    Args:
        backbone: The loaded model.
        spec: What to extract.

    Returns:
        The model itself if its own dense features are meant, as they are.

    Raises:
        TapError: If the model does not have the tap, or the tap gives no map of features.
        FeatureTypeError: If windows do not fit the model's cells.
    """
    plain = spec.tap == backbone.default_tap
    if plain and spec.window is None and spec.scales == (1.0,):
        return backbone
    return _DenseBackbone(backbone, spec, None if plain else Tap.parse(spec.tap))


class _DenseBackbone(Backbone):
    """Another backbone's tap, by windows and scales."""

    def __init__(self, backbone: Backbone, spec: FeatureSpec, tap: Tap | None) -> None:
        self.ref = backbone.ref
        self.mean, self.std = backbone.mean, backbone.std
        self.channels, self.patch_size = backbone.channels, backbone.patch_size
        self.has_text = backbone.has_text
        self._backbone = backbone
        self._tap = tap
        self._scales = spec.scales
        if tap is not None:
            backbone.check([tap])
            self.patch_size = find_layer(backbone.layers(), tap).stride
            self.channels = _map_channels(backbone, tap, max(1, self.patch_size))
            # Only last-block rules put patches where the texts are.
            self.has_text = backbone.has_text and tap.ops[:1] != () and tap.ops[0].name == "dense"
        self._window = _window_cells(spec, self.patch_size)

    @torch.no_grad()
    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows cols channels"]:
        """Computes the tap; see :meth:`f3rm.backbones.base.Backbone.encode_image`.

        Raises:
            ValueError: If a size is no multiple of the tap's cells.
        """
        grid = self.feature_grid(images)
        if self._scales == (1.0,):
            return self._by_windows(images)
        total = images.new_zeros(len(images), self.channels, *grid)
        for scale in self._scales:
            size = [max(1, round(cells * scale)) * self.patch_size for cells in grid]
            scaled = interpolate(images, size, mode="bicubic", antialias=True)
            maps = self._by_windows(scaled).permute(0, 3, 1, 2)  # (batch, channels, rows, cols)
            total += interpolate(maps, grid, mode="bilinear", antialias=True)
        return (total / len(self._scales)).permute(0, 2, 3, 1)

    def provenance(self) -> dict[str, str]:
        """Returns what the model itself says."""
        return self._backbone.provenance()

    @property
    def device(self) -> torch.device:
        """The device that the parameters are on."""
        return self._backbone.device

    def _read(self, images: Tensor) -> Tensor:
        if self._tap is None:
            return self._backbone.encode_image(images)
        return self._backbone.run(images, [self._tap])[self._tap]

    def _by_windows(self, images: Tensor) -> Float[Tensor, "batch rows cols channels"]:
        rows, cols = grid = self.feature_grid(images)
        if self._window is None or max(grid) <= self._window[0]:
            return self._read(images)
        total = images.new_zeros(len(images), rows, cols, self.channels)
        weight = images.new_zeros(rows, cols, 1)
        cell = self.patch_size
        for top, left, height, width in _windows(grid, self._window):
            part = images[
                :, :, top * cell : (top + height) * cell, left * cell : (left + width) * cell
            ]
            share = _share(height, width).to(weight)
            inside = (slice(top, top + height), slice(left, left + width))
            total[:, *inside] += share * self._read(part)
            weight[inside] += share
        return total / weight


def _map_channels(backbone: Backbone, tap: Tap, cell: int) -> int:
    """Returns the channels of a tap that gives one vector per cell."""
    shape = backbone.shape(tap, _CELLS * cell, _CELLS * cell)
    if shape[:2] != (_CELLS, _CELLS) or len(shape) != _MAP_AXES:
        msg = (
            "extract_features: tap must give one feature per cell of the image, got "
            f"{str(tap)!r}, which gives {shape} at {_CELLS} x {_CELLS} cells. Take @patch and no "
            "pooling."
        )
        raise TapError(msg)
    return shape[2]


_MAP_AXES = 3


def _window_cells(spec: FeatureSpec, cell: int) -> tuple[int, int] | None:
    """Returns side and step of windows in cells."""
    if spec.window is None:
        return None
    if any(pixels % cell for pixels in spec.window):
        msg = (
            f"extract_features: window must be whole cells of {cell} pixels, got {spec.window}. "
            f"Take e.g. {tuple(max(1, round(pixels / cell)) * cell for pixels in spec.window)}."
        )
        raise FeatureTypeError(msg)
    return spec.window[0] // cell, spec.window[1] // cell


def _windows(grid: Size, window: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yields top, left, height and width of windows, in cells; the last ones end at the edges."""
    side, step = window
    height, width = min(side, grid[0]), min(side, grid[1])
    for top in [*range(0, grid[0] - height, step), grid[0] - height]:
        for left in [*range(0, grid[1] - width, step), grid[1] - width]:
            yield top, left, height, width


def _share(height: int, width: int) -> Float[Tensor, "rows cols 1"]:
    """Returns weights that fall off linearly from the middle of a window to its edges."""
    down, right = (
        torch.minimum(torch.arange(1, n + 1), torch.arange(n, 0, -1)) for n in (height, width)
    )
    return (down[:, None] * right)[..., None].float()
