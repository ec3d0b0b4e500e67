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
from f3rm.scene.frames import Frames
from f3rm.scene.images import render_bands
from f3rm.scene.points import density_at, hidden_at, values_at
from f3rm.scene.run_loading import LoadedRun, field_model
from f3rm.scene.surface import SurfacePoints, sample_surface


@runtime_checkable
class Source(Protocol):
    """Hidden vectors at points, on surfaces and in pictures, all in the scene frame.

    Attributes:
        frames: The frames of its dataset.
        hidden_dim: Channels of a hidden vector: those of all heads.
        device: Device of the hidden vectors, before they are made into values.
        without_heads: The message where there is no head.
    """

    frames: Frames
    hidden_dim: int
    device: torch.device
    without_heads: str

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

    def sample_surface(
        self, num_rays: int, *, seed: int, show_progress: bool = False
    ) -> SurfacePoints:
        """Returns at most ``num_rays`` points on surfaces: most where most pixels see them."""
        ...

    def bands(self, camera: Cameras) -> Iterator[tuple[RayBundle, CameraOutputs]]:
        """Renders a camera of shape (1,) from top to bottom, some rows at a time.

        Yields:
            The rays of some rows; and ``rgb``, ``depth`` and ``expected_depth`` (along the ray) and
            ``accumulation``, with composited hidden vectors.
        """
        ...

    def plain_outputs(self, camera: Cameras) -> dict[str, Tensor]:
        """Renders a camera of shape (1,) as :meth:`bands` does, without hidden vectors."""
        ...


class FieldSource:
    """A trained field as :class:`Source`.

    Args:
        run: The run; its model must be a feature field.

    Raises:
        RunError: If it is not.
    """

    without_heads = (
        "This run has no feature heads: its checkpoint was made without a feature cache. "
        "Run f3rm extract, then train again."
    )

    def __init__(self, run: LoadedRun) -> None:
        self.model = model = field_model(run)
        self.frames = Frames.of_dataset(run.manager.train_dataparser_outputs, run.data)
        self.heads: Mapping[str, FeatureHead] = model.heads
        self.hidden_dim = model.feature_field.hidden_dim
        self.device = model.device
        self.values_at = partial(values_at, partial(hidden_at, model))
        self.density_at = partial(density_at, model)
        self.sample_surface = partial(sample_surface, model, run.train.cameras)
        self.bands = partial(render_bands, model)

    def plain_outputs(self, camera: Cameras) -> dict[str, Tensor]:
        """Renders a camera without hidden vectors."""
        return self.model.get_outputs_for_camera(camera.to(self.device), request=RGB_ONLY)
