"""A surface whose answers are known: points on the boxes of a scene's truth, one colour each."""

import numpy as np
import torch

from f3rm.evaluation.finding import true_box
from f3rm.scene.finding.find import LEAST_POINTS
from f3rm.scene.scene import SPACING
from f3rm.scene.surface import Sightings, SurfacePoints
from tests.viewer.colour_backbone import COLOURS

SCATTERED = "red"
"""The colour of a few points only: fewer than an instance has."""


def show_known_surface(scene, truth):
    """Gives a scene the true boxes of its things for a surface, whatever its field has learnt."""
    head, known = scene.head("colours"), scene.frames.get("metres")
    with torch.no_grad():  # a hidden vector is the feature, filled up with zeros
        head.linear.weight.copy_(torch.eye(*head.weight.shape))
    positions, hidden = [], []
    for thing in truth.objects:
        colour = next((word for word in thing.name.split() if word in COLOURS), None)
        if thing.kind == "object" and colour is not None:
            lattice = _speck if colour == SCATTERED else _faces
            points = lattice(true_box(thing), step=SPACING / known.scene_per_unit)
            positions.append(known.to_scene(torch.from_numpy(points)).float())
            vector = torch.eye(head.weight.shape[1])[list(COLOURS).index(colour)]
            hidden.append(vector.expand(len(points), -1))
    where = torch.cat(positions)
    surface = SurfacePoints(
        where, torch.zeros_like(where), torch.cat(hidden), torch.ones(len(where), dtype=torch.long)
    )
    eyes = scene.run.train.cameras.camera_to_worlds[..., 3]
    seen = Sightings(surface, torch.arange(len(where)) % len(eyes), eyes)  # from all sides
    scene._sampled = lambda num_rays, seed: seen
    scene._look_closer = None
    return scene


def _faces(box, step):
    """A lattice on the faces of a box, at least one point in each cell that they cross."""
    counts = np.ceil(box.extent / (0.5 * step)).astype(int) + 1
    axes = [np.linspace(-0.5, 0.5, count) for count in counts]
    local = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    local = local[(np.abs(local) == 0.5).any(axis=1)]
    return box.centre + (local * box.extent) @ box.axes.T


def _speck(box, step):
    """Eight neighbouring cells at the middle of a box."""
    assert LEAST_POINTS > 8
    corners = np.stack(np.meshgrid(*[[0.0, 1.5]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    return box.centre + corners * step
