"""What a scene is asked through: a trained field, or a splat with features; one contract."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from f3rm.camera_render import RGB_ONLY, CameraOutputs
from f3rm.feature_field import FeatureHead
from f3rm.model import FeatureFieldModel
from f3rm.scene.casting import HIDDEN_ONLY, NO_HEADS, look_closer, sample_surface
from f3rm.scene.finding.find import LookCloser
from f3rm.scene.frames import Frames
from f3rm.scene.images import render_bands, render_mask
from f3rm.scene.run_loading import LoadedRun, field_model
from f3rm.scene.surface import Sightings

_BATCH = 1 << 15
_MASK_REACH = 1.5
"""A pixel shows what points are on if its surface is within so many spacings of one of them."""


@runtime_checkable
class Source(Protocol):
    """Hidden vectors at points, on surfaces and in pictures, all in the scene frame.

    Attributes:
        frames: The frames of its dataset.
        hidden_dim: Channels of a hidden vector: those of all heads.
        device: Device of the hidden vectors, before they are made into values.
        without_heads: The message where there is no head.
        look_closer: Samples the surface densely where something matches; None where it is known as
            densely as it can be.
    """

    frames: Frames
    hidden_dim: int
    device: torch.device
    without_heads: str
    look_closer: LookCloser | None

    @property
    def heads(self) -> Mapping[str, FeatureHead]:
        """The feature heads by name, in order."""
        ...

    def values_at(
        self,
        positions: Float[Tensor, "points 3"],
        seen: Bool[Tensor, " points"],
        made: Callable[[Tensor], Tensor],
        channels: int | None,
        *,
        outside: float = 0.0,
    ) -> Float[Tensor, "points ..."]:
        """Returns values made from the hidden vectors at positions, on the CPU.

        Args:
            positions: The positions.
            seen: Which of them a training camera sees.
            made: From hidden vectors (batch, hidden) to values.
            channels: Values per point; None for one, without an axis for it.
            outside: The value where no training camera looks, or nothing is.
        """
        ...

    def density_at(
        self, positions: Float[Tensor, "points 3"], seen: Bool[Tensor, " points"]
    ) -> Float[Tensor, " points"]:
        """Returns the density per unit of length of the scene frame, on the CPU."""
        ...

    def sample_surface(self, num_rays: int, *, seed: int, show_progress: bool = False) -> Sightings:
        """Returns at most ``num_rays`` points on surfaces: most where most pixels see them."""
        ...

    def bands(self, camera: Cameras) -> Iterator[tuple[RayBundle, CameraOutputs]]:
        """Renders a camera of shape (1,) from top to bottom, some rows at a time.

        Yields:
            The rays of some rows; and ``rgb``, ``depth`` and ``expected_depth`` (along the ray) and
            ``accumulation``, with composited hidden vectors.
        """
        ...

    def at_pixels(
        self, camera: Cameras, coords: Float[Tensor, "pixels 2"], *, hidden: bool = True
    ) -> CameraOutputs:
        """Renders some pixels of a camera of shape (1,), as a picture of one column.

        Args:
            camera: The camera.
            coords: The pixels (y, x); the centre of the first is at (0.5, 0.5).
            hidden: Whether with hidden vectors.
        """
        ...

    def mask(
        self, camera: Cameras, points: Float[Tensor, "points 3"], spacing: float
    ) -> Bool[Tensor, "height width"]:
        """Returns the pixels of a camera of shape (1,) that show what some points are on.

        Args:
            camera: The camera.
            points: The points, in double precision.
            spacing: How far they are apart.
        """
        ...


class ModelSource:
    """A trained field as :class:`Source`.

    Args:
        model: The model.
        frames: The frames of its dataset.
        cameras: The training cameras, in the scene frame.
    """

    without_heads = NO_HEADS

    def __init__(self, model: FeatureFieldModel, frames: Frames, cameras: Cameras) -> None:
        self.model, self.frames = model, frames
        self.heads: Mapping[str, FeatureHead] = model.heads
        self.hidden_dim = model.feature_field.hidden_dim
        self.device = model.device
        self.values_at = partial(values_at, partial(hidden_at, model))
        self.density_at = partial(density_at, model)
        self.sample_surface = partial(sample_surface, model, cameras)
        self.look_closer: LookCloser | None = partial(look_closer, model)
        self.bands = partial(render_bands, model)

    def mask(
        self, camera: Cameras, points: Float[Tensor, "points 3"], spacing: float
    ) -> Bool[Tensor, "height width"]:
        """Takes the pixels whose surface is near a point."""
        return render_mask(self.bands(camera), points, _MASK_REACH * spacing)

    def at_pixels(
        self, camera: Cameras, coords: Float[Tensor, "pixels 2"], *, hidden: bool = True
    ) -> CameraOutputs:
        """Casts the rays of some pixels only."""
        # One column of pixels: Nerfstudio renders pictures, in chunks of rays.
        bundle = camera.to(self.device).generate_rays(
            camera_indices=0, coords=coords[:, None].to(self.device)
        )
        request = HIDDEN_ONLY if hidden else RGB_ONLY
        return self.model.get_outputs_for_camera_ray_bundle(bundle, request=request)


class FieldSource(ModelSource):
    """The trained field of a run.

    Raises:
        RunError: If the run has none.
    """

    def __init__(self, run: LoadedRun) -> None:
        frames = Frames.of_dataset(run.manager.train_dataparser_outputs, run.data)
        super().__init__(field_model(run), frames, run.train.cameras)


@torch.no_grad()
def hidden_at(
    model: FeatureFieldModel, positions: Float[Tensor, "points 3"]
) -> Iterator[Float[Tensor, "batch hidden"]]:
    """Yields hidden vectors of positions in the scene frame, in batches on the model's device."""
    for batch in positions.split(_BATCH) if len(positions) else ():  # split yields an empty batch
        yield model.feature_field.hidden(batch.to(model.device))


@torch.no_grad()
def values_at(
    hidden_at: Callable[[Tensor], Iterator[Tensor]],
    positions: Float[Tensor, "points 3"],
    seen: Bool[Tensor, " points"],
    made: Callable[[Tensor], Tensor],
    channels: int | None,
    *,
    outside: float = 0.0,
) -> Float[Tensor, "points ..."]:
    """Returns values made from the hidden vectors at positions, on the CPU.

    Args:
        hidden_at: Yields the hidden vectors of positions, in batches.
        positions: Positions in the scene frame.
        seen: Which of them a training camera sees; see :class:`SeenSpace`.
        made: From hidden vectors (batch, hidden) to values.
        channels: Values per point; None for one, without an axis for it.
        outside: The value where no training camera looks.
    """
    shape = (len(positions),) if channels is None else (len(positions), channels)
    values = torch.full(shape, outside)
    rows = seen.nonzero()[:, 0]
    start = 0
    for hidden in hidden_at(positions[rows]):
        stop = start + len(hidden)
        values[rows[start:stop]] = made(hidden).float().cpu()
        start = stop
    return values


@torch.no_grad()
def density_at(
    model: FeatureFieldModel, positions: Float[Tensor, "points 3"], seen: Bool[Tensor, " points"]
) -> Float[Tensor, " points"]:
    """Returns the density at positions in the scene frame, per unit of length there, on the CPU.

    It is zero where no training camera looks; see :class:`SeenSpace`.
    """
    density = torch.zeros(len(positions))
    for rows in seen.nonzero()[:, 0].split(_BATCH) if bool(seen.any()) else ():
        found = model.field.density_fn(positions[rows].to(model.device))
        density[rows] = found.detach()[:, 0].float().cpu()
    return density
