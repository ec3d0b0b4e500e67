"""The choice of a rasteriser: gsplat on a GPU, machine code or PyTorch on a CPU; one contract.

:class:`Rasterizer` is a matrix ``A`` (pixels x Gaussians) of compositing weights for one camera:
``composite`` multiplies values by it, ``adjoint`` pictures by its transpose. All follow gsplat 1.4:
Gaussians are projected to first order and widened by 0.3 square pixels, alpha is at most 0.999 and
counts from 1/255, and a pixel ends before its transmittance falls to 1e-4.
"""

import importlib
import importlib.util
import logging
from functools import cached_property, lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.distribution import how_to_install
from f3rm.errors import ImplementationError
from f3rm.splats.gaussians import Gaussians
from f3rm.splats.projection import PinholeCamera, project
from f3rm.splats.torch_rasterizer import TorchRasterizer

logger = logging.getLogger(__name__)

Implementation = Literal["gsplat", "numba", "torch"]
ImplementationChoice = Literal["auto", "gsplat", "numba", "torch"]

_KERNEL = "f3rm.splats.kernel"  # imports numba
_GSPLAT = "f3rm.splats.gsplat_library"  # imports gsplat


@runtime_checkable
class Drawing(Protocol):
    """What draws one camera's picture."""

    def composite(
        self, values: Float[Tensor, "gaussians channels"]
    ) -> Float[Tensor, "height width channels"]:
        """Composites values at every pixel."""
        ...

    def adjoint(
        self, picture: Float[Tensor, "height width channels"]
    ) -> Float[Tensor, "gaussians channels"]:
        """Sums pixels over each Gaussian's weights."""
        ...


def choose_rasterizer(
    choice: ImplementationChoice, device: torch.device | str, dtype: torch.dtype = torch.float32
) -> Implementation:
    """Decides what draws Gaussians on a device.

    Args:
        choice: ``auto`` takes gsplat on a CUDA device and numba on a CPU where they are installed,
            else torch.
        device: Where the Gaussians are.
        dtype: Their precision; gsplat knows float32 only.

    Raises:
        ImplementationError: If the one that was asked for cannot run there.
    """
    kind = torch.device(device).type
    can = {
        "gsplat": kind == "cuda" and dtype == torch.float32 and _is_installed("gsplat"),
        "numba": kind == "cpu" and _is_installed("numba"),
        "torch": True,
    }
    if choice == "auto":
        if can["gsplat"]:
            return "gsplat"
        if can["numba"]:
            return "numba"
        _warn_once(kind)
        return "torch"
    if not can[choice]:
        needs = {
            "gsplat": "a CUDA device, float32 and the package gsplat, which Nerfstudio installs",
            "numba": f"a CPU and numba: {how_to_install('fast')}",
        }[choice]
        msg = f"The rasteriser {choice!r} needs {needs}; the Gaussians are on {kind}. Use 'auto'."
        raise ImplementationError(msg)
    return choice


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@lru_cache
def _warn_once(kind: str) -> None:
    what = f"gsplat is not installed (on {kind})" if kind == "cuda" else "numba is not installed"
    advice = "pip install gsplat" if kind == "cuda" else how_to_install("fast")
    logger.warning("%s: drawing a splat takes about ten times as long. Run %s.", what, advice)


class Rasterizer:
    """Compositing weights of Gaussians at the pixels of one camera.

    Args:
        gaussians: The Gaussians.
        camera: The camera, with the Gaussians' frame as its source.
        implementation: ``auto``, ``gsplat``, ``numba`` or ``torch``; see
            :func:`choose_rasterizer`.

    Raises:
        ImplementationError: If the one that was asked for cannot run.
    """

    def __init__(
        self,
        gaussians: Gaussians,
        camera: PinholeCamera,
        *,
        implementation: ImplementationChoice = "auto",
    ) -> None:
        means = gaussians.means
        self.gaussians, self.camera = gaussians, camera
        self.implementation = choose_rasterizer(implementation, means.device, means.dtype)
        self._drawing = _drawing_of(self.implementation, gaussians, camera)

    @torch.no_grad()
    def composite(
        self, values: Float[Tensor, "gaussians channels"]
    ) -> Float[Tensor, "height width channels"]:
        """Composites values front to back: ``A v``, on the Gaussians' device.

        Args:
            values: Any number of channels per Gaussian.
        """
        return self._drawing.composite(values.to(self.gaussians.means))

    @torch.no_grad()
    def adjoint(
        self, picture: Float[Tensor, "height width channels"]
    ) -> Float[Tensor, "gaussians channels"]:
        """Sums a picture over each Gaussian's weights: ``A' y``; zero where it is not seen.

        Args:
            picture: Any number of channels per pixel, of the camera's size.
        """
        return self._drawing.adjoint(picture.to(self.gaussians.means))

    @cached_property
    def accumulation(self) -> Float[Tensor, "height width"]:
        """The sum of the weights at every pixel, in [0, 1]."""
        ones = self.gaussians.means.new_ones(len(self.gaussians), 1)
        return self.composite(ones)[..., 0]


def _drawing_of(
    implementation: Implementation, gaussians: Gaussians, camera: PinholeCamera
) -> Drawing:
    if implementation == "gsplat":
        library: Any = importlib.import_module(_GSPLAT)
        return library.GsplatRasterizer(gaussians, camera)
    projected = project(gaussians, camera)
    if implementation == "numba":
        kernel: Any = importlib.import_module(_KERNEL)
        return kernel.KernelRasterizer(projected, camera, len(gaussians))
    return TorchRasterizer(projected, camera, len(gaussians))
