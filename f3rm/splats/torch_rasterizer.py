"""Draws Gaussians tile by tile in PyTorch: the readable twin of :mod:`f3rm.splats.kernel`.

A pixel is ``sum_i w_i v_i`` with ``w_i = alpha_i T_i``: the alpha of a Gaussian there, times the
transmittance that those in front of it leave. The weights do not depend on the values ``v``, so
that a picture is ``A v`` with one matrix ``A`` (pixels x Gaussians), of which this module returns
one tile after the other.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from f3rm.splats.projection import (
    LEAST_ALPHA,
    LEAST_TRANSMITTANCE,
    MOST_ALPHA,
    TILE,
    PinholeCamera,
    Projected,
)


class TorchRasterizer:
    """One picture's Gaussians.

    Args:
        projected: The Gaussians in the picture.
        camera: Its camera.
        num_gaussians: Number of all Gaussians.
    """

    def __init__(self, projected: Projected, camera: PinholeCamera, num_gaussians: int) -> None:
        self._projected, self._camera, self._num_gaussians = projected, camera, num_gaussians

    def composite(
        self, values: Float[Tensor, "gaussians channels"]
    ) -> Float[Tensor, "height width channels"]:
        """Returns ``A v``: values composited at every pixel, front to back."""
        picture = values.new_zeros(*self._camera.size, values.shape[1])
        for y, x, numbers, weights in self.tiles():
            shown = weights.T @ values[self._projected.ids[numbers]]  # (pixels, channels)
            picture[y, x] = shown.reshape(picture[y, x].shape)
        return picture

    def adjoint(
        self, picture: Float[Tensor, "height width channels"]
    ) -> Float[Tensor, "gaussians channels"]:
        """Returns ``A' y``: the sum over pixels of each Gaussian's weight times the values."""
        sums = picture.new_zeros(self._num_gaussians, picture.shape[-1])
        for y, x, numbers, weights in self.tiles():
            seen = picture[y, x].flatten(0, 1)  # (pixels, channels)
            sums.index_add_(0, self._projected.ids[numbers], weights @ seen)
        return sums

    def tiles(
        self,
    ) -> Iterator[tuple[slice, slice, Int[Tensor, " shown"], Float[Tensor, "shown pixels"]]]:
        """Yields rows, columns, Gaussians and weights of every tile that has Gaussians.

        Gaussians are numbered as in the projected scene; pixels are row by row.
        """
        height, width = self._camera.size
        first, last = self._projected.tile_bounds(self._camera)
        for row in range(self._camera.tiles[0]):
            in_row = (first[:, 1] <= row) & (row < last[:, 1])
            for column in range(self._camera.tiles[1]):
                is_here = in_row & (first[:, 0] <= column) & (column < last[:, 0])
                numbers = is_here.nonzero()[:, 0]
                if len(numbers):
                    y = slice(row * TILE, min((row + 1) * TILE, height))
                    x = slice(column * TILE, min((column + 1) * TILE, width))
                    yield y, x, numbers, _weights(self._projected, numbers, y, x)


def _weights(
    projected: Projected, numbers: Int[Tensor, " shown"], y: slice, x: slice
) -> Float[Tensor, "shown pixels"]:
    """Returns the weight of each Gaussian at each pixel of a tile."""
    rows = torch.arange(y.start, y.stop, device=numbers.device) + 0.5
    columns = torch.arange(x.start, x.stop, device=numbers.device) + 0.5
    pixels = torch.cartesian_prod(rows, columns).flip(-1).to(projected.means)  # (pixels, 2): x, y
    across, down = (projected.means[numbers, None] - pixels).unbind(-1)  # (shown, pixels)
    xx, xy, yy = projected.conics[numbers].unsqueeze(1).unbind(-1)
    sigma = 0.5 * (xx * across * across + yy * down * down) + xy * across * down
    alpha = (projected.opacities[numbers, None] * torch.exp(-sigma)).clamp_max(MOST_ALPHA)
    alpha = torch.where((sigma < 0) | (alpha < LEAST_ALPHA), 0.0, alpha)
    after = torch.cumprod(1 - alpha, dim=0)
    before = torch.cat((torch.ones_like(after[:1]), after[:-1]))
    # Once a pixel has ended it stays so, because transmittance only falls.
    return torch.where(after > LEAST_TRANSMITTANCE, alpha * before, 0.0)
