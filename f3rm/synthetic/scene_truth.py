"""Writes the ground truth of a generated scene; :mod:`f3rm.synthetic.truth` reads it.

Depths are 16-bit PNGs of millimetres along the optical axis, object ids are 8-bit PNGs of id + 1; 0
is nothing in both.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from PIL import Image

from f3rm.synthetic.cameras import View, camera_rays
from f3rm.synthetic.layouts import Layout
from f3rm.synthetic.objects import Part, Vector
from f3rm.synthetic.render import RenderedView
from f3rm.synthetic.truth import MILLIMETRES_PER_METRE, truth_files

_NEAR_MARGIN, _FAR_MARGIN = 0.6, 1.15


def seen_distances(view: View, picture: RenderedView) -> Float[np.ndarray, " seen"]:
    """Returns the distances along the rays, in metres, from a camera to what its pixels show."""
    _, directions = camera_rays(view)
    distances = picture.depth.ravel() * np.linalg.norm(directions, axis=-1)
    return distances[np.isfinite(distances)]


def draw_dataset_from_metres(seed: int) -> Float64[np.ndarray, "4 4"]:
    """Draws the frame of a dataset's poses: turned about z, moved, and scaled.

    Poses of structure from motion are not in metres either, so code that forgets the map must fail
    on generated scenes too.
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
    """Returns a camera's pose in a dataset's frame.

    Args:
        dataset_from_metres: A similarity transform; its scale is divided out of the rotation.
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
        picture: The rendered view.
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
    """Returns the scene's part of ``scene.json``."""
    objects = [_describe(layout, index) for index in range(len(layout.descriptions))]
    names = dict.fromkeys(entry["name"] for entry in objects if entry["kind"] == "object")
    return {
        "metres_from_dataset": np.linalg.inv(dataset_from_metres).tolist(),
        "objects": objects,
        "queries": [
            {"text": name, "ids": [entry["id"] for entry in objects if entry["name"] == name]}
            for name in names
        ],
        "absent": [asdict(prompt) for prompt in layout.absent],
    }


def training_planes(
    views: Sequence[View],
    dataset_from_metres: Float64[np.ndarray, "4 4"],
    nearest: float,
    farthest: float,
) -> tuple[float, float]:
    """Returns the near and far plane for training, in the units that Nerfstudio trains in.

    Args:
        views: The cameras.
        dataset_from_metres: The frame of the dataset's poses.
        nearest: The shortest distance along their rays to a surface, in metres.
        farthest: The longest.
    """
    poses = np.stack([dataset_pose(dataset_from_metres, view.world_from_camera) for view in views])
    scale = np.cbrt(np.linalg.det(dataset_from_metres[:3, :3])) * _training_scale(poses)
    near = math.floor(100 * _NEAR_MARGIN * scale * nearest) / 100
    return near, math.ceil(100 * _FAR_MARGIN * scale * farthest) / 100


def _training_scale(poses: Float64[np.ndarray, "views 4 4"]) -> float:
    """Returns the scale that Nerfstudio gives a dataset with its dataparser's default options.

    The cameras' mean becomes the origin, their mean upward direction becomes z, and the largest of
    their coordinates becomes one.

    *Source:* ``auto_orient_and_center_poses`` and ``auto_scale_poses`` of Nerfstudio 1.1.5.
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
    words = layout.descriptions[index]
    return {
        "id": index,
        "name": name,
        "instance": instance,
        "kind": "surface" if words is None else "object",
        "words": words
        and {"colour": words.colour, "material": words.material, "shape": words.shape},
        **_box(parts),
    }


def _box(parts: Sequence[Part]) -> dict[str, Any]:
    """Returns an object's box: that of its only part, or an axis-aligned one around all parts."""
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
