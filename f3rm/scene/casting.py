"""Casts rays of training views to the surfaces of a field: evenly, or where something answers."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from f3rm.camera_render import CameraOutputs, RenderRequest
from f3rm.errors import F3rmError
from f3rm.model import FeatureFieldModel
from f3rm.scene.surface import Sightings, Surface, SurfacePoints
from f3rm.store.progress import track

NUM_RAYS = 1 << 17
"""Rays that give the surface points: six seconds of a CPU's core."""
CLOSER_RAYS = 1 << 11
"""Rays of a question that look closer at what matches: a tenth of a second."""

HIDDEN_ONLY = RenderRequest(pca=False, similarity=False, hidden=True)

LEAST_ACCUMULATION = 0.5
"""A ray with less accumulation than this meets no surface."""

DEPTH_AGREEMENT = 0.1
"""Largest difference of a surface's median and expected depth, relative to the median."""

NO_HEADS = (
    "This run has no feature heads: its checkpoint was made without a feature cache. Run f3rm "
    "extract, then train again."
)

_PIXEL_AREA = 1e-6
"""Nerfacto only asks for it to be positive."""


@torch.no_grad()
def sample_surface(
    model: FeatureFieldModel,
    cameras: Cameras,
    num_rays: int,
    *,
    seed: int,
    show_progress: bool = False,
) -> Sightings:
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

    Raises:
        F3rmError: If the field has no finite value.
    """
    drawn = list(_drawn_pixels(cameras, num_rays, seed))
    seen = _no_sightings(model, cameras)
    parts = [seen]
    for index, pixels in track(drawn, total=len(drawn), label="surfaces", show=show_progress):
        camera = cameras[index : index + 1].to(model.device)
        # One column of pixels: Nerfstudio renders pictures, in chunks of rays.
        bundle = camera.generate_rays(camera_indices=0, coords=pixels[:, None].to(model.device))
        parts.append(_hits(model, bundle, torch.full((len(pixels),), index), seen.eyes))
    columns = zip(*(vars(part.points).values() for part in parts), strict=True)
    points = SurfacePoints(*(torch.cat(column) for column in columns))
    return Sightings(points, torch.cat([part.views for part in parts]), seen.eyes)


def _no_sightings(model: FeatureFieldModel, cameras: Cameras) -> Sightings:
    eyes = cameras.camera_to_worlds[..., 3].reshape(-1, 3).float().cpu()
    none, number = torch.zeros(0, 3), torch.zeros(0, dtype=torch.long)
    hidden = torch.zeros(0, model.feature_field.hidden_dim)
    return Sightings(SurfacePoints(none, none, hidden, number), number, eyes)


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


@torch.no_grad()
def look_closer(
    model: FeatureFieldModel,
    surface: Surface,
    kept: Int[np.ndarray, " _"],
    pieces: Sequence[Int[np.ndarray, " _"]],
    *,
    num_rays: int = CLOSER_RAYS,
) -> Surface:
    """Samples the surface densely around some of its points, in the views that see them.

    Args:
        model: The trained model.
        surface: The surface as it is known.
        kept: The indices of the points to keep.
        pieces: The indices of each piece's points; all pieces get the same number of rays.
        num_rays: Number of rays.

    Returns:
        The kept points and what is around them and the pieces.
    """
    rng = np.random.default_rng(len(pieces))
    positions, eyes = surface.points.positions.double().numpy(), surface.sightings.eyes
    chosen: list[np.ndarray] = []
    towards: list[np.ndarray] = []
    for piece in pieces:
        count = num_rays // len(pieces)
        seeing = rng.choice(surface.views_of(piece), count)  # views near by have more sightings
        targets = rng.choice(piece, count)
        offsets = rng.normal(size=(count, 3)) * surface.reach[targets, None] / 2
        chosen.append(seeing)
        towards.append(positions[targets] + offsets - eyes[torch.from_numpy(seeing)].numpy())
    views = torch.from_numpy(np.concatenate(chosen))
    ahead = torch.nn.functional.normalize(torch.from_numpy(np.concatenate(towards)).float(), dim=-1)
    ones = torch.ones(len(views), 1, 1)
    bundle = RayBundle(
        origins=eyes[views][:, None],
        directions=ahead[:, None],
        pixel_area=_PIXEL_AREA * ones,
        camera_indices=views[:, None, None],
        metadata={"directions_norm": ones},
    )
    seen = _hits(model, bundle.to(model.device), views, eyes)
    return Surface(surface.around(kept).joined(seen), surface.spacing)


def _hits(
    model: FeatureFieldModel,
    bundle: RayBundle,
    views: Int[Tensor, " rays"],
    eyes: Float[Tensor, "views 3"],
) -> Sightings:
    """Returns what each ray of a bundle of shape (rays, 1) sees, if it meets a surface."""
    outputs = model.get_outputs_for_camera_ray_bundle(bundle, request=HIDDEN_ONLY)
    positions = bundle.origins + bundle.directions * outputs["depth"]  # (rays, 1, 3)
    median, expected = outputs["depth"][:, 0, 0], outputs["expected_depth"][:, 0, 0]
    seen = outputs["accumulation"][:, 0, 0]
    rows = torch.cat((positions, outputs["rgb"], hidden_of(outputs)), dim=-1)[:, 0]
    is_finite = torch.isfinite(torch.cat((rows, seen[:, None], expected[:, None]), dim=1)).all(1)
    if not is_finite.any():
        msg = (
            "The field has no finite values: its training diverged, or its checkpoint is damaged. "
            "Train again."
        )
        raise F3rmError(msg)
    hit = is_finite & (seen >= LEAST_ACCUMULATION)
    hit &= (median - expected).abs() <= DEPTH_AGREEMENT * median
    rows, views = rows[hit].float().cpu(), views[hit.cpu()]
    ones = torch.ones(len(rows), dtype=torch.long)
    return Sightings(SurfacePoints(rows[:, :3], rows[:, 3:6], rows[:, 6:], ones), views, eyes)


def hidden_of(outputs: CameraOutputs) -> Float[Tensor, "height width hidden"]:
    """Returns the hidden vectors of a render that requested them.

    Raises:
        F3rmError: If the model has no heads.
    """
    if outputs.hidden is None:
        raise F3rmError(NO_HEADS)
    return outputs.hidden
