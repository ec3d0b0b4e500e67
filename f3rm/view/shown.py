"""The Gaussians of a scene as the page draws them, whatever the scene is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from f3rm.scene.casting import LEAST_ACCUMULATION
from f3rm.scene.export.points import Sampling
from f3rm.scene.export.splats import surface_splat
from f3rm.scene.frames import Frame
from f3rm.scene.scene import Scene
from f3rm.scene.splat.answers import SplatSource
from f3rm.splats.gaussians import SH_0, Gaussians, scaled_axes
from f3rm.splats.projection import PinholeCamera
from f3rm.splats.rasterizer import Rasterizer

PAGE = Frame(np.diag([0.1, 0.1, 0.1, 1.0]))
"""The page's frame: ten of its units are one of the scene frame, as in Nerfstudio's viewer."""

_LEAST_SCALE, _MOST_SCALE = 1e-4, 1e4
"""Standard deviations that the page's half precision can hold, in its units."""
_FOCAL = 600.0
"""Focal length of the pixel that a click sees, in pixels: that of a page about so high."""


@dataclass(frozen=True)
class ShownSplat:
    """A scene's Gaussians with their features.

    Attributes:
        gaussians: The Gaussians, in ``frame``.
        frame: Their frame.
        hidden: Their hidden vectors.
        reliability: Whether the photographs agree about each, in [0, 1], by head; none of a field.
    """

    gaussians: Gaussians
    frame: Frame
    hidden: Float[Tensor, "gaussians hidden"]
    reliability: Mapping[str, Float[Tensor, " gaussians"]]

    def __len__(self) -> int:
        return len(self.gaussians)

    def subset(self, kept: Tensor) -> "ShownSplat":
        """Returns some of the Gaussians, by a mask or by their numbers."""
        reliability = {name: values[kept] for name, values in self.reliability.items()}
        hidden = self.hidden[kept]
        return ShownSplat(self.gaussians.subset(kept), self.frame, hidden, reliability)

    @property
    def colours(self) -> Float[Tensor, "gaussians 3"]:
        """The photographs' colours, RGB in [0, 1], the same from everywhere; on the CPU."""
        return (0.5 + SH_0 * self.gaussians.sh[:, 0]).clamp(0, 1).cpu()

    def centres(self) -> Float[np.ndarray, "gaussians 3"]:
        """Returns their centres in the page's frame."""
        return PAGE.from_scene(self.frame.to_scene(self.gaussians.means.cpu())).numpy()

    def covariances(self) -> Float[np.ndarray, "gaussians 3 3"]:
        """Returns their covariances in the page's frame, none of them singular."""
        page_from_own = np.linalg.inv(PAGE.scene_from_frame) @ self.frame.scene_from_frame
        size = self.frame.scene_per_unit / PAGE.scene_per_unit
        scales = self.gaussians.scales.clamp(_LEAST_SCALE / size, _MOST_SCALE / size)
        axes = scaled_axes(self.gaussians.quats, scales).cpu().double().numpy()
        axes = page_from_own[:3, :3] @ axes
        return axes @ axes.swapaxes(1, 2)

    def surface_at(
        self, origin: Sequence[float], direction: Sequence[float]
    ) -> Float[Tensor, "3"] | None:
        """Returns the point that a ray hits; None where it hits nothing.

        Args:
            origin: Where it starts, in the page's frame.
            direction: Where it goes there, of any length.

        Returns:
            The point, in the scene frame.
        """
        ends = torch.tensor([[*origin], [*np.add(origin, direction)]], dtype=torch.float64)
        eye, ahead = self.frame.from_scene(PAGE.to_scene(ends))
        forward = functional.normalize(ahead - eye, dim=0)
        helper = torch.eye(3, dtype=torch.float64)[int(forward.abs().argmin())]
        right = functional.normalize(torch.linalg.cross(forward, helper), dim=0)
        rotation = torch.stack((right, torch.linalg.cross(forward, right), forward))
        pose = torch.eye(4, dtype=torch.float64)
        pose[:3, :3], pose[:3, 3] = rotation, -rotation @ eye
        pixel = PinholeCamera(pose, (_FOCAL, _FOCAL), (0.5, 0.5), (1, 1))
        drawing = Rasterizer(self.gaussians, pixel)
        seen = float(drawing.accumulation)
        if seen < LEAST_ACCUMULATION:
            return None
        means = self.gaussians.means
        depths = (means - eye.to(means)) @ forward.to(means)
        depth = float(drawing.composite(depths[:, None])) / seen
        return self.frame.to_scene(eye + depth * forward)


def shown_splat(scene: Scene, sampling: Sampling | None = None) -> ShownSplat:
    """Returns a scene's Gaussians: a splat's own, or those that a field is exported as.

    Args:
        scene: The scene.
        sampling: How a field's surface is sampled; None as instances are found in it.

    Raises:
        F3rmError: If it has no features, or no surface.
    """
    scene.head()  # without one it says how to get features
    source = scene.source
    if isinstance(source, SplatSource):
        return ShownSplat(source.gaussians, source.source, source.hidden, source.reliability)
    sampling = sampling or Sampling(frame="nerfstudio")
    points, gaussians = surface_splat(scene, sampling)
    return ShownSplat(gaussians, scene.frames.get(sampling.frame), points.hidden, {})
