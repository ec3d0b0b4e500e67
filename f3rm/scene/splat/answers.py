"""A splat with features as a scene's source: Gaussians are the surface."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import NoReturn

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from scipy.spatial import KDTree
from torch import Tensor

from f3rm.camera_render import CameraOutputs
from f3rm.errors import F3rmError
from f3rm.feature_field import FeatureHead
from f3rm.scene.casting import LEAST_ACCUMULATION, hidden_of
from f3rm.scene.finding.find import LookCloser
from f3rm.scene.frames import Frame, Frames
from f3rm.scene.source import values_at
from f3rm.scene.splat.cameras import pinhole_of
from f3rm.scene.splat.seeing import draw_views
from f3rm.scene.surface import Sightings, SurfacePoints
from f3rm.splats.feature_file import HeadFeatures
from f3rm.splats.gaussians import SH_0, Gaussians, scaled_axes
from f3rm.splats.lifting import HIDDEN
from f3rm.splats.projection import PinholeCamera
from f3rm.splats.rasterizer import ImplementationChoice, Rasterizer
from f3rm.splats.views import sample_map

_NEIGHBOURS = 32
"""Gaussians, nearest centres first, that a point's hidden vector is made of."""
_REACH = 3.0
"""A point is in a Gaussian up to so many standard deviations from its centre."""
_LEAST_SCALE = 0.005
"""Least standard deviation for that, in the scene frame: points lie beside flat Gaussians."""
_DRAWN_REACH = 1.5
"""Surface points are drawn up to so many standard deviations from a Gaussian's centre."""
_LEAST_OPACITY = 0.1
_LEAST_WEIGHT = 0.5
"""A Gaussian that all photographs show in less than half a pixel is no surface."""
_NEAR_POINTS, _MOST_POINTS, _MEMBER_REACH = 4, 0.9, 0.8
"""A Gaussian belongs to points if one is within 0.8 of the distance that nine of ten points have to
their fourth neighbour: of the true masks of tabletops and rooms this gives the most."""
_BATCH = 1 << 14


