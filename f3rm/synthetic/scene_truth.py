"""Writes what is known about a generated scene, beside its photographs.

:mod:`f3rm.synthetic.truth` reads it again. Depths are 16-bit PNGs of millimetres along the optical
axis, object numbers are 8-bit PNGs of id + 1; 0 is nothing in both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from PIL import Image

from f3rm.synthetic.layouts import Layout
from f3rm.synthetic.objects import Part, Thing, Vector
from f3rm.synthetic.render import RenderedView, View, camera_rays
from f3rm.synthetic.truth import MILLIMETRES_PER_METRE, truth_files

_NEAR_MARGIN, _FAR_MARGIN = 0.6, 1.15


@dataclass(frozen=True)
class DepthRange:
    """The shortest and longest way from a camera, along its rays, to what it sees, in metres."""

    near: float = math.inf
    far: float = 0.0

    def extended(self, view: View, picture: RenderedView) -> "DepthRange":
        """Returns the range that also holds what another view sees.

        Args:
            view: The camera.
            picture: What it sees.
        """
        _, directions = camera_rays(view)
        ways = picture.depth.ravel() * np.linalg.norm(directions, axis=-1)
        seen = ways[np.isfinite(ways)]
        if not len(seen):
            return self
        return DepthRange(min(self.near, float(seen.min())), max(self.far, float(seen.max())))


def draw_dataset_from_metres(seed: int) -> Float64[np.ndarray, "4 4"]:
    """Draws the frame that a dataset's poses are in: turned about z, moved, and not metres.

    Structure from motion knows no metres either; whoever forgets the map is to notice.

    Args:
        seed: The same seed gives the same frame.
    """
    rng = np.random.default_rng([seed, 34])
    angle, scale = rng.uniform(-math.pi, math.pi), rng.uniform(2.0, 3.0)
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = np.eye(4)
    matrix[:3, :3] = scale * np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    matrix[:3, 3] = rng.uniform(-2, 2, 3)
    return matrix


def dataset_pose(
    dataset_from_metres: Float64[np.ndarray, "4 4"], pose: Float[np.ndarray, "4 4"]
) -> Float64[np.ndarray, "4 4"]:
    """Returns a camera's pose in a dataset's frame; its rotation stays one.

    Args:
        dataset_from_metres: A similarity transform.
        pose: ``world_from_camera`` in metres.
    """
    moved = dataset_from_metres @ pose
    moved[:3, :3] /= np.cbrt(np.linalg.det(dataset_from_metres[:3, :3]))
    return moved


def write_view(folder: Path, name: str, picture: RenderedView) -> None:
    """Writes the truth of one photograph.

    Args:
        folder: The dataset.
        name: File name of the photograph.
        picture: What it shows.
    """
    ids_path, depth_path = truth_files(folder, name)
    for path in (ids_path, depth_path):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture.ids + 1).astype(np.uint8)).save(ids_path)
    metres = np.where(np.isfinite(picture.depth), picture.depth, 0)
    millimetres = np.clip(MILLIMETRES_PER_METRE * metres + 0.5, 0, np.iinfo(np.uint16).max)
    Image.fromarray(millimetres.astype(np.uint16)).save(depth_path)


def describe_truth(
    layout: Layout, dataset_from_metres: Float64[np.ndarray, "4 4"]
) -> dict[str, Any]:
    """Returns what ``scene.json`` says about the scene, as JSON has it.

    Args:
        layout: The scene.
        dataset_from_metres: The frame of the poses.
    """
    objects = [_describe(layout, index) for index in range(len(layout.things))]
    names = dict.fromkeys(entry["name"] for entry in objects if entry["kind"] == "object")
    return {
        "metres_from_dataset": np.linalg.inv(dataset_from_metres).tolist(),
        "objects": objects,
        "queries": [
            {"text": name, "ids": [entry["id"] for entry in objects if entry["name"] == name]}
            for name in names
        ],
        "absent": list(layout.absent),
    }


def training_planes(
    views: Sequence[View],
    dataset_from_metres: Float64[np.ndarray, "4 4"],
    depths: DepthRange,
) -> tuple[float, float]:
    """Returns distances, in the units that Nerfstudio trains in, that hold all that is seen.

    Args:
        views: The cameras.
        dataset_from_metres: The frame of the dataset's poses.
        depths: How far what they see is.
    """
    poses = np.stack([dataset_pose(dataset_from_metres, view.world_from_camera) for view in views])
    scale = np.cbrt(np.linalg.det(dataset_from_metres[:3, :3])) * _training_scale(poses)
    near = math.floor(100 * _NEAR_MARGIN * scale * depths.near) / 100
    return near, math.ceil(100 * _FAR_MARGIN * scale * depths.far) / 100


def _training_scale(poses: Float64[np.ndarray, "views 4 4"]) -> float:
    """Returns by how much Nerfstudio shrinks a dataset, with its dataparser's default options.

    The cameras' mean becomes the origin, their mean upward direction becomes z, and the largest of
    their coordinates becomes one.

    Source: ``auto_orient_and_center_poses`` and ``auto_scale_poses`` of Nerfstudio 1.1.5.
    """
    up = poses[:, :3, 1].mean(axis=0)
    up = up / np.linalg.norm(up)
    skew = np.cross(np.eye(3), np.cross(up, [0.0, 0.0, 1.0]))
    turn = np.eye(3) + skew + skew @ skew / (1 + up[2])  # Rodrigues: takes up to z
    origins = poses[:, :3, 3] - poses[:, :3, 3].mean(axis=0)
    return 1 / float(np.abs(origins @ turn.T).max())


def _describe(layout: Layout, index: int) -> dict[str, Any]:
    name, instance = layout.spec.objects[index]
    parts = [part for part in layout.spec.parts if (part.name, part.instance) == (name, instance)]
    thing = layout.things[index]
    return {
        "id": index,
        "name": name,
        "instance": instance,
        "kind": "surface" if thing is None else "object",
        "words": None if thing is None else _words(thing),
        **_box(parts),
    }


def _words(thing: Thing) -> dict[str, str | None]:
    return {"colour": thing.colour, "material": thing.material, "shape": thing.shape}


def _box(parts: Sequence[Part]) -> dict[str, Any]:
    """Returns the box of an object: its only part's, or one along the axes around all of them."""
    if len(parts) == 1:
        centre, half_size, yaw = parts[0].centre, parts[0].half_size, parts[0].yaw
    else:
        corners = np.concatenate([part.mesh().vertices for part in parts]).astype(np.float64)
        low, high = corners.min(axis=0), corners.max(axis=0)
        centre, half_size, yaw = _vector((low + high) / 2), _vector((high - low) / 2), 0.0
    return {"centre": list(centre), "half_size": list(half_size), "yaw": yaw}


def _vector(values: Float64[np.ndarray, " 3"]) -> Vector:
    x, y, z = (round(float(value), 6) for value in values)
    return x, y, z
