"""Maps of an input that is read in overlapping windows, or at several scales.

Windows keep network inputs near the size of the model's training. Where windows overlap, their
features are blended with weights that fall off linearly towards the windows' edges. Several scales
are computed one after the other, resampled to the same grid, and averaged.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import interpolate

from f3rm.backbones.taps import Tap
from f3rm.store.geometry import Prep, PrepError, Size

Maps = dict[Tap, Tensor]
"""Tap -> (batch, rows, cols, channels)."""

Read = Callable[[Tensor], Mapping[Tap, Tensor]]
"""Computes maps of images (batch, 3, height, width), one vector per cell."""


def read_parts(
    read: Read, images: Float[Tensor, "batch 3 height width"], prep: Prep, cell: int
) -> Maps:
    """Reads images in the windows and at the scales of a preparation.

    Args:
        read: Computes the maps of one part.
        images: Network inputs, a whole number of cells.
        prep: The preparation.
        cell: Pixels per cell.
    """
    grid = images.shape[-2] // cell, images.shape[-1] // cell
    if prep.scales == (1.0,):
        return _by_windows(read, images, prep, cell)
    total: Maps = {}
    for scale in prep.scales:
        # Whole cells, so a scale is approximate.
        size = [max(1, round(cells * scale)) * cell for cells in grid]
        scaled = interpolate(images, size, mode="bicubic", antialias=True)
        for tap, values in _by_windows(read, scaled, prep, cell).items():
            maps = values.permute(0, 3, 1, 2)  # (batch, channels, rows, cols)
            part = interpolate(maps, grid, mode="bilinear", antialias=True)
            total[tap] = total[tap] + part if tap in total else part
    return {tap: (maps / len(prep.scales)).permute(0, 2, 3, 1) for tap, maps in total.items()}


def _by_windows(read: Read, images: Tensor, prep: Prep, cell: int) -> Maps:
    rows, cols = grid = images.shape[-2] // cell, images.shape[-1] // cell
    if prep.window is None or max(grid) * cell <= prep.window[0]:
        return dict(read(images))
    side, step = (pixels // cell for pixels in prep.window)
    total: Maps = {}
    weight = images.new_zeros(rows, cols, 1)
    for top, left, height, width in _windows(grid, side, step):
        part = images[:, :, top * cell : (top + height) * cell, left * cell : (left + width) * cell]
        blend = _blend_weights(height, width, weight.device)
        inside = (slice(top, top + height), slice(left, left + width))
        for tap, values in read(part).items():
            if tap not in total:
                total[tap] = images.new_zeros(len(images), rows, cols, values.shape[-1])
            total[tap][:, *inside] += blend * values
        weight[inside] += blend
    return {tap: values / weight for tap, values in total.items()}


def check_windows(prep: Prep, cell: int) -> None:
    """Checks that windows are whole cells.

    Raises:
        PrepError: If they are not.
    """
    if prep.window is not None and any(pixels % cell for pixels in prep.window):
        raise PrepError(
            f"window must be whole cells of {cell} pixels, got {prep.window}. "
            f"Take e.g. {tuple(max(1, round(pixels / cell)) * cell for pixels in prep.window)}."
        )


def _windows(grid: Size, side: int, step: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields top, left, height and width of windows, in cells; the last ones end at the edges."""
    height, width = min(side, grid[0]), min(side, grid[1])
    # The last window of a row or column is moved inwards, so that all have one size.
    for top in [*range(0, grid[0] - height, step), grid[0] - height]:
        for left in [*range(0, grid[1] - width, step), grid[1] - width]:
            yield top, left, height, width


def _blend_weights(height: int, width: int, device: torch.device) -> Float[Tensor, "rows cols 1"]:
    """Returns weights that fall off linearly from the middle of a window to its edges, above 0."""
    # Made on the device: copied there, they would hold up what is launched next.
    down, right = (
        torch.arange(1, n + 1, device=device).minimum(torch.arange(n, 0, -1, device=device))
        for n in (height, width)
    )
    return (down[:, None] * right)[..., None].float()
