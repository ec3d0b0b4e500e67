"""The field at points, and the part of space that the training cameras see."""

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor
from torch.nn import functional

from f3rm.errors import F3rmError
from f3rm.model import FeatureFieldModel

_BATCH = 1 << 15
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
