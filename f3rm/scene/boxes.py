"""Upright oriented boxes: fitted to points, compared with each other."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float
from trimesh.bounds import oriented_bounds_2D

from f3rm.errors import F3rmError

Vector = Float[np.ndarray, "3"]
Points = Float[np.ndarray, "points 3"]

_TRIMMED = 0.01
"""Share of the points beyond each side of a box: those that stray."""


@dataclass(frozen=True)
class OrientedBox:
    """A box that stands upright.

    Attributes:
        centre: Its middle.
        axes: Its unit axes as columns, a right-handed turn; the last one is up.
        extent: Its full lengths along these axes.
    """

    centre: Vector
    axes: Float[np.ndarray, "3 3"]
    extent: Vector

    @property
    def volume(self) -> float:
        """Its volume."""
        return float(np.prod(self.extent))

    @property
    def yaw(self) -> float:
        """The turn of its first axis about the third coordinate axis, in radians."""
        return float(np.arctan2(self.axes[1, 0], self.axes[0, 0]))

    def corners(self) -> Float[np.ndarray, "8 3"]:
        """Returns its corners."""
        signs = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        return self.centre + (signs * self.extent) @ self.axes.T

    def contains(self, points: Points, *, margin: float = 0.0) -> Bool[np.ndarray, " points"]:
        """Returns which points lie inside.

        Args:
            points: Positions.
            margin: How far outside of it a point may lie.
        """
        local = (points - self.centre) @ self.axes
        return (np.abs(local) <= self.extent / 2 + margin).all(axis=1)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain lists for JSON."""
        return {
            "centre": self.centre.tolist(),
            "axes": self.axes.tolist(),
            "extent": self.extent.tolist(),
        }


def fit_box(points: Points, up: Vector) -> OrientedBox:
    """Fits an upright box: the smallest rectangle around the points seen from above.

    One point in a hundred may lie beyond each side, so that no stray point decides.

    Args:
        points: At least three, not all on a vertical line.
        up: Which way is up, any length.

    Raises:
        F3rmError: If there are too few points, or up is no direction.
    """
    length = float(np.linalg.norm(up))
    if len(points) < 3 or not length > 0:
        msg = (
            f"fit_box: it takes three points and an up vector that is not zero, got {len(points)} "
            f"and {up.tolist()}. Ask for something larger."
        )
        raise F3rmError(msg)
    upwards = _upright(up / length)
    local = points @ upwards  # (points, 3), the last coordinate is height
    kept = local[_central(local)]
    kept = kept if len(kept) >= 3 else local
    turn = _turn(kept[:, :2])
    turned = local[:, :2] @ turn
    middle = np.concatenate((turned, local[:, 2:]), axis=1)
    low, high = np.quantile(middle, [_TRIMMED, 1 - _TRIMMED], axis=0)
    axes = upwards.copy()
    axes[:, :2] = upwards[:, :2] @ turn
    return OrientedBox(centre=axes @ ((low + high) / 2), axes=axes, extent=high - low)


def _central(points: Points) -> Bool[np.ndarray, " points"]:
    low, high = np.quantile(points, [_TRIMMED, 1 - _TRIMMED], axis=0)
    return ((points >= low) & (points <= high)).all(axis=1)


def _upright(up: Vector) -> Float[np.ndarray, "3 3"]:
    """Returns a right-handed basis as columns whose last is ``up``; the identity for +z."""
    if up[2] > 1 - 1e-12:
        return np.eye(3)
    first = np.cross(up, [0.0, 0.0, 1.0]) if abs(up[2]) < 0.9 else np.cross([0.0, 1.0, 0.0], up)
    first = first / np.linalg.norm(first)
    return np.stack((first, np.cross(up, first), up), axis=1)


def _turn(flat: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "2 2"]:
    """Returns the axes, as columns, of the smallest rectangle around points."""
    spread = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False)
    if spread[1] <= 1e-6 * max(spread[0], 1e-12):  # on a line, which has no hull
        return np.eye(2)
    box_from_points, _ = oriented_bounds_2D(flat)
    turn = box_from_points[:2, :2].T
    return turn if np.linalg.det(turn) > 0 else turn * np.array([1.0, -1.0])


def box_iou(first: OrientedBox, second: OrientedBox) -> float:
    """Returns the intersection over union of two boxes that share their up axis.

    Raises:
        F3rmError: If they stand on different axes.
    """
    if not np.allclose(first.axes[:, 2], second.axes[:, 2], atol=1e-4):
        msg = "box_iou: both boxes must have the same up axis. Fit them with the same up."
        raise F3rmError(msg)
    top = min(_height(first)[1], _height(second)[1])
    height = top - max(_height(first)[0], _height(second)[0])
    if height <= 0:
        return 0.0
    scale = max(float(np.max(first.extent)), float(np.max(second.extent)), 1e-12)
    origin = first.centre
    kind, shape = cv2.rotatedRectangleIntersection(
        _footprint(first, first, origin, scale), _footprint(second, first, origin, scale)
    )
    if kind == cv2.INTERSECT_NONE or shape is None:
        return 0.0
    area = float(cv2.contourArea(cv2.convexHull(shape))) * scale**2
    shared = area * height
    union = first.volume + second.volume - shared
    return float(shared / union) if union > 0 else 0.0


def _height(box: OrientedBox) -> tuple[float, float]:
    middle = float(box.centre @ box.axes[:, 2])
    return middle - box.extent[2] / 2, middle + box.extent[2] / 2


def _footprint(
    box: OrientedBox, basis: OrientedBox, origin: Vector, scale: float
) -> tuple[tuple[float, float], tuple[float, float], float]:
    """Returns a box from above as OpenCV's centre, size and degrees, in the basis' axes."""
    x, y, _ = (box.centre - origin) @ basis.axes / scale
    along = basis.axes[:, :2].T @ box.axes[:, 0]
    degrees = float(np.degrees(np.arctan2(along[1], along[0])))
    width, depth = box.extent[:2] / scale
    return (float(x), float(y)), (float(width), float(depth)), degrees
