"""The far side of an instance that views see from one side only.

It is taken to be as deep as it is wide. From each of its points a column runs straight away from
the views to the point's mirror image; where a view sees a surface behind, the column ends.
"""

import numpy as np
import torch
from jaxtyping import Float, Int

from f3rm.scene.boxes import OrientedBox, fit_box, upright_axes
from f3rm.scene.frames import Frame
from f3rm.scene.surface import Surface

_ONE_SIDED = 0.8
"""Length of the mean of the unit directions to what is seen from one side only; 1 is one view."""
_DEEP = 0.85
"""What is at least so deep, relative to its width, is left as it is."""
_COLUMNS = 32
_STEPS = 6


def complete(
    box: OrientedBox, surface: Surface, piece: Int[np.ndarray, " piece"], frame: Frame
) -> OrientedBox | None:
    """Returns the box of an instance with its unseen far side; None if nothing is to be added.

    Args:
        box: The box of its points, in the frame.
        surface: The surface, in the scene frame.
        piece: The indices of its points.
        frame: The frame of the box.
    """
    eyes = frame.from_scene(surface.sightings.eyes.double()).numpy()[surface.views_of(piece)]
    axes = _viewed_axes(box, eyes)
    if axes is None:
        return None
    points = frame.from_scene(surface.points.positions[piece].double()).numpy()
    seen = fit_box(points, box.axes[:, 2], axes=axes)
    depth, width, height = seen.extent
    if depth >= _DEEP * width:
        return None
    middle = axes.T @ seen.centre
    front = middle[0] - depth / 2
    local = points[seen.contains(points)] @ axes
    local = local[np.argsort(local[:, 0])][:: max(1, len(local) // _COLUMNS)]
    ends = 2 * front + width - local[:, 0]  # of the mirror image
    columns = np.repeat(local[:, None], _STEPS, axis=1)  # (columns, steps, 3)
    steps = np.linspace(1 / _STEPS, 1, _STEPS)
    columns[..., 0] += (ends - local[:, 0]).clip(0)[:, None] * steps
    in_scene = frame.to_scene(torch.from_numpy(columns.reshape(-1, 3) @ axes.T)).numpy()
    is_free = surface.seen_through(in_scene).reshape(columns.shape[:2])
    is_hidden = ~np.logical_or.accumulate(is_free, axis=1)
    stops = np.where(is_hidden, columns[..., 0], local[:, :1]).max(axis=1)
    back = max(front + depth, _common_end(stops, ends))
    middle[0] = (front + back) / 2
    return OrientedBox(axes @ middle, axes, np.array([back - front, width, height]))


def _common_end(stops: Float[np.ndarray, " columns"], ends: Float[np.ndarray, " columns"]) -> float:
    """Returns the largest depth that most columns reach of those that would end no nearer."""
    would = ends >= stops[:, None] - 1e-9  # (depths, columns)
    reaches = would & (stops >= stops[:, None] - 1e-9)
    most = reaches.sum(axis=1) > 0.5 * would.sum(axis=1)
    return float(stops[most].max(initial=-np.inf))


def _viewed_axes(
    box: OrientedBox, eyes: Float[np.ndarray, "sightings 3"]
) -> Float[np.ndarray, "3 3"] | None:
    """Returns the axes away from the views, across and up; None where views are on all sides."""
    upright = upright_axes(box.axes[:, 2])
    ahead = ((box.centre - eyes) @ upright)[:, :2]
    ahead /= np.maximum(np.linalg.norm(ahead, axis=1, keepdims=True), 1e-12)
    x, y = ahead.mean(axis=0) if len(ahead) else (0.0, 0.0)
    length = np.hypot(x, y)
    if length < _ONE_SIDED:
        return None
    cos, sin = x / length, y / length
    return upright @ np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
