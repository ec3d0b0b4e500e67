"""Flat Gaussians on points of surfaces: a splat of a scene whose surfaces are known."""

import numpy as np
import torch
from jaxtyping import Float
from scipy.spatial import KDTree
from torch import Tensor

from f3rm.splats.gaussians import Gaussians, flat_colours

_PLANE_NEIGHBOURS = 12
"""Points that decide the plane of a Gaussian, the nearest first."""
_SPACING_NEIGHBOURS = 4
_WIDTH = 0.5
"""Standard deviation over the distance of neighbours: with less, gaps show; with more, it blurs."""
_THICKNESS = 0.1
"""Of a Gaussian, over its width."""
_OPACITY = 0.95


def surfels(points: Float[Tensor, "points 3"], colours: Float[Tensor, "points 3"]) -> Gaussians:
    """Makes a flat Gaussian of every point, as wide as the points are apart.

    Args:
        points: Points on surfaces, not much farther apart in one place than beside it; at least 4.
        colours: RGB in [0, 1].

    Returns:
        The Gaussians, in the order and the frame of the points.

    Raises:
        ValueError: If there are fewer than 4 points.
    """
    if len(points) < _SPACING_NEIGHBOURS:
        msg = f"A splat needs at least {_SPACING_NEIGHBOURS} points, got {len(points)}."
        raise ValueError(msg)
    positions = points.double().numpy()
    count = min(_PLANE_NEIGHBOURS, len(positions))
    distances, near = KDTree(positions).query(positions, k=count)
    spacing = distances[:, 1:_SPACING_NEIGHBOURS].mean(axis=1)
    # Lone points, and points on top of each other, must not become sheets or specks.
    usual = float(np.median(spacing))
    width = _WIDTH * spacing.clip(0.3 * usual, 3 * usual).clip(1e-9)
    offsets = positions[near] - positions[near].mean(axis=1, keepdims=True)
    _, axes = np.linalg.eigh(offsets.transpose(0, 2, 1) @ offsets)  # ascending: the normal first
    axes[:, :, 0] *= np.sign(np.linalg.det(axes))[:, None]  # no reflections
    scales = np.stack((_THICKNESS * width, width, width), axis=1)
    return Gaussians(
        means=points.float(),
        quats=torch.from_numpy(_quaternions(axes)).float(),
        scales=torch.from_numpy(scales).float(),
        opacities=torch.full((len(points),), _OPACITY),
        sh=flat_colours(colours.float()),
    )


def _quaternions(rotations: Float[np.ndarray, "points 3 3"]) -> Float[np.ndarray, "points 4"]:
    """Returns w, x, y, z of rotations, stable for every angle.

    *Source:* Bar-Itzhack (2000): the quaternion is the largest eigenvector of a symmetric matrix.
    """
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotations.transpose(1, 2, 0)
    matrix = np.array(
        (
            (xx + yy + zz, zy - yz, xz - zx, yx - xy),
            (zy - yz, xx - yy - zz, xy + yx, xz + zx),
            (xz - zx, xy + yx, yy - xx - zz, yz + zy),
            (yx - xy, xz + zx, yz + zy, zz - xx - yy),
        )
    )
    return np.linalg.eigh(matrix.transpose(2, 0, 1))[1][:, :, -1]
