"""Splits surface points into connected pieces, and measures these."""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

_AREA_NEIGHBOURS = 4
"""A point stands for its share of the disc up to this nearest point of its piece."""
_SUPPORT_NEIGHBOURS = 8
_LEAST_SUPPORT = 0.2
"""Least density of rays around a point, relative to that of the well-seen points of its piece."""


def connected(
    points: Int[np.ndarray, " points"], pairs: Int[np.ndarray, "pairs 2"], total: int
) -> list[Int[np.ndarray, " piece"]]:
    """Splits some of a surface's points into pieces without neighbours in another.

    Args:
        points: Their indices.
        pairs: Pairs of neighbouring points, of all points.
        total: Number of all points.

    Returns:
        The indices of each piece's points, largest piece first.
    """
    rows = np.full(total, -1)
    rows[points] = np.arange(len(points))
    both = rows[pairs]
    both = both[(both >= 0).all(axis=1)]
    graph = csr_matrix((np.ones(len(both), bool), tuple(both.T)), (len(points), len(points)))
    count, piece = connected_components(graph, directed=False)
    pieces = [points[piece == number] for number in range(count)]
    return sorted(pieces, key=len, reverse=True)


def area(positions: Float[np.ndarray, "points 3"]) -> float:
    """Returns about the area of the surface on which points lie, however densely they do.

    Args:
        positions: At least two points.
    """
    count = min(_AREA_NEIGHBOURS, len(positions) - 1)
    distances, _ = KDTree(positions).query(positions, k=count + 1)
    return float(np.pi * np.square(distances[:, -1]).sum() / (count + 1))


def supported(
    positions: Float[np.ndarray, "points 3"], counts: Int[np.ndarray, " points"]
) -> Bool[np.ndarray, " points"]:
    """Tells which points have not far fewer rays near them than the well-seen ones.

    Args:
        positions: The points of one piece.
        counts: Number of rays that hit each point.
    """
    near = min(_SUPPORT_NEIGHBOURS, len(positions))
    distances, index = KDTree(positions).query(positions, k=near)
    index, distances = (found.reshape(len(positions), near) for found in (index, distances))
    # Rays of a point's neighbourhood over the square of its radius: rays per area.
    radius = np.maximum(distances[:, -1], 1e-12)
    density = counts[index].sum(axis=1) / np.square(radius)
    return density >= _LEAST_SUPPORT * np.quantile(density, 0.75)
