"""A source at points, and the part of space that the training cameras see."""

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor, nn
from torch.nn import functional

from f3rm.errors import F3rmError
from f3rm.feature_field import FeatureHead
from f3rm.model import FeatureFieldModel
from f3rm.scene.frames import FrameName
from f3rm.scene.source import ModelSource, Source

Points = Tensor | np.ndarray | Sequence[Sequence[float]]

_CONE_SLACK = 1e-4
"""Rounding of a float32 cosine: a corner pixel's own ray must count as seen."""


def check_points(positions: Tensor) -> Tensor:
    """Returns positions in single or double precision.

    Args:
        positions: The caller's points.

    Raises:
        F3rmError: If they are not finite rows of three numbers.
    """
    if positions.ndim != 2 or positions.shape[1] != 3 or positions.is_complex():
        msg = (
            f"points must be of shape (points, 3), got {tuple(positions.shape)}. Give one "
            "row x, y, z per point."
        )
        raise F3rmError(msg)
    bad = ~torch.isfinite(positions).all(dim=1)
    if bool(bad.any()):
        row = int(bad.nonzero()[0, 0])
        msg = (
            f"points must be finite, got {positions[row].tolist()} in row {row} "
            f"({int(bad.sum())} such rows of {len(positions)}). Leave them out."
        )
        raise F3rmError(msg)
    # Double precision stays until the points are mapped to the scene frame.
    return positions if positions.dtype == torch.float64 else positions.float()


class SeenSpace:
    """The space that training cameras see: the union of the cones around their pictures.

    A cone contains its picture's corners, so it is a little wider than the picture; the test is the
    same for every lens.

    Args:
        cameras: The training cameras, in the scene frame.
    """

    def __init__(self, cameras: Cameras) -> None:
        cameras = cameras.to("cpu").reshape((-1,))
        poses = cameras.camera_to_worlds
        self._eyes = poses[:, :, 3]
        self._forward = functional.normalize(-poses[:, :, 2], dim=-1)  # OpenGL: z is backwards
        sizes = torch.cat((cameras.height, cameras.width), dim=-1).float()
        ends = torch.tensor([(y, x) for y in (0.0, 0.5, 1.0) for x in (0.0, 0.5, 1.0)])
        coords = sizes[:, None] * ends  # (cameras, 9, 2): corners, middles of edges, middle
        indices = torch.arange(len(sizes))[:, None, None].expand(-1, len(ends), 1)
        bundle = cameras.generate_rays(camera_indices=indices, coords=coords)
        cosines = (bundle.directions * self._forward[:, None]).sum(-1)
        self._least_cosine = cosines.amin(dim=1) - _CONE_SLACK

    def contains(self, positions: Float[Tensor, "points 3"]) -> Bool[Tensor, " points"]:
        """Tells which positions of the scene frame a training camera sees."""
        positions = positions.detach().cpu().float()
        seen = torch.zeros(len(positions), dtype=torch.bool)
        # Camera by camera: all pairs at once would need cameras x points x 3 numbers, and most
        # points are seen by one of the first.
        for eye, forward, least in zip(self._eyes, self._forward, self._least_cosine, strict=True):
            unseen = (~seen).nonzero()[:, 0]
            if not len(unseen):
                break
            towards = functional.normalize(positions[unseen] - eye, dim=-1)
            seen[unseen] = towards @ forward >= least
        return seen


class FieldAtPoints:
    """A source, read at positions of any frame; the part of a scene that needs no surface.

    Args:
        source: What is asked.
        cameras: The training cameras, in the scene frame.
    """

    def __init__(self, source: Source, cameras: Cameras) -> None:
        self.source, self.frames = source, source.frames
        self._cameras = cameras

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the feature heads."""
        return tuple(self.source.heads)

    @property
    def model(self) -> FeatureFieldModel:
        """The trained model.

        Raises:
            F3rmError: For a splat, which has none.
        """
        if not isinstance(self.source, ModelSource):
            raise F3rmError("A splat has no trained model. Ask the scene's methods instead.")
        return self.source.model

    def contains(self, points: Points, *, frame: FrameName = "dataset") -> Bool[Tensor, " points"]:
        """Returns which points are in the view of a training camera.

        Raises:
            F3rmError: If the points are not finite, or the frame is not known.
        """
        return self._seen_space.contains(self._positions(points, frame))

    @cached_property
    def _seen_space(self) -> SeenSpace:
        return SeenSpace(self._cameras)

    def _positions(self, points: Points, frame: FrameName) -> Float[Tensor, "points 3"]:
        try:
            positions = check_points(torch.as_tensor(points).detach().cpu())
        except (TypeError, ValueError, RuntimeError) as error:
            raise F3rmError(f"points must be numbers of shape (points, 3): {error}") from error
        return self.frames.get(frame).to_scene(positions).float()

    def hidden(
        self, points: Points, *, frame: FrameName = "dataset"
    ) -> Float[Tensor, "points hidden"]:
        """Returns hidden vectors at points; a head's features are linear in them.

        Args:
            points: Positions, shape (points, 3).
            frame: Their frame.

        Raises:
            F3rmError: If the points are not finite, or the frame is not known.
        """
        positions = self._positions(points, frame)
        return self._at(positions, nn.Identity(), self.source.hidden_dim)

    def features(
        self, points: Points, head: str | None = None, *, frame: FrameName = "dataset"
    ) -> Float[Tensor, "points channels"]:
        """Returns features at points.

        Args:
            points: Positions, shape (points, 3).
            head: The feature head; None for the first.
            frame: Their frame.

        Raises:
            F3rmError: If the points are not finite, or head or frame are not known.
        """
        module = self.head(head)
        return self._at(self._positions(points, frame), module, module.spec.channels)

    def head(self, name: str | None = None) -> FeatureHead:
        """Returns a feature head; None for the first.

        Raises:
            F3rmError: If there is none, or none of that name.
        """
        if not self.heads:
            raise F3rmError(self.source.without_heads)
        if (chosen := name or self.heads[0]) not in self.heads:
            raise F3rmError(f"The scene has the heads {list(self.heads)}, got {name!r}.")
        return self.source.heads[chosen]

    def _at(
        self,
        positions: Float[Tensor, "points 3"],
        made: Callable[[Tensor], Tensor],
        channels: int | None,
        *,
        outside: float = 0.0,
    ) -> Tensor:
        seen = self._seen_space.contains(positions)
        return self.source.values_at(positions, seen, made, channels, outside=outside)

    def density(self, points: Points, *, frame: FrameName = "dataset") -> Float[Tensor, " points"]:
        """Returns the volume density at points, per unit of length of their frame.

        Args:
            points: Positions, shape (points, 3).
            frame: Their frame.

        Raises:
            F3rmError: If points or frame cannot be used, or for a splat, which has no density.
        """
        positions = self._positions(points, frame)
        seen = self._seen_space.contains(positions)
        return self.source.density_at(positions, seen) * self.frames.get(frame).scene_per_unit
