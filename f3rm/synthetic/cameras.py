"""Where the generated scenes are photographed from, and with which cameras.

Views go once around while height, distance and the like follow sequences of their own, so that any
few of them, such as the ones that Nerfstudio evaluates on, see all sides from all heights.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from f3rm.synthetic.layouts import SceneKind
from f3rm.synthetic.render import View, look_at
from f3rm.synthetic.surfaces import ROOM_HALF

_GOLDEN = (math.sqrt(5) - 1) / 2
_TABLE_FOCAL = 0.87
"""Focal length over width: a field of view of 60 degrees."""
_ROOM_FOCAL = 0.62
_ROOM_WALK = (0.3, 0.85)
"""Least and largest distance of a camera from the room's middle."""

_DISTORTION = (-0.24, 0.06, 0.004, -0.003)
_OFF_MIDDLE = (0.03, -0.025)
"""Where the distorted camera's optical axis is, off the middle, over width and height."""
_TALLER_PIXELS = 0.985
"""Focal length along y over that along x, of the distorted camera."""

_MIXED = (
    # height and width over the larger side, of which the focal length is a multiple too.
    ("landscape", 1.0, 0.87),
    ("portrait", 1.0, 0.80),
    ("landscape", 0.8, 1.00),
    ("square", 0.75, 0.95),
    ("portrait", 0.85, 0.90),
)


def draw_views(kind: SceneKind, seed: int, *, views: int, height: int, width: int) -> list[View]:
    """Returns the cameras of a scene.

    Args:
        kind: What sort of scene.
        seed: The same seed gives the same cameras.
        views: How many.
        height: Rows of a picture, or of the largest landscape picture where sizes are mixed.
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
    """Returns a camera somewhere about the middle that looks at the next stretch of the walls."""
    azimuth = 2 * math.pi * index / views
    walk = 2 * math.pi * _fraction(index) + rng.uniform(-0.2, 0.2)
    distance = rng.uniform(*_ROOM_WALK)
    eye = np.array([*distance * _direction(walk), rng.uniform(1.05, 1.5)])
    target = np.array([*ROOM_HALF * _direction(azimuth), rng.uniform(0.2, 0.6)])
    return look_at(eye, target)


def _direction(azimuth: float) -> np.ndarray:
    return np.array([math.cos(azimuth), math.sin(azimuth)])


def _fraction(index: int) -> float:
    """Returns numbers in [0, 1) of which any few in a row are spread out: the golden sequence."""
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
"""What makes other cameras of plain ones."""
