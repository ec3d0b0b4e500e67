"""A dataset's cameras as those of a splat, without distortion and in the splat's own frame."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import overload

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from PIL import Image
from torch import Tensor

from f3rm.errors import F3rmError
from f3rm.scene.frames import FileCamera, Frame
from f3rm.splats.projection import PinholeCamera
from f3rm.splats.views import View

_FLIPPED = (1.0, -1.0, -1.0, 1.0)
"""From OpenGL's axes to OpenCV's."""


def pinhole_of(camera: Cameras, source: Frame, *, longest: int | None = None) -> PinholeCamera:
    """Returns the camera of a splat that sees what a camera sees, apart from its distortion.

    Args:
        camera: One camera of shape (1,), in the scene frame.
        source: The splat's frame.
        longest: Longest side of its picture; None for that of the camera.

    Raises:
        F3rmError: If it is no perspective camera.
    """
    if int(camera.camera_type[0]) != CameraType.PERSPECTIVE.value:
        kind = CameraType(int(camera.camera_type[0])).name
        msg = f"Splats are seen by perspective cameras, got {kind}. Undistort the photographs."
        raise F3rmError(msg)
    pose = source.cameras_from_scene(camera).camera_to_worlds[0].cpu().double()
    source_from_camera = torch.eye(4, dtype=torch.float64)
    source_from_camera[:3] = pose * pose.new_tensor(_FLIPPED)
    height, width = int(camera.height[0]), int(camera.width[0])
    scale = 1.0 if longest is None else min(1.0, longest / max(height, width))
    size = max(1, round(height * scale)), max(1, round(width * scale))
    across, down = size[1] / width, size[0] / height
    return PinholeCamera(
        camera_from_source=torch.linalg.inv(source_from_camera),
        focal=(float(camera.fx[0]) * across, float(camera.fy[0]) * down),
        centre=(float(camera.cx[0]) * across, float(camera.cy[0]) * down),
        size=size,
    )


def pixel_rays(camera: PinholeCamera) -> Float[Tensor, "height width 3"]:
    """Returns the point at depth 1 that each pixel sees, in the camera's axes (OpenCV's)."""
    height, width = camera.size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    plane = torch.stack((x - camera.centre[0], y - camera.centre[1]), dim=-1)
    return torch.cat((plane / torch.tensor(camera.focal), torch.ones(height, width, 1)), dim=-1)


class Photographs(Sequence[View]):
    """Photographs of a splat, made into views one at a time: a map of pixels takes memory.

    Args:
        names: Their ``file_path`` in transforms.json.
        paths: Their files.
        cameras: Their cameras, in the scene frame.
        source: The splat's frame.
        longest: Longest side of the pictures.
    """

    def __init__(
        self,
        names: Sequence[str],
        paths: Sequence[Path],
        cameras: Cameras,
        source: Frame,
        *,
        longest: int,
    ) -> None:
        self._names, self._paths, self._cameras = names, paths, cameras.to("cpu")
        self._source, self._longest = source, longest

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> View: ...

    @overload
    def __getitem__(self, index: slice) -> list[View]: ...

    def __getitem__(self, index: int | slice) -> View | list[View]:
        if isinstance(index, slice):
            return [self._view(number) for number in range(*index.indices(len(self)))]
        return self._view(range(len(self))[index])

    def _view(self, index: int) -> View:
        camera = pinhole_of(self._cameras[index : index + 1], self._source, longest=self._longest)
        locate = partial(self._pixels, index, camera)
        return View(self._names[index], self._paths[index], camera, locate)

    def _pixels(self, index: int, camera: PinholeCamera) -> Float[Tensor, "height width 2"]:
        """Returns the pixels of the file that the camera's pixels are, with its distortion."""
        with Image.open(self._paths[index]) as image:
            file_size = image.height, image.width
        file_camera = FileCamera(self._cameras, index, file_size)
        pose = self._cameras.camera_to_worlds[index]
        local = pixel_rays(camera) * torch.tensor(_FLIPPED[:3])
        positions = local @ pose[:, :3].T + pose[:, 3]
        xy, _ = file_camera.project(positions.reshape(-1, 3))
        return xy.reshape(*camera.size, 2)
