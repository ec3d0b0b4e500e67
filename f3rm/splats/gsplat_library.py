"""gsplat's rasteriser for GPUs; imported only where it is chosen.

Keyword arguments differ between gsplat's versions: those that the installed one does not know are
left out. More than 32 channels are drawn in parts, because released builds have no wider kernels.
"""

import inspect
from typing import Any

import torch
from gsplat.rendering import rasterization
from jaxtyping import Float
from torch import Tensor

from f3rm.splats.gaussians import Gaussians
from f3rm.splats.projection import TILE, PinholeCamera

_WIDEST = 32
_SETTINGS: dict[str, Any] = {
    "packed": True,
    "tile_size": TILE,
    "rasterize_mode": "classic",
    "render_mode": "RGB",
    "sh_degree": None,
}


class GsplatRasterizer:
    """One picture's Gaussians, drawn by gsplat.

    Args:
        gaussians: Gaussians on a GPU, in float32.
        camera: The camera.
    """

    def __init__(self, gaussians: Gaussians, camera: PinholeCamera) -> None:
        self._gaussians = gaussians
        means = gaussians.means
        intrinsics = torch.eye(3)
        intrinsics[0, 0], intrinsics[1, 1] = camera.focal
        intrinsics[0, 2], intrinsics[1, 2] = camera.centre
        known = inspect.signature(rasterization).parameters
        self._size = camera.size
        self._settings = {
            "viewmats": camera.camera_from_source.to(means)[None],
            "Ks": intrinsics.to(means)[None],
            "width": camera.size[1],
            "height": camera.size[0],
            **{name: value for name, value in _SETTINGS.items() if name in known},
        }

    def composite(
        self, values: Float[Tensor, "gaussians channels"]
    ) -> Float[Tensor, "height width channels"]:
        """Returns values composited at every pixel."""
        return torch.cat([self._draw(part) for part in values.split(_WIDEST, dim=1)], dim=-1)

    @torch.enable_grad()
    def adjoint(
        self, picture: Float[Tensor, "height width channels"]
    ) -> Float[Tensor, "gaussians channels"]:
        """Returns the sum over pixels of each Gaussian's weight times the pixel's values.

        Compositing is linear in the values, so this is the gradient of its product with the
        picture.
        """
        parts: list[Tensor] = []
        for part in picture.split(_WIDEST, dim=-1):
            shape = (len(self._gaussians), part.shape[-1])
            values = torch.zeros(shape, device=part.device, requires_grad=True)
            drawn = self._draw(values)
            parts += torch.autograd.grad(drawn, values, part)
        return torch.cat(parts, dim=1)

    def _draw(self, values: Tensor) -> Tensor:
        these = self._gaussians
        drawn, *_ = rasterization(
            means=these.means,
            quats=these.quats,
            scales=these.scales,
            opacities=these.opacities,
            colors=values.contiguous(),
            **self._settings,
        )
        return drawn[0]
