"""What cameras see of boxes on a floor and before walls, as sightings."""

import numpy as np
import torch

from f3rm.scene.surface import Sightings, Surface, SurfacePoints


def seen(boxes, eyes, *, rays=60, spread=0.35, spacing=0.01):
    """Casts rays of cameras that look at the origin.

    Args:
        boxes: Low and high corner of each box.
        eyes: Positions of the cameras.
        rays: Rays along a side of each picture.
        spread: Half the width of each picture, at distance 1.
        spacing: Edge of a grid cell.

    Returns:
        The surface, and the number of the box of each of its points, -1 for none.
    """
    positions, owners, views = [], [], []
    for view, eye in enumerate(np.array(eyes, float)):
        ahead = -eye / np.linalg.norm(eye)
        right = np.cross(ahead, [0, 0, 1.0])
        right /= np.linalg.norm(right)
        across = np.linspace(-spread, spread, rays)
        u, v = (grid.ravel() for grid in np.meshgrid(across, across))
        towards = ahead + u[:, None] * right + v[:, None] * np.cross(right, ahead)
        ends, owner = np.full(len(u), 9.0), np.full(len(u), -1)
        down = -eye[2] / np.where(towards[:, 2] < 0, towards[:, 2], -1e-9)
        ends = np.minimum(ends, down)
        for number, (low, high) in enumerate(boxes):
            with np.errstate(divide="ignore"):
                sides = (np.array([low, high]) - eye)[:, None] / towards
            near, far = sides.min(axis=0).max(axis=1), sides.max(axis=0).min(axis=1)
            hit = (near < far) & (near > 0) & (near < ends)
            ends[hit], owner[hit] = near[hit], number
        positions.append(eye + ends[:, None] * towards)
        owners.append(owner)
        views.append(np.full(len(u), view))
    where = torch.from_numpy(np.concatenate(positions)).float()
    owner, ones = np.concatenate(owners), torch.ones(len(where), dtype=torch.long)
    hidden = torch.from_numpy(owner + 1.0).float()[:, None]
    points = SurfacePoints(where, torch.zeros_like(where), hidden, ones)
    sightings = Sightings(
        points, torch.from_numpy(np.concatenate(views)), torch.tensor(eyes).float()
    )
    surface = Surface(sightings, spacing)
    return surface, surface.points.hidden[:, 0].round().long().numpy() - 1
