"""Compares features of field and teacher at surface points that several photographs see.

Surface points come from the truth's depth at pixels of held-out views. The mean of the teacher's
features in the *training* photographs that see a point is the best that a view-independent field
can reach with perfect geometry. The field is rendered at exactly the same pixels.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from f3rm.scene.casting import hidden_of
from f3rm.scene.frames import FileCamera
from f3rm.scene.source import Source
from f3rm.store.reader import FeatureStore
from f3rm.synthetic.truth import ViewTruth

DEPTH_TOLERANCE = 0.01
"""A view sees a point if the truth's depth at its pixel differs by at most this share of it."""

_RENDERED_POINTS = 1 << 13


@dataclass(frozen=True)
class SeenView:
    """A photograph with its truth, in the scene frame.

    Attributes:
        name: Its ``file_path`` as in transforms.json.
        camera: Its camera.
        truth: Its object ids and depths; unlike the file's, these are lengths of the scene frame.
    """

    name: str
    camera: FileCamera
    truth: ViewTruth


@dataclass(frozen=True)
class SurfacePoints:
    """Points of the scene's surfaces, each from a pixel of a held-out view.

    Attributes:
        positions: In the scene frame.
        views: Index of the held-out view of each.
        xy: Its pixel (x, y) of the file.
        ids: Id of the object that it is on.
    """

    positions: Float[Tensor, "points 3"]
    views: Int[Tensor, " points"]
    xy: Float[Tensor, "points 2"]
    ids: Int[Tensor, " points"]


@dataclass(frozen=True)
class MultiviewCosines:
    """Mean cosines at surface points that several views see; None for a mean over nothing.

    Attributes:
        teacher_mean: Of the teacher's mean over training views to its feature in the held-out view.
        same_points: Of the rendered field to the same feature.
        consistency: Of the rendered field between the held-out views that see a point.
        consistency_teacher: Of the teacher between these.
        points: Number of points that some training view sees.
        views_per_point: Mean number of training views that see such a point.
    """

    teacher_mean: float | None
    same_points: float | None
    consistency: float | None
    consistency_teacher: float | None
    points: int
    views_per_point: float | None


