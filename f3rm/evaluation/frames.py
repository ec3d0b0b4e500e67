"""Where things are: the run's scene frame against metres, and cameras by the pixels of their files.

Three frames meet in an evaluation. The *dataset* frame is that of the poses in transforms.json;
Nerfstudio's dataparser turns, centres and scales it into the *scene* frame that a model is trained
in; ground truth is in *metres*. Transforms are 4 x 4 and named ``a_from_b``.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float64
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from torch import Tensor

from f3rm._types import DatasetError
from f3rm.features.geometry import Size
from f3rm.features.items import TRANSFORMS, dataset_root


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
    meta = _read_transforms(data)
    applied = np.eye(4)
    if "applied_transform" in meta:
        applied[:3] = np.asarray(meta["applied_transform"], dtype=np.float64)[:3]
    transform = np.eye(4)
    transform[:3] = outputs.dataparser_transform.double().cpu().numpy()[:3]
    transform = transform @ np.linalg.inv(applied)
    scale = outputs.dataparser_scale / float(meta.get("applied_scale", 1.0))
    return np.diag([scale, scale, scale, 1.0]) @ transform


def _read_transforms(data: Path) -> dict[str, Any]:
    source = data.expanduser() if data.suffix == ".json" else dataset_root(data) / TRANSFORMS
    try:
        return json.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = (
            f"scene_from_dataset: {str(source)!r} must be readable JSON, got: {error}. Point "
            "--data at the dataset that the run was trained on."
        )
        raise DatasetError(msg) from error


@dataclass(frozen=True)
class SceneFrame:
    """A run's scene frame, in metres.

    Attributes:
        scene_from_metres: A similarity: turn, scale, shift.
    """

    scene_from_metres: Float64[np.ndarray, "4 4"]

    @property
    def scene_per_metre(self) -> float:
        """Length of a metre in the scene frame."""
        return float(np.cbrt(np.abs(np.linalg.det(self.scene_from_metres[:3, :3]))))

    def to_scene(self, metres: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Carries positions in metres to the scene frame."""
        return _transformed(self.scene_from_metres, metres)

    def to_metres(self, scene: Float[Tensor, "points 3"]) -> Float[Tensor, "points 3"]:
        """Carries positions in the scene frame to metres."""
        return _transformed(np.linalg.inv(self.scene_from_metres), scene)


def _transformed(matrix: Float64[np.ndarray, "4 4"], points: Tensor) -> Tensor:
    affine = torch.from_numpy(matrix)
    moved = points.cpu().double() @ affine[:3, :3].T + affine[:3, 3]
    return moved.to(points)


class FileCamera:
    """The camera of one photograph, addressed by pixels of the file and depths along its axis.

    A run may train on smaller pictures than the files; a pixel (x, y) of the file, (0, 0) being the
    centre of its first, is at ``(x + 0.5) * width / file_width`` of the trained picture.

    Args:
        cameras: All cameras of a dataset, in the scene frame.
        index: Which one.
        file_size: Height and width of its file in pixels.

    Raises:
        DatasetError: If it is no perspective camera.
    """

    def __init__(self, cameras: Cameras, index: int, file_size: Size) -> None:
        self._camera = cameras[index : index + 1]
        self.file_size = file_size
        if int(self._camera.camera_type[0]) != CameraType.PERSPECTIVE.value:
            kind = CameraType(int(self._camera.camera_type[0])).name
            msg = (
                f"FileCamera: cameras of a dataset with truth must be perspective, got {kind}. "
                "Undistort the photographs, or evaluate without truth."
            )
            raise DatasetError(msg)
        size = torch.tensor([int(self._camera.width[0]), int(self._camera.height[0])])
        self._scale = size / torch.tensor([file_size[1], file_size[0]])  # trained per file pixel

    def rays(self, xy: Float[Tensor, "points 2"]) -> RayBundle:
        """Returns the ray through each pixel, as a picture of one column: shape (points, 1)."""
        coords = ((xy + 0.5) * self._scale).flip(-1)[:, None]  # (points, 1, 2) as (y, x)
        index = torch.zeros(len(xy), 1, 1, dtype=torch.long)
        camera = self._camera.to(xy.device)
        return camera.generate_rays(camera_indices=index.to(xy.device), coords=coords)

    def unproject(
        self, xy: Float[Tensor, "points 2"], depth: Float[Tensor, " points"]
    ) -> Float[Tensor, "points 3"]:
        """Returns where the surface lies that pixels see at a depth along the optical axis.

        Args:
            xy: Pixels of the file.
            depth: In units of the scene frame.
        """
        bundle = self.rays(xy)
        origins, directions = bundle.origins[:, 0], bundle.directions[:, 0]
        forward = -self._camera.camera_to_worlds[0, :3, 2].to(directions)
        along = depth / (directions @ forward)
        return origins + along[:, None] * directions

    def project(
        self, positions: Float[Tensor, "points 3"]
    ) -> tuple[Float[Tensor, "points 2"], Float[Tensor, " points"]]:
        """Returns the pixel (x, y) of the file that sees each position, and its depth.

        What is behind the camera has a depth that is not positive, and a pixel without meaning.

        *Source:* OpenCV's perspective model with ``k1..k4, p1, p2`` as Nerfstudio's
        ``radial_and_tangential_undistort`` inverts it.
        """
        pose = self._camera.camera_to_worlds[0].to(positions)
        local = (positions - pose[:3, 3]) @ pose[:3, :3]  # x right, y up, z backwards
        depth = -local[:, 2]
        plane = local[:, :2] * local.new_tensor([1.0, -1.0]) / depth[:, None]
        distortion = self._camera.distortion_params
        if distortion is not None:
            plane = _distorted(plane, distortion[0].to(plane))
        focal = torch.cat((self._camera.fx[0], self._camera.fy[0])).to(plane)
        centre = torch.cat((self._camera.cx[0], self._camera.cy[0])).to(plane)
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
