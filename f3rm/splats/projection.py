"""Projects Gaussians into a picture as gsplat 1.4 does: the geometry of all rasterisers."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from f3rm.splats.gaussians import Gaussians, scaled_axes

TILE = 16
"""Side of a tile in pixels."""
MOST_ALPHA = 0.999
LEAST_ALPHA = 1 / 255
"""A Gaussian changes no pixel in which its alpha is less."""
LEAST_TRANSMITTANCE = 1e-4
"""A pixel ends before the Gaussian that would leave it less."""

_DILATION = 0.3
"""Added to the variance of every Gaussian in a picture, in square pixels."""
_NEAR, _FAR = 0.01, 1e10
_LEAST_DETERMINANT = 1e-10
_LEAST_SPREAD = 0.01
_MARGIN = 0.3
"""The slope of a projection is taken at most this share of the field of view beyond its edge."""


@dataclass(frozen=True)
class PinholeCamera:
    """A camera without distortion, with OpenCV's axes: x right, y down, z forwards.

    Attributes:
        camera_from_source: Rigid transform from the Gaussians' frame, 4 x 4.
        focal: Focal lengths along x and y in pixels.
        centre: Principal point (x, y) in pixels; the first pixel's centre is at (0.5, 0.5).
        size: Height and width in pixels.
    """

    camera_from_source: Float[Tensor, "4 4"]
    focal: tuple[float, float]
    centre: tuple[float, float]
    size: tuple[int, int]

    @property
    def eye(self) -> Float[Tensor, "3"]:
        """The camera's position in the Gaussians' frame."""
        rotation, shift = self.camera_from_source[:3, :3], self.camera_from_source[:3, 3]
        return -rotation.T @ shift

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        height, width = self.size
        return -(-height // TILE), -(-width // TILE)


@dataclass(frozen=True)
class Projected:
    """The Gaussians that a picture may show, nearest first.

    Attributes:
        ids: Their numbers among all Gaussians.
        means: Centres (x, y) in pixels.
        conics: Inverse covariance in the picture: xx, xy, yy.
        opacities: Opacities at the centres.
        depths: Distances along the optical axis, in units of the Gaussians' frame.
        radii: Three standard deviations along the longest axis, in whole pixels; tiles that this
            square touches are those that the Gaussian is drawn in.
    """

    ids: Int[Tensor, " visible"]
    means: Float[Tensor, "visible 2"]
    conics: Float[Tensor, "visible 3"]
    opacities: Float[Tensor, " visible"]
    depths: Float[Tensor, " visible"]
    radii: Int[Tensor, " visible"]

    def __len__(self) -> int:
        return len(self.ids)

    def tile_bounds(
        self, camera: PinholeCamera
    ) -> tuple[Int[Tensor, "visible 2"], Int[Tensor, "visible 2"]]:
        """Returns the first tile (column, row) of each Gaussian, and the one after its last."""
        rows, columns = camera.tiles
        most = self.radii.new_tensor((columns, rows))
        centres, reach = self.means / TILE, self.radii[:, None] / TILE
        first = torch.floor(centres - reach).to(self.radii.dtype).clamp_min(0)
        last = torch.ceil(centres + reach).to(self.radii.dtype).clamp_min(0)
        return torch.minimum(first, most), torch.minimum(last, most)


def project(gaussians: Gaussians, camera: PinholeCamera) -> Projected:
    """Projects Gaussians into a picture, to first order about their centres (EWA splatting).

    Args:
        gaussians: The Gaussians, in any precision and on any device.
        camera: The camera.

    *Source:* gsplat 1.4, ``fully_fused_projection`` with its default settings.
    """
    pose = camera.camera_from_source.to(gaussians.means)
    local = gaussians.means @ pose[:3, :3].T + pose[:3, 3]
    ids = ((local[:, 2] > _NEAR) & (local[:, 2] < _FAR)).nonzero()[:, 0]
    local = local[ids]
    axes = scaled_axes(gaussians.quats[ids], gaussians.scales[ids])
    xx, xy, yy = _covariances(axes, local, pose[:3, :3], camera)
    determinant = (xx * yy - xy * xy).clamp_min(_LEAST_DETERMINANT)
    middle = (xx + yy) / 2
    longest = middle + (middle * middle - determinant).clamp_min(_LEAST_SPREAD).sqrt()
    radii = torch.ceil(3 * longest.sqrt())
    means = local[:, :2] / local[:, 2:] * local.new_tensor(camera.focal)
    means = means + local.new_tensor(camera.centre)
    ends = local.new_tensor(camera.size[::-1])
    inside = ((means + radii[:, None] > 0) & (means - radii[:, None] < ends)).all(dim=1)
    kept = inside.nonzero()[:, 0]
    order = kept[torch.argsort(local[kept, 2], stable=True)]
    conics = torch.stack((yy, -xy, xx), dim=1)[order] / determinant[order, None]
    return Projected(
        ids=ids[order],
        means=means[order],
        conics=conics,
        opacities=gaussians.opacities[ids[order]],
        depths=local[order, 2],
        radii=radii[order].int(),
    )


def _covariances(
    axes: Float[Tensor, "visible 3 3"],
    local: Float[Tensor, "visible 3"],
    rotation: Float[Tensor, "3 3"],
    camera: PinholeCamera,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns xx, xy and yy of the dilated covariances in the picture."""
    z = local[:, 2]
    turned = torch.einsum("ij,njk->ink", rotation, axes)  # (3, visible, 3): camera's axes first
    rows: list[Tensor] = []
    for axis in (0, 1):
        length, focal, centre = camera.size[1 - axis], camera.focal[axis], camera.centre[axis]
        slack = _MARGIN * 0.5 * length / focal
        slope = (local[:, axis] / z).clamp(
            -centre / focal - slack, (length - centre) / focal + slack
        )
        # The picture's change along an axis of the Gaussian: a row of J R S.
        rows.append((turned[axis] - turned[2] * slope[:, None]) * (focal / z)[:, None])
    horizontal, vertical = rows
    return (
        (horizontal * horizontal).sum(dim=1) + _DILATION,
        (horizontal * vertical).sum(dim=1),
        (vertical * vertical).sum(dim=1) + _DILATION,
    )
