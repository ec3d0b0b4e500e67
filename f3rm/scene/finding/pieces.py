"""Splits surface points into connected pieces and touching things apart, and measures pieces.

Touching things are separated where views see them apart. The matching sightings of a view fall into
connected masks, cut where the depth jumps. A mask that most other views see as two is of two
things; all others that overlap in space are of one.

*Source:* masks of views merged by their overlap in space, as in ConceptGraphs (Gu et al., ICRA
2024), and the vote of the other views on a mask, as in MaskClustering (Yan et al., CVPR 2024).
There masks come from a segmentation model.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from f3rm.scene.surface import Surface

_AREA_NEIGHBOURS = 4
"""A point stands for its share of the disc up to this nearest point of its piece."""
_SUPPORT_NEIGHBOURS = 8
_LEAST_SUPPORT = 0.1
"""Least density of rays around a point, relative to that of the well-seen points of its piece."""
_STEEPEST = 2.0
"""Neighbouring sightings whose depths differ by more, relative to their distance across the view,
are of two surfaces, one behind the other."""
_LEAST_SIGHTINGS = 6
"""Fewest sightings of a mask."""
_PART = 0.25
"""A view sees a mask as two if each of two of its own masks has this share of it."""
_OVERLAP = 0.5
"""Two masks are of one thing if this share of one of them is near the other."""

Piece = Int[np.ndarray, " _"]


def connected(
    points: Int[np.ndarray, " points"], pairs: Int[np.ndarray, "pairs 2"], total: int
) -> list[Piece]:
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


def separated(surface: Surface, piece: Piece, *, least: int) -> list[Piece]:
    """Splits a piece into the things that views see apart; most pieces are one.

    Args:
        surface: The surface.
        piece: The indices of its points.
        least: Fewest points of a thing.
    """
    sightings, mask = _masks(surface, piece)
    if not len(mask) or mask.max() < 1:
        return [piece]
    positions = surface.sightings.points.positions.double().numpy()[sightings]
    shares = _overlaps(positions, mask, float(np.median(surface.reach[piece])))
    views = np.zeros(len(shares), int)
    views[mask] = surface.sightings.views.numpy()[sightings]
    whole = ~_seen_as_two(shares, views)
    alike = (np.maximum(shares, shares.T) >= _OVERLAP) & whole & whole[:, None]
    _, thing = connected_components(csr_matrix(alike), directed=False)
    of_thing = np.where(whole, thing, -1)[mask]
    known = of_thing >= 0
    if not known.any():
        return [piece]
    # Points of other masks, and of none, are of the nearest thing.
    points = surface.points.positions.double().numpy()[piece]
    owner = of_thing[known][KDTree(positions[known]).query(points)[1]]
    sizes = np.bincount(owner)
    large = np.flatnonzero(sizes >= max(least, _PART / 2 * len(piece)))
    if len(large) < 2:
        return [piece]
    known &= np.isin(of_thing, large)
    owner = of_thing[known][KDTree(positions[known]).query(points)[1]]
    return [piece[owner == number] for number in large]


def _masks(
    surface: Surface, piece: Piece
) -> tuple[Int[np.ndarray, " sightings"], Int[np.ndarray, " sightings"]]:
    """Returns the sightings of a piece that are in a large enough mask, and their masks."""
    matches = np.isin(surface.cells.numpy(), piece)
    rows = np.flatnonzero(matches)
    first, second, across = surface.beside(rows)
    depths = surface.depths
    jumps = np.abs(depths[first] - depths[second])
    joined = matches[second] & (jumps <= _STEEPEST * np.maximum(across, surface.spacing))
    number = np.cumsum(matches) - 1
    pairs = number[first[joined]], number[second[joined]]
    graph = csr_matrix((np.ones(len(pairs[0]), bool), pairs), (len(rows), len(rows)))
    _, mask = connected_components(graph, directed=False)
    large = np.bincount(mask)[mask] >= _LEAST_SIGHTINGS
    _, mask = np.unique(mask[large], return_inverse=True)
    return rows[large], mask


def _overlaps(
    positions: Float[np.ndarray, "sightings 3"], mask: Int[np.ndarray, " sightings"], radius: float
) -> Float[np.ndarray, "masks masks"]:
    """Returns the share of each mask's sightings that are near one of another's."""
    count = len(mask)
    pairs = KDTree(positions).query_pairs(radius, output_type="ndarray")
    rows, columns = np.concatenate((pairs, pairs[:, ::-1], np.arange(count)[:, None] + [[0, 0]])).T
    near = csr_matrix((np.ones(len(rows), bool), (rows, mask[columns])), (count, mask.max() + 1))
    of_mask = csr_matrix((np.ones(count), (mask, np.arange(count))), (mask.max() + 1, count))
    both = csr_matrix(of_mask @ near.astype(float))
    return both.toarray() / np.bincount(mask)[:, None]


def _seen_as_two(
    shares: Float[np.ndarray, "masks masks"], views: Int[np.ndarray, " masks"]
) -> Bool[np.ndarray, " masks"]:
    """Tells which masks most other views that see them see as two."""
    two, one = np.zeros(len(views)), np.zeros(len(views))
    for view in np.unique(views):
        theirs = np.sort(shares[:, views == view], axis=1)
        best = theirs[:, -1]
        second = theirs[:, -2] if theirs.shape[1] > 1 else np.zeros_like(best)
        split = second >= _PART
        split[views == view] = False
        two += split
        one += (best >= 1 - _PART) & ~split & (views != view)
    return two > one
