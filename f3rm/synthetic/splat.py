"""The true splat of a generated scene: flat Gaussians on its surfaces."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from PIL import Image

from f3rm.splats.ply import write_ply
from f3rm.splats.surfels import surfels
from f3rm.synthetic.cameras import camera_rays, draw_views
from f3rm.synthetic.layouts import SceneKind
from f3rm.synthetic.scenes import SceneSettings, image_name
from f3rm.synthetic.truth import SceneTruth

SPLAT_FILE = "splat.ply"
NUM_GAUSSIANS = 300_000

_POINTS = 3_000_000
"""Pixels whose surface points are kept: enough for several per Gaussian."""
_STEPS = 12


def write_splat(folder: Path, kind: SceneKind, settings: SceneSettings) -> Path:
    """Writes ``splat.ply`` into a generated dataset; returns the file.

    Colours are those of the photographs, the mean over them: mirrors do not turn with the view.

    Args:
        folder: The dataset.
        kind: Its kind.
        settings: What it was made with.

    Raises:
        DatasetError: If the dataset is damaged.
        CacheError: If the file cannot be written.
    """
    truth = SceneTruth.read(folder)
    positions, colours = _surface_points(folder, truth, kind, settings)
    cells = _cells(positions, NUM_GAUSSIANS)
    counts = np.bincount(cells)[:, None]
    means = [
        np.stack([np.bincount(cells, values[:, axis]) for axis in range(3)], axis=1) / counts
        for values in (positions, colours)
    ]
    points, rgb = (torch.from_numpy(each).float() for each in means)
    dataset_from_metres = torch.from_numpy(np.linalg.inv(truth.metres_from_dataset)).float()
    in_dataset = points @ dataset_from_metres[:3, :3].T + dataset_from_metres[:3, 3]
    write_ply(folder / SPLAT_FILE, surfels(in_dataset, rgb))
    return folder / SPLAT_FILE


def _surface_points(
    folder: Path, truth: SceneTruth, kind: SceneKind, settings: SceneSettings
) -> tuple[Float64[np.ndarray, "points 3"], Float32[np.ndarray, "points 3"]]:
    """Returns what the photographs' pixels show: positions in metres and RGB in [0, 1]."""
    sizes = {"height": settings.height, "width": settings.width}
    views = draw_views(kind, settings.seed, views=settings.views, **sizes)
    share = min(1.0, _POINTS / (settings.views * settings.height * settings.width))
    random = np.random.default_rng([settings.seed, 40])
    positions, colours = [], []
    for index, view in enumerate(views):
        depth = truth.view(image_name(index)).depth.reshape(-1)
        kept = np.isfinite(depth) & (random.random(len(depth)) < share)
        origins, directions = camera_rays(view)
        positions.append(origins[kept] + directions[kept] * depth[kept, None].astype(np.float64))
        with Image.open(folder / image_name(index)) as image:
            colours.append(np.asarray(image).reshape(-1, 3)[kept].astype(np.float32) / 255)
    return np.concatenate(positions), np.concatenate(colours)


def _cells(positions: Float64[np.ndarray, "points 3"], wanted: int) -> Int64[np.ndarray, " points"]:
    """Numbers the cells of a grid that points are in, of about as many cells as are wanted."""
    low = positions.min(axis=0)
    small, large = 1e-4, float((positions.max(axis=0) - low).max())
    cells = np.zeros(len(positions), np.int64)
    for _ in range(_STEPS):
        edge = (small * large) ** 0.5
        place = ((positions - low) / edge).astype(np.int64)
        keys = (place[:, 0] << 42) + (place[:, 1] << 21) + place[:, 2]
        cells = np.unique(keys, return_inverse=True)[1]
        small, large = (edge, large) if cells.max() >= wanted else (small, edge)
    return cells
