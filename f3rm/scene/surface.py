"""Surface points with colours and hidden vectors, the views that saw them, and their neighbours.

A run's rays (``casting.py``) fill these types; whatever else has points that views see can, too.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree
from torch import Tensor

_NEIGHBOURS = 16
"""Nearest points that a point may be joined with."""
_SMOOTHED = 8
"""A point's score is the mean over this many nearest points, so that no single ray decides."""
_JOIN_RADIUS = 2.5
"""Points at most this many cells apart are neighbours in any case."""
_JOIN_GAP = 1.2
"""So are points no farther apart than this many times the distance to the eighth nearest point."""
_MOST_GAP = 3.0
"""Nor is this distance taken to be more than so many times that of the median point."""
_BESIDE = 7
"""Sightings that a view sees next to one, itself among them."""
_VIEW_STEP = 4.0
"""Keeps the unit directions of different views apart in one search tree."""


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

    def subset(self, kept: Tensor) -> "SurfacePoints":
        """Returns the points where ``kept`` is true, or of these indices."""
        columns = (self.positions, self.colours, self.hidden, self.counts)
        return SurfacePoints(*(column[kept] for column in columns))


def thinned(points: SurfacePoints, spacing: float) -> SurfacePoints:
    """Averages the points of each cell of a grid, so that surfaces are sampled evenly.

    Args:
        points: The points.
        spacing: Edge of a cell, in units of the points' frame, > 0.
    """
    return _means(points, _cell_numbers(points, spacing)) if len(points) else points


def _cell_numbers(points: SurfacePoints, spacing: float) -> Int[Tensor, " points"]:
    cells = torch.floor(points.positions.double() / spacing).long()
    return torch.unique(cells, dim=0, return_inverse=True)[1]


def _means(points: SurfacePoints, cell: Int[Tensor, " points"]) -> SurfacePoints:
    counts = torch.zeros(int(cell.max()) + 1, dtype=torch.long).index_add_(0, cell, points.counts)
    weights = points.counts.double()

    def mean(values: Float[Tensor, "points channels"]) -> Tensor:
        total = torch.zeros(len(counts), values.shape[1], dtype=torch.float64)
        total.index_add_(0, cell, values.double() * weights[:, None])
        return (total / counts[:, None]).to(values)

    return SurfacePoints(mean(points.positions), mean(points.colours), mean(points.hidden), counts)


@dataclass(frozen=True)
class Sightings:
    """Surface points as views see them, one row for each point and view.

    Attributes:
        points: The points, in the scene frame.
        views: Index of the view that sees each of them.
        eyes: Position of each view's camera, in the scene frame.
    """

    points: SurfacePoints
    views: Int[Tensor, " points"]
    eyes: Float[Tensor, "views 3"]

    def subset(self, kept: Tensor) -> "Sightings":
        """Returns the rows where ``kept`` is true, or of these indices."""
        return Sightings(self.points.subset(kept), self.views[kept], self.eyes)

    def joined(self, other: "Sightings") -> "Sightings":
        """Returns these rows and another's of the same views."""
        mine, others = vars(self.points), vars(other.points)
        columns = [torch.cat((mine[name], others[name])) for name in mine]
        views = torch.cat((self.views, other.views))
        return Sightings(SurfacePoints(*columns), views, self.eyes)


