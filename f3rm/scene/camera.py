"""A camera as calibration, robots and OpenCV describe it: intrinsics, pose, size, distortion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float64
from nerfstudio.cameras.cameras import Cameras, CameraType
from torch import Tensor

from f3rm.errors import F3rmError
from f3rm.store.geometry import Size

Array = Tensor | np.ndarray | Sequence[Any]
Convention = Literal["opencv", "nerfstudio"]

_TOLERANCE = 1e-3
_AXES = {"opencv": (1.0, -1.0, -1.0), "nerfstudio": (1.0, 1.0, 1.0)}
"""Nerfstudio's axes (OpenGL's) along the columns of a pose."""
_FIRST_PIXEL = {"opencv": 0.5, "nerfstudio": 0.0}
"""What is added to a principal point: Nerfstudio's first pixel has its centre at (0.5, 0.5)."""


@dataclass(frozen=True, eq=False)
class Camera:
    """A perspective camera.

    Arguments may be arrays, tensors or lists; they are kept as arrays. In the convention
    ``opencv``, which is also that of ROS and COLMAP's poses, x points right, y down and z forward,
    pixel (0, 0) is the centre of the first pixel, and distortion is ``k1, k2, p1, p2[, k3]``. In
    ``nerfstudio``, that of transforms.json, y points up and z backward, (0, 0) is the corner of the
    first pixel, and distortion is ``k1, k2, k3, k4, p1, p2``.

    Attributes:
        K: Intrinsics, 3 x 3, in pixels.
        camera_to_world: Pose, 3 x 4 or 4 x 4: from the camera's axes to the frame that the camera
            is used in. A robot's camera is in its base frame only if the dataset's frame is that.
        size: Height and width in pixels.
        convention: Meaning of the axes and of whole pixels.
        distortion: The lens, if it distorts.

    Raises:
        F3rmError: If one of them is not of this form.
    """

    K: Array
    camera_to_world: Array
    size: Size
    convention: Convention = "opencv"
    distortion: Array = ()

    def __post_init__(self) -> None:
        if self.convention not in _AXES:
            known = ", ".join(_AXES)
            raise F3rmError(f"convention must be one of {known}, got {self.convention!r}.")
        intrinsics = _numbers("K", self.K, [(3, 3)])
        is_upright = np.allclose(intrinsics[[0, 1, 2, 2, 2], [1, 0, 0, 1, 2]], [0, 0, 0, 0, 1])
        if not is_upright or min(intrinsics[0, 0], intrinsics[1, 1]) <= 0:
            shape = "[[fx, 0, cx], [0, fy, cy], [0, 0, 1]]"
            raise F3rmError(f"K must be {shape} in pixels, got {intrinsics.tolist()}.")
        pose = _numbers("camera_to_world", self.camera_to_world, [(3, 4), (4, 4)])[:3]
        turn = pose[:, :3]
        if not np.allclose(turn @ turn.T, np.eye(3), atol=_TOLERANCE) or np.linalg.det(turn) < 0:
            msg = "camera_to_world must rotate and translate only, got"
            raise F3rmError(f"{msg} {pose.tolist()}. A scale belongs to the frame.")
        size = _numbers("size", self.size, [(2,)])
        if not (size == size.round()).all() or size.min() < 1:
            raise F3rmError(f"size must be (height, width) in whole pixels, got {self.size!r}.")
        object.__setattr__(self, "K", intrinsics)
        object.__setattr__(self, "camera_to_world", pose)
        object.__setattr__(self, "size", (int(size[0]), int(size[1])))
        object.__setattr__(self, "distortion", self._lens())

    def _lens(self) -> Float64[np.ndarray, "6"]:
        """Returns the distortion in Nerfstudio's order: k1, k2, k3, k4, p1, p2."""
        if self.convention == "nerfstudio":
            return _numbers("distortion", self.distortion, [(0,), (6,)], length=6)
        given = _numbers("distortion", self.distortion, [(0,), (4,), (5,)], length=5)
        k1, k2, p1, p2, k3 = given
        return np.array([k1, k2, k3, 0.0, p1, p2])

    def to_nerfstudio(self) -> Cameras:
        """Returns the camera as Nerfstudio's, in shape (1,)."""
        pose = np.asarray(self.camera_to_world) * [*_AXES[self.convention], 1.0]
        intrinsics, (height, width) = np.asarray(self.K), self.size
        shift = _FIRST_PIXEL[self.convention]
        lens = torch.from_numpy(np.asarray(self.distortion)).float()
        return Cameras(
            camera_to_worlds=torch.from_numpy(pose).float()[None],
            fx=float(intrinsics[0, 0]),
            fy=float(intrinsics[1, 1]),
            cx=float(intrinsics[0, 2] + shift),
            cy=float(intrinsics[1, 2] + shift),
            height=height,
            width=width,
            distortion_params=lens[None] if lens.any() else None,
            camera_type=CameraType.PERSPECTIVE,
        )


CameraLike = Cameras | Camera
"""Wherever one camera is taken: this project's, or Nerfstudio's with one camera in it."""


def _numbers(
    name: str, given: object, shapes: Sequence[tuple[int, ...]], *, length: int | None = None
) -> Float64[np.ndarray, "..."]:
    """Returns an argument as an array of one of some shapes, filled up to a length with zeros."""
    try:
        found = np.asarray(given.detach().cpu() if isinstance(given, Tensor) else given, float)
    except (TypeError, ValueError):
        found = np.zeros((0, 0))
    if found.shape not in shapes or not np.isfinite(found).all():
        wanted = " or ".join(" x ".join(map(str, shape)) for shape in shapes if 0 not in shape)
        raise F3rmError(f"{name} must be {wanted} finite numbers, got {given!r}.")
    return found if length is None else np.pad(found, (0, length - len(found)))
