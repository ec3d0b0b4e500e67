"""Points on the surfaces that a field's training views see, with colours and hidden vectors."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from f3rm.camera_render import CameraOutputs, RenderRequest
from f3rm.errors import F3rmError
from f3rm.model import FeatureFieldModel
from f3rm.store.progress import track

HIDDEN_ONLY = RenderRequest(pca=False, similarity=False, hidden=True)

LEAST_ACCUMULATION = 0.5
"""A ray with less accumulation than this meets no surface."""

DEPTH_AGREEMENT = 0.1
"""Largest difference of a surface's median and expected depth, relative to the median."""


@dataclass(frozen=True)
class SurfacePoints:
    """Points on surfaces.

    Attributes:
        positions: Positions, in the frame that was asked for.
        colours: RGB in [0, 1].
        hidden: Hidden vectors composited along the ray that hit the point; a head of the model maps
            them to its features: ``head(hidden)``.
        counts: Number of rays that hit each point.
    """

    positions: Float[Tensor, "points 3"]
    colours: Float[Tensor, "points 3"]
    hidden: Float[Tensor, "points hidden"]
    counts: Int[Tensor, " points"]

    def __len__(self) -> int:
        return len(self.positions)

    def subset(self, kept: Bool[Tensor, " points"]) -> "SurfacePoints":
        """Returns the points where ``kept`` is true."""
        columns = (self.positions, self.colours, self.hidden, self.counts)
        return SurfacePoints(*(column[kept] for column in columns))


@torch.no_grad()
def sample_surface(
    model: FeatureFieldModel,
    cameras: Cameras,
    num_rays: int,
    *,
    seed: int,
    show_progress: bool = False,
) -> SurfacePoints:
    """Renders random pixels of cameras, evenly over all pixels, and keeps those that hit a surface.

    Rays over an object's edge, whose median and expected depth differ by more than a tenth, are
    left out: they would give points that float in front of the background.

    Args:
        model: The trained model.
        cameras: The cameras, in the scene frame.
        num_rays: Number of pixels.
        seed: Seed of the draw.
        show_progress: Whether a bar counts cameras.

    Returns:
        At most ``num_rays`` points in the scene frame, on the CPU.
    """
    drawn = list(_drawn_pixels(cameras, num_rays, seed))
    rows = [torch.zeros(0, 6 + model.feature_field.hidden_dim)]  # also where no ray hits
    for index, pixels in track(drawn, total=len(drawn), label="surfaces", show=show_progress):
        rows.append(_hits(model, cameras[index : index + 1], pixels))
    points = torch.cat(rows)
    counts = torch.ones(len(points), dtype=torch.long)
    return SurfacePoints(points[:, :3], points[:, 3:6], points[:, 6:], counts)


def _drawn_pixels(
    cameras: Cameras, num_rays: int, seed: int
) -> Iterator[tuple[int, Float[Tensor, "pixels 2"]]]:
    """Yields random pixel centres (y, x) of each camera."""
    rng = np.random.default_rng([seed, 3])
    sizes = torch.cat((cameras.height, cameras.width), dim=-1).reshape(-1, 2).cpu().numpy()
    shares = sizes.prod(axis=1) / sizes.prod(axis=1).sum()
    for index, count in enumerate(rng.multinomial(num_rays, shares)):
        if count:
            pixels = (rng.random((count, 2)) * sizes[index]).astype(np.int64)
            yield index, torch.from_numpy(pixels).float() + 0.5


def _hits(
    model: FeatureFieldModel, camera: Cameras, pixels: Float[Tensor, "pixels 2"]
) -> Float[Tensor, "points _"]:
    """Returns position, colour and hidden vector of each pixel that shows a surface."""
    camera = camera.to(model.device)
    # One column of pixels: Nerfstudio renders pictures, in chunks of rays.
    bundle = camera.generate_rays(camera_indices=0, coords=pixels[:, None].to(model.device))
    outputs = model.get_outputs_for_camera_ray_bundle(bundle, request=HIDDEN_ONLY)
    positions = bundle.origins + bundle.directions * outputs["depth"]  # (pixels, 1, 3)
    median, expected = outputs["depth"][:, 0, 0], outputs["expected_depth"][:, 0, 0]
    hit = outputs["accumulation"][:, 0, 0] >= LEAST_ACCUMULATION
    hit &= (median - expected).abs() <= DEPTH_AGREEMENT * median
    points = torch.cat((positions, outputs["rgb"], hidden_of(outputs)), dim=-1)[:, 0]
    return points[hit].float().cpu()


def hidden_of(outputs: CameraOutputs) -> Float[Tensor, "height width hidden"]:
    """Returns the hidden vectors of a render that requested them.

    Raises:
        F3rmError: If the model has no heads.
    """
    if outputs.hidden is None:
        msg = (
            "This run has no feature heads: its checkpoint was made without a feature cache. Run "
            "f3rm extract, then train again."
        )
        raise F3rmError(msg)
    return outputs.hidden


def thinned(points: SurfacePoints, spacing: float) -> SurfacePoints:
    """Averages the points of each cell of a grid, so that surfaces are sampled evenly.

    Args:
        points: The points.
        spacing: Edge of a cell, in units of the points' frame, > 0.
    """
    if not len(points):
        return points
    cells = torch.floor(points.positions.double() / spacing).long()
    _, cell = torch.unique(cells, dim=0, return_inverse=True)
    counts = torch.zeros(int(cell.max()) + 1, dtype=torch.long).index_add_(0, cell, points.counts)
    weights = points.counts.double()

    def mean(values: Float[Tensor, "points channels"]) -> Tensor:
        total = torch.zeros(len(counts), values.shape[1], dtype=torch.float64)
        total.index_add_(0, cell, values.double() * weights[:, None])
        return (total / counts[:, None]).to(values)

    return SurfacePoints(mean(points.positions), mean(points.colours), mean(points.hidden), counts)