@dataclass(frozen=True)
class Surface:
    """The surface in which instances are found. What a question does not change is kept.

    Attributes:
        sightings: What each view sees of it.
        spacing: Edge of the grid cells whose sightings are one point.
    """

    sightings: Sightings
    spacing: float

    @cached_property
    def cells(self) -> Int[Tensor, " sightings"]:
        """The point that each sighting is part of."""
        return _cell_numbers(self.sightings.points, self.spacing)

    @cached_property
    def points(self) -> SurfacePoints:
        """The points, one per cell."""
        seen = self.sightings.points
        return _means(seen, self.cells) if len(seen) else seen

    @cached_property
    def _nearest(self) -> tuple[Float[np.ndarray, "points near"], Int[np.ndarray, "points near"]]:
        """Distances and indices of the nearest points; each point is its own first."""
        positions = self.points.positions.double().numpy()
        count = min(_NEIGHBOURS, len(positions))
        distances, near = KDTree(positions).query(positions, k=count)
        shape = (len(positions), count)
        return distances.reshape(shape), near.reshape(shape)

    @cached_property
    def reach(self) -> Float[np.ndarray, " points"]:
        """The distance up to which a point has neighbours: the sampling's own, around it."""
        distances, near = self._nearest
        gaps = distances[:, min(_SMOOTHED, distances.shape[1] - 1)]
        local = gaps[near[:, :_SMOOTHED]].mean(axis=1)
        local = np.minimum(local, _MOST_GAP * np.median(local)) if len(local) else local
        return np.maximum(_JOIN_RADIUS * self.spacing, _JOIN_GAP * local)

    @cached_property
    def neighbours(self) -> Int[np.ndarray, "pairs 2"]:
        """Pairs of neighbouring points: near by the density with which the surface is sampled."""
        distances, near = self._nearest
        first, column = np.nonzero(distances <= self.reach[:, None])
        return np.stack((first, near[first, column]), axis=-1)

    def smoothed(self, values: Float[Tensor, " points"]) -> Float[Tensor, " points"]:
        """Returns each point's mean over its eight nearest points, itself among them."""
        return values[torch.from_numpy(self._nearest[1][:, :_SMOOTHED])].mean(dim=1)

    def around(self, points: Int[np.ndarray, " _"]) -> Sightings:
        """Returns what views see of some points and of those nearest to them."""
        wanted = torch.zeros(len(self.points), dtype=torch.bool)
        wanted[torch.from_numpy(np.unique(self._nearest[1][points]))] = True
        return self.sightings.subset(wanted[self.cells])

    def views_of(self, points: Int[np.ndarray, " _"]) -> Int[np.ndarray, " sightings"]:
        """Returns the view of each sighting of some points."""
        wanted = torch.zeros(len(self.points), dtype=torch.bool)
        wanted[torch.from_numpy(points)] = True
        return self.sightings.views[wanted[self.cells]].numpy()

    @cached_property
    def _rays(self) -> tuple[KDTree, Float[np.ndarray, " sightings"]]:
        """A search tree of the sightings' directions by view, and their distances to the eyes."""
        seen = self.sightings
        offsets = (seen.points.positions - seen.eyes[seen.views]).double().numpy()
        lengths = np.linalg.norm(offsets, axis=1)
        return KDTree(_by_view(offsets, lengths, seen.views.numpy())), lengths

    @property
    def depths(self) -> Float[np.ndarray, " sightings"]:
        """Distance of each sighting from its view's eye."""
        return self._rays[1]

    def beside(self, rows: Int[np.ndarray, " _"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns pairs of sightings that are next to each other in a view.

        Args:
            rows: Indices of sightings.

        Returns:
            Indices of one of ``rows``, of one beside it, and their distance across the view.
        """
        tree, depths = self._rays
        away, beside = tree.query(tree.data[rows], k=min(_BESIDE, tree.n))
        away, beside = away.reshape(len(rows), -1), beside.reshape(len(rows), -1)
        first, column = np.nonzero(away < 1)  # in the same view
        across = away[first, column] * depths[rows[first]]
        return rows[first], beside[first, column], across

    def seen_through(self, positions: Float[np.ndarray, "_ 3"]) -> Bool[np.ndarray, " _"]:
        """Tells through which positions a view sees a surface behind: they are free space.

        Args:
            positions: In the scene frame.
        """
        eyes = self.sightings.eyes.double().numpy()
        offsets = positions[:, None] - eyes  # (positions, views, 3)
        lengths = np.linalg.norm(offsets, axis=-1)
        views = np.broadcast_to(np.arange(len(eyes)), lengths.shape)
        tree, ends = self._rays
        margin = 1.5 * self.spacing
        away, ray = tree.query(_by_view(offsets, lengths, views).reshape(-1, 3))
        passes = away.reshape(lengths.shape) * lengths <= margin
        behind = ends[ray].reshape(lengths.shape) > lengths + 2 * margin
        return (passes & behind).any(axis=1)


def _by_view(
    offsets: Float[np.ndarray, "*rows 3"],
    lengths: Float[np.ndarray, "*rows"],
    views: Int[np.ndarray, "*rows"],
) -> Float[np.ndarray, "*rows 3"]:
    """Returns unit directions, moved so that those of different views are far apart."""
    directions = offsets / np.maximum(lengths, 1e-12)[..., None]
    directions[..., 0] += _VIEW_STEP * views
    return directions
