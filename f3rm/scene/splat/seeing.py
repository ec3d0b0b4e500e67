"""Which photographs see points of a splat: those in which no Gaussian is in front of them."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from f3rm.splats.gaussians import Gaussians
from f3rm.splats.projection import PinholeCamera

_IN_CELL = 8
"""Gaussians in a cell of a picture, on average: so many that few cells have a hole."""
_LEAST_OPACITY = 0.5
"""A Gaussian of less opacity at its centre hides nothing."""
_SLACK = 0.02
"""A point may be so much farther, relative to its depth, than the nearest Gaussian of its cell."""
_NEAR = 0.01


def draw_views(
    gaussians: Gaussians,
    cameras: Sequence[PinholeCamera],
    points: Float[Tensor, "points 3"],
    sizes: Float[Tensor, " points"],
    random: np.random.Generator,
) -> Int[Tensor, " points"]:
    """Draws for each point one of the cameras that see it, all alike; -1 where none does.

    Args:
        gaussians: What hides points.
        cameras: The cameras, in the Gaussians' frame.
        points: The points, in that frame.
        sizes: How far from the surface each may be, in units of that frame.
        random: Draws them.
    """
    opaque = gaussians.means[gaussians.opacities >= _LEAST_OPACITY]
    drawn = torch.full((len(points),), -1)
    counts = torch.zeros(len(points))
    for number, seen in enumerate(_seen(opaque, cameras, points, sizes)):
        counts += seen
        # Of n cameras the last is taken once in n times, so that in the end all are alike.
        taken = torch.from_numpy(random.random(len(points), dtype=np.float32)) * counts < 1
        drawn[seen & taken] = number
    return drawn


def _seen(
    opaque: Float[Tensor, "gaussians 3"],
    cameras: Sequence[PinholeCamera],
    points: Float[Tensor, "points 3"],
    sizes: Float[Tensor, " points"],
) -> Iterator[Bool[Tensor, " points"]]:
    """Yields the points that each camera sees, on the CPU."""
    for camera in cameras:
        pixels, depths, inside = _placed(camera, opaque)
        height, width = camera.size
        count = max(1, int(inside.sum()))
        edge = max(1, round((_IN_CELL * height * width / count) ** 0.5))
        columns = -(-width // edge)
        nearest = depths.new_full((-(-height // edge) * columns,), torch.inf)
        nearest.scatter_reduce_(0, _cells(pixels[inside], edge, columns), depths[inside], "amin")
        pixels, depths, inside = _placed(camera, points)
        limit = nearest[_cells(pixels.where(inside[:, None], 0), edge, columns)]
        yield (inside & (depths * (1 - _SLACK) - sizes <= limit)).cpu()


def _cells(pixels: Int[Tensor, "points 2"], edge: int, columns: int) -> Int[Tensor, " points"]:
    return pixels[:, 1] // edge * columns + pixels[:, 0] // edge


def _placed(
    camera: PinholeCamera, points: Float[Tensor, "points 3"]
) -> tuple[Int[Tensor, "points 2"], Float[Tensor, " points"], Bool[Tensor, " points"]]:
    """Returns the pixel (x, y) of each point, its depth, and whether the picture has it."""
    pose = camera.camera_from_source.to(points)
    x, y, depths = (points @ pose[:3, :3].T + pose[:3, 3]).unbind(1)
    away = depths.clamp_min(_NEAR)
    x, y = (
        x / away * camera.focal[0] + camera.centre[0],
        y / away * camera.focal[1] + camera.centre[1],
    )
    height, width = camera.size
    inside = (depths > _NEAR) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return torch.stack((x, y), dim=1).long(), depths, inside
