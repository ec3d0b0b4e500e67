"""Coordinate frames of a run, and the camera of one photograph.

The *dataset* frame is that of the poses in transforms.json; Nerfstudio's dataparser rotates,
centres and scales it into the *scene* frame that a model is trained in. Some datasets also map
their frame to *metres*. Transforms are 4 x 4 and named ``a_from_b``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from torch import Tensor

from f3rm.errors import DatasetError, F3rmError
from f3rm.scene.camera import Camera, CameraLike
from f3rm.scene.metres import METRES_KEY, SCENE_FILE, affine_map, finite_number, read_metres
from f3rm.store.geometry import Size
from f3rm.store.items import TRANSFORMS, dataset_root

FrameName = Literal["nerfstudio", "dataset", "metres"]
"""``nerfstudio`` is a run's scene frame, ``dataset`` that of transforms.json."""

_TOLERANCE = 1e-3


def scene_from_dataset(outputs: DataparserOutputs, data: Path) -> Float64[np.ndarray, "4 4"]:
    """Returns the map from the poses of transforms.json to the frame that a run is trained in.

    Nerfstudio's own transform starts one step earlier where the file has ``applied_transform`` or
    ``applied_scale``: it also undoes what ns-process-data did to the poses. This map does not.

    Args:
        outputs: The outputs of the run's dataparser.
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
            f"applied_transform and applied_scale of {str(source)!r} must be an affine map and a "
            f"number other than 0, got: {error}. Make the dataset again."
        )
        raise DatasetError(msg) from error
    return (
        np.diag([scale, scale, scale, 1.0]) @ _scene_from_parsed(outputs) @ np.linalg.inv(applied)
    )


def _scene_from_parsed(outputs: DataparserOutputs) -> Float64[np.ndarray, "4 4"]:
    """Returns the dataparser's map from the poses that it read to the scene frame."""
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
            f"{str(source)!r} must be readable JSON, got: {error}. Point --data at the dataset "
            "that the run was trained on."
        )
        raise DatasetError(msg) from error
    return content


@dataclass(frozen=True)
class Frame:
    """A frame of positions and cameras, placed in a run's scene frame.

    Attributes:
        scene_from_frame: A similarity: rotation, scale, translation.
    """

    scene_from_frame: Float64[np.ndarray, "4 4"]

    @property
    def scene_per_unit(self) -> float:
        """Length of this frame's unit in the scene frame."""
        return float(np.cbrt(np.abs(np.linalg.det(self.scene_from_frame[:3, :3]))))

    def up(self, *, is_level: bool) -> Float64[np.ndarray, "3"]:
        """Returns the unit up vector in this frame.

        Args:
            is_level: Whether this frame's own z axis is known to point up; otherwise up is the
                scene frame's z axis, which Nerfstudio estimated from the cameras.
        """
        z = np.array([0.0, 0.0, 1.0])
        rotated = np.linalg.inv(self.scene_from_frame)[:3, :3] @ z
        return z if is_level else rotated / np.linalg.norm(rotated)

    def to_scene(self, positions: Float[Tensor, "*points 3"]) -> Float[Tensor, "*points 3"]:
        """Maps positions of this frame to the scene frame."""
        return _transform_points(self.scene_from_frame, positions)

    def from_scene(self, positions: Float[Tensor, "*points 3"]) -> Float[Tensor, "*points 3"]:
        """Maps positions of the scene frame to this one."""
        return _transform_points(np.linalg.inv(self.scene_from_frame), positions)

    def cameras_to_scene(self, cameras: Cameras) -> Cameras:
        """Maps cameras (OpenGL axes) of this frame to the scene frame."""
        return _transform_cameras(self.scene_from_frame, cameras)

    def cameras_from_scene(self, cameras: Cameras) -> Cameras:
        """Maps cameras (OpenGL axes) of the scene frame to this one."""
        return _transform_cameras(np.linalg.inv(self.scene_from_frame), cameras)


