"""Dense features beyond a backbone's default: another tap, sliding windows, several scales.

Windows keep network inputs near the size of the model's training. Where windows overlap, their
features are blended with weights that fall off linearly towards the windows' edges. Several scales
are computed one after the other, resampled to the same grid, and averaged.
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
"""Cells per side of the trial input that shows the shape of a tap."""
_MAP_AXES = 3


def dense_backbone(backbone: Backbone, spec: FeatureSpec) -> Backbone:
    """Returns a backbone whose ``encode_image`` computes the features of a specification.

    It is the model itself if the specification has the default tap, no windows and one scale.

    Raises:
        TapError: If the model does not have the tap, or the tap gives no feature map.
        FeatureTypeError: If windows are not whole cells.
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
            # A stride of 0 is a layer without cells; _map_channels then refuses the tap.
            self.channels = _map_channels(backbone, tap, max(1, self.patch_size))
            # Only rules for the last block map patches into the space of text embeddings.
            self.has_text = backbone.has_text and tap.ops[:1] != () and tap.ops[0].name == "dense"
        self._window = _window_cells(spec, self.patch_size)

    @torch.no_grad()
    def encode_image(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows cols channels"]:
        """Computes the tap; see :meth:`f3rm.backbones.base.Backbone.encode_image`.

        Raises:
            ValueError: If a side is not a multiple of the tap's cells.
        """
        grid = self.feature_grid(images)
        if self._scales == (1.0,):
            return self._by_windows(images)
        total = images.new_zeros(len(images), self.channels, *grid)
        for scale in self._scales:
            # Whole cells, so a scale is approximate.
            size = [max(1, round(cells * scale)) * self.patch_size for cells in grid]
            scaled = interpolate(images, size, mode="bicubic", antialias=True)
            maps = self._by_windows(scaled).permute(0, 3, 1, 2)  # (batch, channels, rows, cols)
            total += interpolate(maps, grid, mode="bilinear", antialias=True)
        return (total / len(self._scales)).permute(0, 2, 3, 1)

    def provenance(self) -> dict[str, str]:
        """Returns the model's own entries."""
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
            blend = _blend_weights(height, width).to(weight)
            inside = (slice(top, top + height), slice(left, left + width))
            total[:, *inside] += blend * self._read(part)
            weight[inside] += blend
        return total / weight


def _map_channels(backbone: Backbone, tap: Tap, cell: int) -> int:
    """Returns the channels of a tap that gives one vector per cell."""
    shape = backbone.shape(tap, _CELLS * cell, _CELLS * cell)
    if shape[:2] != (_CELLS, _CELLS) or len(shape) != _MAP_AXES:
        msg = (
            f"tap must give one feature per cell of the image, but {str(tap)!r} gives {shape} for "
            f"{_CELLS} x {_CELLS} cells. Take @patch and no pooling."
        )
        raise TapError(msg)
    return shape[2]


def _window_cells(spec: FeatureSpec, cell: int) -> tuple[int, int] | None:
    """Returns side and step of the windows in cells; None without windows."""
    if spec.window is None:
        return None
    if any(pixels % cell for pixels in spec.window):
        msg = (
            f"window must be whole cells of {cell} pixels, got {spec.window}. "
            f"Take e.g. {tuple(max(1, round(pixels / cell)) * cell for pixels in spec.window)}."
        )
        raise FeatureTypeError(msg)
    return spec.window[0] // cell, spec.window[1] // cell


def _windows(grid: Size, window: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    """Yields top, left, height and width of windows, in cells; the last ones end at the edges."""
    side, step = window
    height, width = min(side, grid[0]), min(side, grid[1])
    # The last window of a row or column is moved inwards, so that all have one size.
    for top in [*range(0, grid[0] - height, step), grid[0] - height]:
        for left in [*range(0, grid[1] - width, step), grid[1] - width]:
            yield top, left, height, width


def _blend_weights(height: int, width: int) -> Float[Tensor, "rows cols 1"]:
    """Returns weights that fall off linearly from the middle of a window to its edges, above 0."""
    down, right = (
        torch.minimum(torch.arange(1, n + 1), torch.arange(n, 0, -1)) for n in (height, width)
    )
    return (down[:, None] * right)[..., None].float()
