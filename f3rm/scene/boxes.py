"""Upright oriented boxes: fitted to points, and their overlap."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float
from scipy.spatial import KDTree
from trimesh.bounds import oriented_bounds_2D

from f3rm.errors import F3rmError

Vector = Float[np.ndarray, "3"]
Points = Float[np.ndarray, "points 3"]

_COMPANY = 4
"""Of so many nearest points the farthest decides whether a point is an outlier."""
_FAR = 3.0
"""An outlier's is this many times as far as the median point's."""


@dataclass(frozen=True)
class OrientedBox:
    """A box whose third axis points up.

    Attributes:
        centre: Its middle.
        axes: Unit axes as columns of a right-handed rotation; the last one is up.
        extent: Full lengths along the axes.
    """

    centre: Vector
    axes: Float[np.ndarray, "3 3"]
    extent: Vector

    @property
    def volume(self) -> float:
        """Volume, in cubed units of the box's frame."""
        return float(np.prod(self.extent))

    @property
    def yaw(self) -> float:
        """Rotation of the first axis about the frame's z axis, in radians."""
        return float(np.arctan2(self.axes[1, 0], self.axes[0, 0]))

    def corners(self) -> Float[np.ndarray, "8 3"]:
        """Returns the eight corners."""
        signs = np.stack(np.meshgrid(*[(-0.5, 0.5)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
        return self.centre + (signs * self.extent) @ self.axes.T

    def contains(self, points: Points, *, margin: float = 0.0) -> Bool[np.ndarray, " points"]:
        """Tells which points are inside, or at most ``margin`` outside of each face."""
        local = (points - self.centre) @ self.axes
        return (np.abs(local) <= self.extent / 2 + margin).all(axis=1)

    def moved(self, other_from_here: Float[np.ndarray, "4 4"]) -> "OrientedBox":
        """Returns the box in another frame, e.g. that of a robot's base.

        Args:
            other_from_here: The map to it: rotation, translation and scale.

        Raises:
            F3rmError: If it does anything else.
        """
        matrix = np.asarray(other_from_here, dtype=np.float64)
        if matrix.shape != (4, 4) or not np.linalg.det(matrix[:3, :3]) > 0:
            raise F3rmError(f"other_from_here must be 4 x 4 and keep hands, got {matrix.tolist()}.")
        scale = float(np.cbrt(np.linalg.det(matrix[:3, :3])))
        turn = matrix[:3, :3] / scale
        if not np.allclose(turn @ turn.T, np.eye(3), atol=1e-3):
            raise F3rmError(f"other_from_here must not shear or stretch, got {matrix.tolist()}.")
        centre = matrix[:3, :3] @ self.centre + matrix[:3, 3]
        return OrientedBox(centre=centre, axes=turn @ self.axes, extent=scale * self.extent)

    def to_dict(self) -> dict[str, list[float] | list[list[float]]]:
        """Returns plain lists for JSON."""
        return {
            "centre": self.centre.tolist(),
            "axes": self.axes.tolist(),
            "extent": self.extent.tolist(),
        }


def meeting(
    box: OrientedBox,
    origins: Float[np.ndarray, "*rays 3"],
    directions: Float[np.ndarray, "*rays 3"],
    *,
    margin: float = 0.0,
) -> Bool[np.ndarray, "*rays"]:
    """Tells which rays meet a box, made larger by ``margin`` on each side."""
    starts, slopes = (origins - box.centre) @ box.axes, directions @ box.axes
    reach = box.extent / 2 + margin
    with np.errstate(all="ignore"):  # along a face: infinity, or in it NaN, which fmin passes over
        first, second = (-reach - starts) / slopes, (reach - starts) / slopes
    enters = np.fmin(first, second).max(axis=-1, initial=0.0)
    return enters <= np.fmax(first, second).min(axis=-1)


def checked_up(up: Sequence[float] | Vector) -> Vector:
    """Returns an up direction that was given as an argument.

    Raises:
        F3rmError: If it is not three finite numbers that are not all zero.
    """
    try:
        direction = np.asarray(up, dtype=np.float64)
    except (TypeError, ValueError):
        direction = np.zeros(0)
    if direction.shape != (3,) or not np.isfinite(direction).all() or not direction.any():
        raise F3rmError(f"up must be a direction (x, y, z), not zero, got {up!r}.")
    return direction


def fit_box(
    points: Points, up: Vector, *, axes: Float[np.ndarray, "3 3"] | None = None
) -> OrientedBox:
    """Fits an upright box: the smallest rectangle around the points seen from above.

    Points that are far from all others are left out, so that no outlier decides; every other point
    is in the box, be it the tip of a cone.

    Args:
        points: At least three, not all on one vertical line.
        up: The up direction, of any length but zero.
        axes: The axes of the box as columns, the last one up; None to choose them.

    Raises:
        F3rmError: If there are fewer than three points, or ``up`` is zero.
    """
    length = float(np.linalg.norm(up))
    if len(points) < 3 or not length > 0:
        msg = (
            "A box needs at least three points and an up vector that is not zero, got "
            f"{len(points)} points and up={up.tolist()}."
        )
        raise F3rmError(msg)
    kept = points[_has_company(points)]
    fitted = _fitted_axes(kept, up / length) if axes is None else axes
    local = kept @ fitted  # (points, 3), the last coordinate is height
    low, high = local.min(axis=0), local.max(axis=0)
    return OrientedBox(centre=fitted @ ((low + high) / 2), axes=fitted, extent=high - low)


def _fitted_axes(points: Points, up: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Returns upright axes, turned so that the points' rectangle seen from above is smallest."""
    upright, rotation = upright_axes(up), np.eye(3)
    rotation[:2, :2] = _smallest_rectangle((points @ upright)[:, :2])
    return upright @ rotation


def _has_company(points: Points) -> Bool[np.ndarray, " points"]:
    """Tells which points have others about as near as those of most points are."""
    near = min(_COMPANY, len(points) - 1)
    distances = KDTree(points).query(points, k=near + 1)[0][:, -1]
    return distances <= _FAR * np.median(distances)


def upright_axes(up: Vector) -> Float[np.ndarray, "3 3"]:
    """Returns a right-handed basis as columns whose last is ``up``; the identity for +z."""
    if up[2] > 1 - 1e-12:
        return np.eye(3)
    # The helper axis must not be parallel to ``up``: z, or y where ``up`` is close to z.
    first = np.cross(up, [0.0, 0.0, 1.0]) if abs(up[2]) < 0.9 else np.cross([0.0, 1.0, 0.0], up)
    first = first / np.linalg.norm(first)
    return np.stack((first, np.cross(up, first), up), axis=1)


def _smallest_rectangle(flat: Float[np.ndarray, "points 2"]) -> Float[np.ndarray, "2 2"]:
    """Returns the axes, as columns of a rotation, of the smallest rectangle around points."""
    spread = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False)
    if spread[1] <= 1e-6 * max(spread[0], 1e-12):  # collinear points have no hull
        return np.eye(2)
    box_from_points, _ = oriented_bounds_2D(flat)
    axes = box_from_points[:2, :2].T
    # trimesh may return a reflection; a box's axes are a rotation.
    return axes if np.linalg.det(axes) > 0 else axes * np.array([1.0, -1.0])


def box_iou(first: OrientedBox, second: OrientedBox) -> float:
    """Returns the intersection over union of two boxes that share their up axis.

    Raises:
        F3rmError: If their up axes differ.
    """
    if not np.allclose(first.axes[:, 2], second.axes[:, 2], atol=1e-4):
        msg = "Both boxes must have the same up axis. Fit them with the same up."
        raise F3rmError(msg)
    (low, high), (other_low, other_high) = _height_range(first), _height_range(second)
    height = min(high, other_high) - max(low, other_low)
    if height <= 0:
        return 0.0
    # OpenCV computes in float32: near the origin and of size about 1 it keeps its digits.
    scale = max(float(np.max(first.extent)), float(np.max(second.extent)), 1e-12)
    kind, shape = cv2.rotatedRectangleIntersection(
        _footprint(first, first, scale), _footprint(second, first, scale)
    )
    if kind == cv2.INTERSECT_NONE or shape is None:
        return 0.0
    area = float(cv2.contourArea(cv2.convexHull(shape))) * scale**2
    shared = area * height
    union = first.volume + second.volume - shared
    return float(shared / union) if union > 0 else 0.0


def _height_range(box: OrientedBox) -> tuple[float, float]:
    middle = float(box.centre @ box.axes[:, 2])
    return middle - box.extent[2] / 2, middle + box.extent[2] / 2


def _footprint(
    box: OrientedBox, origin: OrientedBox, scale: float
) -> tuple[tuple[float, float], tuple[float, float], float]:
    """Returns a box from above as OpenCV's centre, size and degrees, in the axes of ``origin``."""
    x, y, _ = (box.centre - origin.centre) @ origin.axes / scale
    along = origin.axes[:, :2].T @ box.axes[:, 0]
    degrees = float(np.degrees(np.arctan2(along[1], along[0])))
    width, depth = box.extent[:2] / scale
    return (float(x), float(y)), (float(width), float(depth)), degrees
