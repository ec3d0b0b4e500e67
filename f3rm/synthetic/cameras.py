"""Cameras of generated scenes: their rays, and the poses and lenses of a scene's views.

Cameras follow Nerfstudio: x right, y up, looking along -z; pixel (row, column) has its centre at
(column + 0.5, row + 0.5).

Views go once around the scene, while height, distance and the like follow sequences of their own:
any few of them, such as the ones that Nerfstudio evaluates on, see all sides from all heights.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float, Float32, Float64

from f3rm.synthetic.layouts import ROOM_HALF, SceneKind

_GOLDEN = (math.sqrt(5) - 1) / 2
_TABLE_FOCAL = 0.87
"""Focal length over width: a field of view of 60 degrees."""
_ROOM_FOCAL = 0.62
_ROOM_WALK = (0.3, 0.85)
"""Smallest and largest distance of a camera from the room's centre, in metres."""

_DISTORTION = (-0.24, 0.06, 0.004, -0.003)
_OFF_MIDDLE = (0.03, -0.025)
"""The distorted camera's principal point minus the picture's centre, over width and height."""
_TALLER_PIXELS = 0.985
"""Focal length along y over that along x, of the distorted camera."""

_MIXED = (
    # Format, size over that of the largest picture, focal length over the longer side.
    ("landscape", 1.0, 0.87),
    ("portrait", 1.0, 0.80),
    ("landscape", 0.8, 1.00),
    ("square", 0.75, 0.95),
    ("portrait", 0.85, 0.90),
)

_EXACT = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 200, 1e-13)
"""When OpenCV may stop undistorting; its own rule is off by hundredths of a pixel."""


@dataclass(frozen=True)
class View:
    """A camera in the scene.

    Attributes:
        world_from_camera: Its pose, in metres.
        focal: Focal length in pixels along x, and along y unless ``focal_y`` is given.
        height: Rows of the picture.
        width: Columns of the picture.
        focal_y: Focal length in pixels along y; None takes that along x.
        principal: Principal point as x and y in pixels from the picture's corner; None takes its
            centre.
        distortion: OpenCV's k1, k2, p1, p2 of the lens.
    """

    world_from_camera: Float[np.ndarray, "4 4"]
    focal: float
    height: int
    width: int
    focal_y: float | None = None
    principal: tuple[float, float] | None = None
    distortion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    @property
    def focals(self) -> tuple[float, float]:
        """Focal lengths along x and y, in pixels."""
        return self.focal, self.focal if self.focal_y is None else self.focal_y

    @property
    def centre(self) -> tuple[float, float]:
        """Principal point as x and y, in pixels from the picture's corner."""
        return self.principal or (self.width / 2, self.height / 2)


def look_at(eye: Float[np.ndarray, " 3"], target: Float[np.ndarray, " 3"]) -> np.ndarray:
    """Returns the pose (4, 4) of a camera that looks at a point, z being up.

    Args:
        eye: The camera's position, not straight above or below the target.
        target: The point in the centre of its picture.
    """
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.cross([0.0, 0.0, 1.0], back)
    right = right / np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3, :3] = np.stack((right, np.cross(back, right), back), axis=1)
    pose[:3, 3] = eye
    return pose


def draw_views(kind: SceneKind, seed: int, *, views: int, height: int, width: int) -> list[View]:
    """Draws the cameras of a scene.

    Args:
        kind: The kind of scene.
        seed: The same seed gives the same cameras.
        views: Number of cameras.
        height: Rows of a picture; of the largest landscape picture if sizes are mixed.
        width: Columns of it.
    """
    rng = np.random.default_rng([seed, 32])
    place = _in_room if kind == "room" else _around_table
    focal = (_ROOM_FOCAL if kind == "room" else _TABLE_FOCAL) * width
    plain = [
        View(place(rng, index, views), focal=focal, height=height, width=width)
        for index in range(views)
    ]
    change = _CHANGES.get(kind)
    return plain if change is None else [change(view, i) for i, view in enumerate(plain)]


def _around_table(rng: np.random.Generator, index: int, views: int) -> np.ndarray:
    azimuth = 2 * math.pi * index / views
    elevation = math.radians(24 + 33 * _fraction(index) + rng.uniform(-2, 2))
    around = math.cos(elevation)
    direction = np.array(
        [around * math.cos(azimuth), around * math.sin(azimuth), math.sin(elevation)]
    )
    target = np.array([*rng.uniform(-0.12, 0.12, 2), 0.02])
    return look_at(target + rng.uniform(1.45, 1.7) * direction, target)


