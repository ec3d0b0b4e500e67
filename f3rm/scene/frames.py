"""Where things are: the frame that a run is trained in, that of its dataset, and metres.

The *dataset* frame is that of the poses in transforms.json; Nerfstudio's dataparser turns, centres
and scales it into the *scene* frame that a model is trained in. Some datasets also say how their
frame lies in *metres*. Transforms are 4 x 4 and named ``a_from_b``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from torch import Tensor

from f3rm.errors import DatasetError, F3rmError
from f3rm.scene.metres import METRES_KEY, SCENE_FILE, affine_map, finite_number, read_metres
from f3rm.store.items import TRANSFORMS, dataset_root

FrameName = Literal["nerfstudio", "dataset", "metres"]
"""``nerfstudio`` is a run's own frame, ``dataset`` that of transforms.json."""

_TOLERANCE = 1e-3


def scene_from_dataset(outputs: DataparserOutputs, data: Path) -> Float64[np.ndarray, "4 4"]:
    """Returns the map from the poses of transforms.json to the frame that a run is trained in.

    Nerfstudio's own transform starts one step earlier where the file has ``applied_transform`` or
    ``applied_scale``: it undoes what ns-process-data did to the poses. That step is taken back.

    Args:
        outputs: What the run's dataparser made of the dataset.
        data: The dataset folder, or a ``.json`` file in it.

    Raises:
        DatasetError: If transforms.json cannot be read.
    """
    source = _transforms_file(data)
    meta = _read_transforms(source)
    applied = np.eye(4)
    try:
        if "applied_transform" in meta:
            applied[:3] = affine_map([*meta["applied_transform"][:3], [0, 0, 0, 1]])[:3]
        scale = 1.0 / finite_number(meta.get("applied_scale", 1.0))
    except (ValueError, TypeError, ArithmeticError) as error:
        msg = (
            f"scene_from_dataset: applied_transform and applied_scale of {str(source)!r} must be "
            f"an affine map and a number, got: {error}. Make the dataset again."
        )
        raise DatasetError(msg) from error
    return np.diag([scale, scale, scale, 1.0]) @ _parsed(outputs) @ np.linalg.inv(applied)


def _parsed(outputs: DataparserOutputs) -> Float64[np.ndarray, "4 4"]:
    """Returns what the dataparser did to the poses that it read."""
    transform = np.eye(4)
    transform[:3] = outputs.dataparser_transform.double().cpu().numpy()[:3]
    scale = outputs.dataparser_scale
    return np.diag([scale, scale, scale, 1.0]) @ transform


def _transforms_file(data: Path) -> Path:
    return data.expanduser() if data.suffix == ".json" else dataset_root(data) / TRANSFORMS