def sample_pixels(
    views: Sequence[ViewTruth], num: int, *, seed: int, per_object: bool
) -> tuple[Int[np.ndarray, " points"], Int[np.ndarray, "points 2"]]:
    """Draws pixels that show a surface, with replacement.

    Args:
        views: The views to draw from.
        num: Number of pixels.
        seed: Seed of the draw.
        per_object: Whether every visible object and surface gets the same number of pixels (or one
            fewer), instead of every pixel the same probability.

    Returns:
        The view's index and the (x, y) of each pixel; empty if no view shows a surface.
    """
    sizes = [view.ids.size for view in views]
    ids = np.concatenate([view.ids.ravel() for view in views])
    depth = np.concatenate([view.depth.ravel() for view in views])
    usable = np.flatnonzero(np.isfinite(depth) & (ids >= 0))
    rng = np.random.default_rng([seed, 2])
    if per_object and len(usable):
        seen = np.unique(ids[usable])
        shares = np.full(len(seen), num // len(seen)) + (np.arange(len(seen)) < num % len(seen))
        picked = np.concatenate(
            [
                rng.choice(usable[ids[usable] == number], size=share)
                for number, share in zip(seen, shares, strict=True)
            ]
        )
    else:
        picked = rng.choice(usable, size=num if len(usable) else 0)
    ends = np.cumsum(sizes)
    view_of = np.searchsorted(ends, picked, side="right")
    local = picked - (ends - sizes)[view_of]
    widths = np.array([view.ids.shape[1] for view in views])[view_of]
    return view_of, np.stack((local % widths, local // widths), axis=-1)


def surface_points(
    views: Sequence[SeenView], num: int, *, seed: int, per_object: bool
) -> SurfacePoints:
    """Draws points of the surfaces that held-out views see; see :func:`sample_pixels`."""
    truths = [view.truth for view in views]
    view_of, pixels = sample_pixels(truths, num, seed=seed, per_object=per_object)
    positions = torch.zeros(len(pixels), 3)
    ids = torch.zeros(len(pixels), dtype=torch.long)
    for number, view in enumerate(views):
        here = np.flatnonzero(view_of == number)
        x, y = pixels[here].T
        depth = torch.from_numpy(view.truth.depth[y, x])
        positions[here] = view.camera.unproject(torch.from_numpy(pixels[here]).float(), depth)
        ids[here] = torch.from_numpy(view.truth.ids[y, x]).long()
    xy = torch.from_numpy(pixels).float()
    return SurfacePoints(positions, torch.from_numpy(view_of), xy, ids)


def sees(
    view: SeenView, positions: Float[Tensor, "points 3"]
) -> tuple[Bool[Tensor, " points"], Float[Tensor, "points 2"]]:
    """Returns which positions of the scene frame a view sees, and their (x, y) in its file."""
    xy, depth = view.camera.project(positions)
    height, width = view.camera.file_size
    limit = xy.new_tensor([width - 0.5, height - 0.5])
    inside = (depth > 0) & ((xy >= -0.5) & (xy < limit)).all(dim=-1)
    x, y = torch.where(inside[:, None], xy, 0.0).round().long().T
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    surface = torch.from_numpy(view.truth.depth)[y, x]
    return inside & ((surface - depth).abs() <= DEPTH_TOLERANCE * depth), xy


def teacher_mean(
    store: FeatureStore, points: SurfacePoints, views: Iterable[SeenView]
) -> tuple[Float[Tensor, "points channels"], Int[Tensor, " points"]]:
    """Averages the teacher's features of each point over the views that see it.

    Args:
        store: The teacher's features, read bilinearly.
        points: The points.
        views: Training views; an iterator keeps one in memory at a time.

    Returns:
        The mean features, zero for a point that no view sees, and the number of views that do.
    """
    total = torch.zeros(len(points.positions), store.channels)
    counts = torch.zeros(len(points.positions), dtype=torch.long)
    for view in views:
        seen, xy = sees(view, points.positions)
        total[seen] += _teacher(store, view, xy[seen])
        counts[seen] += 1
    return total / counts.clamp_min(1)[:, None], counts


@torch.no_grad()
def compare_views(
    source: Source,
    name: str,
    store: FeatureStore,
    points: SurfacePoints,
    *,
    held_out: Sequence[SeenView],
    training: Iterable[SeenView],
) -> MultiviewCosines:
    """Measures one head of a field or splat and its teacher at surface points.

    Args:
        source: What is rendered.
        name: The head's name.
        store: The teacher's features.
        points: Points of the held-out views.
        held_out: The held-out views, in the order of ``points.views``.
        training: The training views.
    """
    mean, counts = teacher_mean(store, points, training)
    head = source.heads[name]
    field = _PairwiseCosine(len(counts))
    teacher = _PairwiseCosine(len(counts))
    of_mean, of_field = torch.zeros(len(counts)), torch.zeros(len(counts))
    for number, view in enumerate(held_out):
        own = points.views == number
        seen, xy = sees(view, points.positions)
        # A point's own pixel is known exactly; its projection may round to a pixel beside an edge.
        seen, xy = seen | own, torch.where(own[:, None], points.xy, xy)
        target = _teacher(store, view, xy[seen])
        rendered = head(render_points(source, view.camera, xy[seen]).to(head.weight)).cpu()
        field.add(seen, rendered)
        teacher.add(seen, target)
        mine = own[seen]
        of_field[own] = functional.cosine_similarity(rendered[mine], target[mine], dim=-1)
        of_mean[own] = functional.cosine_similarity(mean[own], target[mine], dim=-1)
    known = counts > 0
    return MultiviewCosines(
        teacher_mean=_mean(of_mean[known]),
        same_points=_mean(of_field[known]),
        consistency=field.mean(),
        consistency_teacher=teacher.mean(),
        points=int(known.sum()),
        views_per_point=_mean(counts[known].float()),
    )


def render_points(
    source: Source, camera: FileCamera, xy: Float[Tensor, "points 2"]
) -> Float[Tensor, "points hidden"]:
    """Renders the hidden vectors at pixels (x, y) of a file; a field at fractions of pixels too."""
    hidden = [xy.new_zeros((0, source.hidden_dim))]
    for part in xy.split(_RENDERED_POINTS) if len(xy) else ():
        outputs = source.at_pixels(camera.camera, camera.coords(part))
        hidden.append(hidden_of(outputs)[:, 0].cpu())
    return torch.cat(hidden)


def _teacher(store: FeatureStore, view: SeenView, xy: Float[Tensor, "points 2"]) -> Tensor:
    rows = torch.full((len(xy),), store.index(view.name))
    return store.gather(rows, xy, mode="bilinear").cpu()


def _mean(values: Float[Tensor, " n"]) -> float | None:
    return float(values.mean()) if len(values) else None


class _PairwiseCosine:
    """Mean cosine between all pairs of a point's features, over points with two or more.

    With unit vectors u_1 ... u_n the mean is ``(|sum u|^2 - n) / (n (n - 1))``: no pair is formed.
    """

    def __init__(self, num_points: int) -> None:
        self._sum: Tensor | None = None
        self._counts = torch.zeros(num_points, dtype=torch.long)

    def add(self, seen: Bool[Tensor, " points"], features: Float[Tensor, "seen channels"]) -> None:
        if self._sum is None:
            self._sum = features.new_zeros((len(seen), features.shape[1]))
        self._sum[seen] += functional.normalize(features, dim=-1)
        self._counts += seen

    def mean(self) -> float | None:
        pairs = self._counts > 1
        if self._sum is None or not bool(pairs.any()):
            return None
        count = self._counts[pairs].float()
        squared = self._sum[pairs].square().sum(-1)
        return float(((squared - count) / (count * (count - 1))).mean())