def _in_room(rng: np.random.Generator, index: int, views: int) -> np.ndarray:
    """Returns the pose of a camera that looks across the room at the next stretch of wall."""
    azimuth = 2 * math.pi * index / views
    walk = azimuth + math.pi * (2 + 2 * _fraction(index)) / 3 + rng.uniform(-0.2, 0.2)
    distance = rng.uniform(*_ROOM_WALK)
    eye = np.array([*distance * _direction(walk), rng.uniform(0.7, 1.15)])
    target = np.array([*ROOM_HALF * _direction(azimuth), rng.uniform(0.3, 0.55)])
    return look_at(eye, target)


def _direction(azimuth: float) -> np.ndarray:
    return np.array([math.cos(azimuth), math.sin(azimuth)])


def _fraction(index: int) -> float:
    """Returns a number in [0, 1) of the golden ratio's sequence: few in a row are spread out."""
    return index * _GOLDEN % 1


def _distorted(view: View, _: int) -> View:
    right, down = _OFF_MIDDLE
    return replace(
        view,
        focal_y=_TALLER_PIXELS * view.focal,
        principal=((0.5 + right) * view.width, (0.5 + down) * view.height),
        distortion=_DISTORTION,
    )


def _mixed(view: View, index: int) -> View:
    form, size, focal = _MIXED[index % len(_MIXED)]
    short, long = sorted((round(size * view.height), round(size * view.width)))
    height, width = {"landscape": (short, long), "portrait": (long, short)}.get(form, (long, long))
    return replace(view, height=height, width=width, focal=focal * long)


_CHANGES: Mapping[SceneKind, Callable[[View, int], View]] = {
    "tabletop-distorted": _distorted,
    "tabletop-mixed": _mixed,
}
"""Changes of the plain cameras, by kind of scene."""


def camera_rays(
    view: View, offset: tuple[float, float] = (0.0, 0.0)
) -> tuple[Float32[np.ndarray, "rays 3"], Float32[np.ndarray, "rays 3"]]:
    """Returns origins and directions of the pixels' rays, row by row.

    Directions are not of unit length: a distance along them is a depth along -z.

    Args:
        view: The camera.
        offset: Rows and columns from the pixels' centres.
    """
    lens = (view.focals, view.centre, view.distortion)
    local = _lens_directions(view.height, view.width, *lens, offset)
    directions = local @ view.world_from_camera[:3, :3].T
    origins = np.broadcast_to(view.world_from_camera[:3, 3], directions.shape)
    return origins.astype(np.float32), directions.astype(np.float32)


@lru_cache(maxsize=5)  # a view's centre rays and its four subpixels; most views share a lens
def _lens_directions(
    height: int,
    width: int,
    focals: tuple[float, float],
    centre: tuple[float, float],
    distortion: tuple[float, float, float, float],
    offset: tuple[float, float],
) -> Float64[np.ndarray, "rays 3"]:
    """Returns directions in the camera's frame; the array is shared and read-only."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    x = (columns + 0.5 + offset[1] - centre[0]) / focals[0]
    y = (rows + 0.5 + offset[0] - centre[1]) / focals[1]
    if any(distortion):
        x, y = _undistorted(x, y, distortion)
    directions = np.stack((x, -y, -np.ones_like(x)), axis=-1).reshape(-1, 3)
    directions.setflags(write=False)
    return directions


def _undistorted(
    x: Float64[np.ndarray, "height width"],
    y: Float64[np.ndarray, "height width"],
    distortion: tuple[float, float, float, float],
) -> tuple[Float64[np.ndarray, "height width"], Float64[np.ndarray, "height width"]]:
    """Returns the undistorted positions of points of the image plane, at focal length 1."""
    points = np.stack((x, y), axis=-1).reshape(-1, 1, 2)
    eye = np.eye(3)
    found = cv2.undistortPointsIter(points, eye, np.array(distortion), eye, eye, _EXACT)
    return found[:, 0, 0].reshape(x.shape), found[:, 0, 1].reshape(y.shape)