class SplatSource:
    """A splat with lifted features as :class:`f3rm.scene.source.Source`.

    Args:
        gaussians: The Gaussians, in the source frame.
        heads: Their features by head.
        frames: The frames of the dataset.
        source: The Gaussians' frame.
        cameras: The training cameras, in the scene frame.
        implementation: What draws them.
    """

    without_heads = (
        "This splat has no features yet. Run f3rm attach SPLAT --data DATA --feature-type CLIP."
    )
    look_closer: LookCloser | None = None  # all Gaussians are known

    def __init__(
        self,
        gaussians: Gaussians,
        heads: Mapping[str, HeadFeatures],
        *,
        frames: Frames,
        source: Frame,
        cameras: Cameras,
        implementation: ImplementationChoice = "auto",
    ) -> None:
        self._cameras = cameras.to("cpu").reshape((-1,))
        self.gaussians, self.frames, self.source = gaussians, frames, source
        self.device = gaussians.means.device
        self._implementation: ImplementationChoice = implementation
        self.hidden_dim = HIDDEN * len(heads)
        each = [head.coefficients.float() for head in heads.values()]
        empty = torch.zeros(len(gaussians), 0)
        self.hidden = torch.cat((empty, *each), dim=1).to(self.device)
        self.heads = {
            name: _head_of(features, number, len(heads)).to(self.device)
            for number, (name, features) in enumerate(heads.items())
        }
        self.reliability = {name: head.reliability.float() for name, head in heads.items()}
        seen = torch.ones(len(gaussians), dtype=torch.bool)
        weights = torch.ones(len(gaussians))
        for head in heads.values():
            seen &= head.weights >= _LEAST_WEIGHT
            weights = head.weights
        self._weights = torch.where(seen, weights, 0.0)

    @cached_property
    def _surface(self) -> Int[Tensor, " surface"]:
        """Numbers of the Gaussians that photographs show."""
        opaque = self.gaussians.opacities.cpu() >= _LEAST_OPACITY
        return ((self._weights > 0) & opaque).nonzero()[:, 0]

    @cached_property
    def _tree(self) -> KDTree:
        return KDTree(self.gaussians.means[self._surface.to(self.device)].cpu().numpy())

    def values_at(
        self,
        positions: Float[Tensor, "points 3"],
        seen: Bool[Tensor, " points"],
        made: Callable[[Tensor], Tensor],
        channels: int | None,
        *,
        outside: float = 0.0,
    ) -> Float[Tensor, "points ..."]:
        """Returns values at positions: of the Gaussians around them, and ``outside`` of any."""
        inside = torch.zeros_like(seen)
        for rows in seen.nonzero()[:, 0].split(_BATCH) if bool(seen.any()) else ():
            inside[rows] = self._around(positions[rows])[1].amax(dim=1) > 0
        return values_at(self._hidden_at, positions, inside, made, channels, outside=outside)

    def _hidden_at(
        self, positions: Float[Tensor, "points 3"]
    ) -> Iterator[Float[Tensor, "batch hidden"]]:
        """Yields means of the hidden vectors around positions, in batches."""
        for batch in positions.split(_BATCH) if len(positions) else ():
            ids, weights = self._around(batch)
            mixed = (self.hidden[ids] * weights[..., None]).sum(dim=1)
            yield mixed / weights.sum(dim=1, keepdim=True)

    def _around(
        self, positions: Float[Tensor, "points 3"]
    ) -> tuple[Int[Tensor, "points near"], Float[Tensor, "points near"]]:
        """Returns Gaussians near positions, and their opacities there; 0 out of their reach."""
        count = min(_NEIGHBOURS, len(self._surface))
        if not count:
            return torch.zeros(len(positions), 1).long(), torch.zeros(len(positions), 1)
        own = self.source.from_scene(positions.double()).float()
        near = self._tree.query(own.numpy(), k=count)[1].reshape(len(own), count)
        ids = self._surface[torch.from_numpy(near)].to(self.device)
        these = self.gaussians
        ones = torch.ones_like(these.scales)
        rotations = scaled_axes(these.quats[ids.reshape(-1)], ones[ids.reshape(-1)])
        offsets = own.to(self.device)[:, None] - these.means[ids]  # (points, near, 3)
        turned = (offsets[..., None, :] @ rotations.view(*ids.shape, 3, 3))[..., 0, :]
        least = _LEAST_SCALE / self.source.scene_per_unit
        squares = (turned / these.scales[ids].clamp_min(least)).square().sum(dim=-1)
        weights = these.opacities[ids] * torch.exp(-0.5 * squares)
        return ids, torch.where(squares <= _REACH**2, weights, 0.0)

    def density_at(self, positions: Tensor, seen: Tensor) -> NoReturn:
        """Raises an error: a Gaussian is opaque by the pixel, not by the length of a ray.

        Raises:
            F3rmError: Always.
        """
        del positions, seen
        raise F3rmError(
            "A splat has no density. Ask where its surfaces are: surface_points, or contains."
        )

    def sample_surface(self, num_rays: int, *, seed: int, show_progress: bool = False) -> Sightings:
        """Draws points in Gaussians, each as often as pixels of the photographs show it.

        Those that no photograph sees are left out.
        """
        del show_progress  # it takes no time
        if not self.heads:
            raise F3rmError(self.without_heads)
        random = np.random.default_rng([seed, 3])
        weights = self._weights[self._surface].double().numpy()
        drawn = np.zeros(0, np.int64)
        if len(weights):
            counts = random.multinomial(num_rays, weights / weights.sum())
            drawn = np.repeat(self._surface.numpy(), counts)
        ids = torch.from_numpy(drawn).to(self.device)
        offsets = torch.from_numpy(random.standard_normal((len(drawn), 3))).float()
        lengths = offsets.norm(dim=1, keepdim=True).clamp_min(_DRAWN_REACH)
        offsets = (offsets * _DRAWN_REACH / lengths).to(self.device)  # none farther than that
        axes = scaled_axes(self.gaussians.quats[ids], self.gaussians.scales[ids])
        own = self.gaussians.means[ids] + (axes @ offsets[..., None])[..., 0]
        colours = (0.5 + SH_0 * self.gaussians.sh[ids, 0]).clamp(0, 1)
        points = SurfacePoints(
            self.source.to_scene(own.cpu()),
            colours.cpu(),
            self.hidden[ids].cpu(),
            torch.ones(len(drawn), dtype=torch.long),
        )
        hiding = self.gaussians.subset(self._surface.to(self.device))
        cameras = [
            pinhole_of(self._cameras[index : index + 1], self.source)
            for index in range(len(self._cameras))
        ]
        sizes = self.gaussians.scales[ids].amax(dim=1)
        views = draw_views(hiding, cameras, own, sizes, random)
        eyes = self._cameras.camera_to_worlds[..., 3].float()
        return Sightings(points, views, eyes).subset(views >= 0)

    @torch.no_grad()
    def bands(self, camera: Cameras) -> Iterator[tuple[RayBundle, CameraOutputs]]:
        """Renders a camera as one band."""
        yield self._rendered(camera, self.hidden)

    @torch.no_grad()
    def at_pixels(
        self, camera: Cameras, coords: Float[Tensor, "pixels 2"], *, hidden: bool = True
    ) -> CameraOutputs:
        """Renders a camera, and takes some of its pixels."""
        _, whole = self._rendered(camera, self.hidden if hidden else self.hidden[:, :0])
        y, x = coords.long().unbind(1)
        outputs = CameraOutputs({name: values[y, x][:, None] for name, values in whole.items()})
        outputs.hidden = None if whole.hidden is None else whole.hidden[y, x][:, None]
        return outputs

    @torch.no_grad()
    def mask(
        self, camera: Cameras, points: Float[Tensor, "points 3"], spacing: float
    ) -> Bool[Tensor, "height width"]:
        """Takes the pixels that are composited mostly of Gaussians at the points."""
        tree, means = (
            KDTree(points.numpy()),
            self.source.to_scene(self.gaussians.means.cpu().double()),
        )
        # Where few photographs' pixels fall, points are farther apart than their spacing.
        apart = tree.query(points.numpy(), k=min(_NEAR_POINTS, len(points) - 1) + 1)[0]
        widest = np.quantile(apart.reshape(len(points), -1)[:, -1], _MOST_POINTS)
        reach = max(spacing, _MEMBER_REACH * float(widest))
        distances = tree.query(means.numpy(), distance_upper_bound=reach)[0]
        members = torch.from_numpy(np.isfinite(distances))[:, None].to(self.gaussians.means)
        outputs = self._rendered(camera, members)[1]
        share, accumulation = hidden_of(outputs).cpu(), outputs["accumulation"]
        return ((2 * share >= accumulation) & (accumulation >= LEAST_ACCUMULATION))[..., 0]

    def _rendered(
        self, camera: Cameras, hidden: Float[Tensor, "gaussians hidden"]
    ) -> tuple[RayBundle, CameraOutputs]:
        bundle = camera.to("cpu").generate_rays(camera_indices=0, keep_shape=True)
        view = pinhole_of(camera, self.source)
        picture, accumulation = self._drawn(view, hidden)
        pose = camera.camera_to_worlds[0].cpu()
        local = bundle.directions @ pose[:, :3] * torch.tensor([1.0, -1.0, -1.0])
        if camera.distortion_params is not None and bool(camera.distortion_params.any()):
            at = local[..., :2] / local[..., 2:] * torch.tensor(view.focal)
            at = at + torch.tensor(view.centre) - 0.5
            picture = sample_map(torch.cat((picture, accumulation), dim=-1), at)
            picture, accumulation = picture[..., :-1], picture[..., -1:]
        # gsplat's depth is along the optical axis, a ray's along itself.
        deep = picture[..., 3:4] / accumulation.clamp_min(1e-6)
        depth = deep * self.source.scene_per_unit / local[..., 2:].clamp_min(1e-6)
        outputs = CameraOutputs(
            rgb=picture[..., :3].clamp(0, 1),
            depth=depth,
            expected_depth=depth,
            accumulation=accumulation,
        )
        outputs.hidden = picture[..., 4:].to(self.device)
        return bundle, outputs

    def _drawn(
        self, view: PinholeCamera, hidden: Float[Tensor, "gaussians hidden"]
    ) -> tuple[Float[Tensor, "height width drawn"], Float[Tensor, "height width 1"]]:
        """Returns composited RGB, depth and hidden vectors, and the accumulation, on the CPU."""
        these = self.gaussians
        drawing = Rasterizer(these, view, implementation=self._implementation)
        depths = these.means @ view.camera_from_source[2, :3].to(these.means)
        depths = depths + view.camera_from_source[2, 3].to(depths)
        values = torch.cat((these.colours(view.eye), depths[:, None], hidden), dim=1)
        return drawing.composite(values).cpu(), drawing.accumulation[..., None].cpu()


def _head_of(features: HeadFeatures, number: int, count: int) -> FeatureHead:
    """Returns the head whose hidden vectors are in their own channels beside those of others."""
    head = FeatureHead(features.spec, HIDDEN, trunk=number, num_trunks=count)
    head.linear.weight.data.copy_(features.weight)
    for name in ("mean", "components", "low", "high"):
        getattr(head, f"pca_{name}").copy_(getattr(features.pca, name))
    return head.requires_grad_(requires_grad=False)
