"""The camera of one photograph, addressed by the pixels of its file."""

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from f3rm.errors import DatasetError
from f3rm.store.geometry import Size


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