def _read_transforms(source: Path) -> dict[str, Any]:
    try:
        content = json.loads(source.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("it holds no object")
    except (OSError, TypeError, ValueError, RecursionError) as error:
        msg = (
            f"scene_from_dataset: {str(source)!r} must be readable JSON, got: {error}. Point "
            "--data at the dataset that the run was trained on."
        )
        raise DatasetError(msg) from error
    return content


@dataclass(frozen=True)
class Frame:
    """A frame that positions and cameras may be given in, against a run's scene frame.

    Attributes:
        scene_from_frame: A similarity: turn, scale, shift.
    """

    scene_from_frame: Float64[np.ndarray, "4 4"]

    @property
    def scene_per_unit(self) -> float:
        """Length of this frame's unit in the scene frame."""
        return float(np.cbrt(np.abs(np.linalg.det(self.scene_from_frame[:3, :3]))))

    def up(self, *, is_level: bool) -> Float64[np.ndarray, "3"]:
        """Returns which way is up in this frame.

        Args:
            is_level: Whether this frame's own z axis is known to point up; otherwise it is the way
                up that Nerfstudio estimated, the scene frame's z axis.
        """
        z = np.array([0.0, 0.0, 1.0])
        turned = np.linalg.inv(self.scene_from_frame)[:3, :3] @ z
        return z if is_level else turned / np.linalg.norm(turned)

    def to_scene(self, positions: Float[Tensor, "*points 3"]) -> Float[Tensor, "*points 3"]:
        """Carries positions of this frame to the scene frame."""
        return _transformed(self.scene_from_frame, positions)

    def from_scene(self, positions: Float[Tensor, "*points 3"]) -> Float[Tensor, "*points 3"]:
        """Carries positions of the scene frame to this one."""
        return _transformed(np.linalg.inv(self.scene_from_frame), positions)

    def cameras_to_scene(self, cameras: Cameras) -> Cameras:
        """Carries cameras (OpenGL axes) of this frame to the scene frame."""
        return _moved(self.scene_from_frame, cameras)

    def cameras_from_scene(self, cameras: Cameras) -> Cameras:
        """Carries cameras (OpenGL axes) of the scene frame to this one."""
        return _moved(np.linalg.inv(self.scene_from_frame), cameras)


@dataclass(frozen=True)
class Frames:
    """The frames that are known of a run.

    Attributes:
        known: The frames by name; ``metres`` only where the dataset says how it lies in metres.
    """

    known: Mapping[str, Frame]

    @classmethod
    def of_dataset(cls, outputs: DataparserOutputs, data: Path) -> "Frames":
        """Collects the frames of a run's dataset.

        Args:
            outputs: What the run's dataparser made of the dataset.
            data: The dataset folder, or a ``.json`` file in it; without transforms.json the frame
                that the dataparser read is the dataset's.

        Raises:
            DatasetError: If transforms.json or scene.json is damaged.
        """
        has_transforms = _transforms_file(data).is_file()
        scene = scene_from_dataset(outputs, data) if has_transforms else _parsed(outputs)
        known = {"nerfstudio": Frame(np.eye(4)), "dataset": Frame(scene)}
        metres = read_metres(dataset_root(data))
        if metres is not None:
            known["metres"] = Frame(scene @ np.linalg.inv(_similarity(metres)))
        return cls(known)

    def get(self, name: str) -> Frame:
        """Returns a frame.

        Raises:
            F3rmError: If it is not known.
        """
        if name not in self.known:
            msg = (
                f"Frames.get: frame must be one of {', '.join(self.known)}, got {name!r}. Metres "
                f"are known where the dataset's {SCENE_FILE} has {METRES_KEY}; where "
                "transforms.json is metric, 'dataset' is in metres."
            )
            raise F3rmError(msg)
        return self.known[name]


def _similarity(matrix: Float64[np.ndarray, "4 4"]) -> Float64[np.ndarray, "4 4"]:
    turn = matrix[:3, :3] / np.cbrt(np.linalg.det(matrix[:3, :3]))
    if not np.allclose(turn @ turn.T, np.eye(3), atol=_TOLERANCE) or np.linalg.det(turn) < 0:
        msg = (
            f"Frames: {METRES_KEY} of {SCENE_FILE} must turn, scale and shift only, got "
            f"{matrix.tolist()}. Correct the file, or move it away to go on without metres."
        )
        raise DatasetError(msg)
    return matrix


def _transformed(matrix: Float64[np.ndarray, "4 4"], points: Tensor) -> Tensor:
    affine = torch.from_numpy(matrix)
    moved = points.cpu().double() @ affine[:3, :3].T + affine[:3, 3]
    return moved.to(points)


def _moved(matrix: Float64[np.ndarray, "4 4"], cameras: Cameras) -> Cameras:
    affine = torch.from_numpy(matrix)
    turn = affine[:3, :3] / torch.linalg.det(affine[:3, :3]).abs() ** (1 / 3)
    poses = cameras.camera_to_worlds.cpu().double()  # (*cameras, 3, 4)
    eyes = poses[..., 3] @ affine[:3, :3].T + affine[:3, 3]
    moved = torch.cat((turn @ poses[..., :3], eyes[..., None]), dim=-1)
    return Cameras(
        camera_to_worlds=moved.to(cameras.camera_to_worlds),
        fx=cameras.fx,
        fy=cameras.fy,
        cx=cameras.cx,
        cy=cameras.cy,
        width=cameras.width,
        height=cameras.height,
        distortion_params=cameras.distortion_params,
        camera_type=cameras.camera_type,
        times=cameras.times,
        metadata=cameras.metadata,
    )