@dataclass(frozen=True)
class Frames:
    """The frames of a run.

    Attributes:
        known: The frames by name; ``metres`` only where the dataset gives its scale.
    """

    known: Mapping[str, Frame]

    @classmethod
    def of_dataset(cls, outputs: DataparserOutputs, data: Path) -> "Frames":
        """Collects the frames of a run's dataset.

        Args:
            outputs: The outputs of the run's dataparser.
            data: The dataset folder, or a ``.json`` file in it; without transforms.json the frame
                that the dataparser read is the dataset's.

        Raises:
            DatasetError: If transforms.json or scene.json is damaged.
        """
        has_transforms = _transforms_file(data).is_file()
        scene = scene_from_dataset(outputs, data) if has_transforms else _scene_from_parsed(outputs)
        known = {"nerfstudio": Frame(np.eye(4)), "dataset": Frame(scene)}
        metres = read_metres(dataset_root(data))
        if metres is not None:
            _check_similarity(metres)
            known["metres"] = Frame(scene @ np.linalg.inv(metres))
        return cls(known)

    def get(self, name: str) -> Frame:
        """Returns a frame.

        Raises:
            F3rmError: If the run has no such frame.
        """
        if name not in self.known:
            msg = (
                f"The frame must be one of {', '.join(self.known)}, got {name!r}. Metres are known "
                f"where the dataset's {SCENE_FILE} has {METRES_KEY}; where transforms.json is "
                "metric, 'dataset' is in metres."
            )
            raise F3rmError(msg)
        return self.known[name]


def _check_similarity(matrix: Float64[np.ndarray, "4 4"]) -> None:
    rotation = matrix[:3, :3] / np.cbrt(np.linalg.det(matrix[:3, :3]))
    is_orthogonal = np.allclose(rotation @ rotation.T, np.eye(3), atol=_TOLERANCE)
    if not is_orthogonal or np.linalg.det(rotation) < 0:
        msg = (
            f"{METRES_KEY} of {SCENE_FILE} must rotate, scale and translate only, got "
            f"{matrix.tolist()}. Correct the file, or move it away to go on without metres."
        )
        raise DatasetError(msg)


def _transform_points(matrix: Float64[np.ndarray, "4 4"], points: Tensor) -> Tensor:
    affine = torch.from_numpy(matrix)
    # In double precision: frames of large scenes lose millimetres in single.
    moved = points.cpu().double() @ affine[:3, :3].T + affine[:3, 3]
    return moved.to(points)


def _transform_cameras(matrix: Float64[np.ndarray, "4 4"], cameras: Cameras) -> Cameras:
    affine = torch.from_numpy(matrix)
    # The scale moves the eyes only: the axes of a pose stay unit vectors.
    rotation = affine[:3, :3] / torch.linalg.det(affine[:3, :3]).abs() ** (1 / 3)
    poses = cameras.camera_to_worlds.cpu().double()  # (*cameras, 3, 4)
    eyes = poses[..., 3] @ affine[:3, :3].T + affine[:3, 3]
    moved = torch.cat((rotation @ poses[..., :3], eyes[..., None]), dim=-1)
    return replace(cameras, camera_to_worlds=moved.to(cameras.camera_to_worlds))


class FileCamera:
    """The camera of one photograph, addressed by pixels of its file and depth along its axis.

    A run may train on smaller pictures than the files; pixel (x, y) of the file, where (0, 0) is
    the centre of the first, is at ``(x + 0.5) * width / file_width`` of the trained picture.

    Args:
        cameras: All cameras of a dataset, in the scene frame.
        index: The photograph's index.
        file_size: Height and width of its file in pixels.

    Raises:
        DatasetError: If it is no perspective camera.
    """

    def __init__(self, cameras: Cameras, index: int, file_size: Size) -> None:
        self.camera = cameras[index : index + 1]
        self.file_size = file_size
        if int(self.camera.camera_type[0]) != CameraType.PERSPECTIVE.value:
            kind = CameraType(int(self.camera.camera_type[0])).name
            msg = (
                f"Cameras whose pixels are compared or drawn on must be perspective, got {kind}. "
                "Undistort the photographs, or do without truth and pictures of boxes."
            )
            raise DatasetError(msg)
        size = torch.tensor([int(self.camera.width[0]), int(self.camera.height[0])])
        self._scale = size / torch.tensor([file_size[1], file_size[0]])  # trained per file pixel

    def coords(self, xy: Float[Tensor, "points 2"]) -> Float[Tensor, "points 2"]:
        """Returns the (y, x) of the trained picture at pixels; the first centre is (0.5, 0.5)."""
        return ((xy + 0.5) * self._scale.to(xy)).flip(-1)

    def rays(self, xy: Float[Tensor, "points 2"]) -> RayBundle:
        """Returns the ray through each pixel, as a picture of one column: shape (points, 1)."""
        coords = self.coords(xy)[:, None]
        index = torch.zeros(len(xy), 1, 1, dtype=torch.long)
        camera = self.camera.to(xy.device)
        return camera.generate_rays(camera_indices=index.to(xy.device), coords=coords)

    def unproject(
        self, xy: Float[Tensor, "points 2"], depth: Float[Tensor, " points"]
    ) -> Float[Tensor, "points 3"]:
        """Returns the surface points that pixels see at a depth along the optical axis.

        Args:
            xy: Pixels of the file.
            depth: In units of the scene frame.
        """
        bundle = self.rays(xy)
        origins, directions = bundle.origins[:, 0], bundle.directions[:, 0]
        forward = -self.camera.camera_to_worlds[0, :3, 2].to(directions)
        along = depth / (directions @ forward)
        return origins + along[:, None] * directions

    def project(
        self, positions: Float[Tensor, "points 3"]
    ) -> tuple[Float[Tensor, "points 2"], Float[Tensor, " points"]]:
        """Returns the pixel (x, y) of the file that sees each position, and its depth.

        Behind the camera the depth is not positive and the pixel has no meaning.

        *Source:* OpenCV's perspective model with ``k1..k4, p1, p2`` as Nerfstudio's
        ``radial_and_tangential_undistort`` inverts it.
        """
        pose = self.camera.camera_to_worlds[0].to(positions)
        local = (positions - pose[:3, 3]) @ pose[:3, :3]  # x right, y up, z backwards
        depth = -local[:, 2]
        plane = local[:, :2] * local.new_tensor([1.0, -1.0]) / depth[:, None]
        distortion = self.camera.distortion_params
        if distortion is not None:
            plane = _distorted(plane, distortion[0].to(plane))
        focal = torch.cat((self.camera.fx[0], self.camera.fy[0])).to(plane)
        centre = torch.cat((self.camera.cx[0], self.camera.cy[0])).to(plane)
        return (plane * focal + centre) / self._scale.to(plane) - 0.5, depth


def _distorted(
    plane: Float[Tensor, "points 2"], params: Float[Tensor, " 6"]
) -> Float[Tensor, "points 2"]:
    k1, k2, k3, k4, p1, p2 = params
    x, y = plane.T
    r = x * x + y * y
    radial = 1 + r * (k1 + r * (k2 + r * (k3 + r * k4)))
    return torch.stack(
        (
            radial * x + 2 * p1 * x * y + p2 * (r + 2 * x * x),
            radial * y + 2 * p2 * x * y + p1 * (r + 2 * y * y),
        ),
        dim=-1,
    )


def single(camera: CameraLike) -> Cameras:
    """Returns one camera as Nerfstudio's, in shape (1,).

    Raises:
        F3rmError: If it is not one camera.
    """
    found = camera.to_nerfstudio() if isinstance(camera, Camera) else camera
    if not isinstance(found, Cameras):
        raise F3rmError(f"camera must be an f3rm.Camera or one of scene.cameras(), got {camera!r}.")
    if found.size != 1:
        raise F3rmError(f"camera must be one camera, got {found.size}. Take one: cameras[0].")
    return found.reshape((1,))
