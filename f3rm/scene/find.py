"""Finds the instances that match a query, on the surface points of a scene.

Matching points near each other are joined into pieces. In each piece the points that few rays hit
are dropped: they float, or were seen through something thin. A piece is an instance if it is large
enough, would pass the threshold on its own, and its score is not far below the best piece's; if
some pieces fit the query better than every phrase that contradicts it, the others are left out. A
query whose best score is not above the floor by a margin has no instance.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree

from f3rm.language.threshold import COSINE_FLOOR, RELEVANCY_FLOOR, found_from
from f3rm.scene.boxes import fit_box
from f3rm.scene.certainty import judge, strongest_rival
from f3rm.scene.found import Found, Instance
from f3rm.scene.frames import Frame, FrameName
from f3rm.scene.scored import ScoredSurface

LEAST_POINTS = 12
"""Fewest points, and so grid cells, of an instance."""

_JOIN_RADIUS = 2.5
"""Points at most this many cells apart belong to one piece."""
_SUPPORT_RADIUS = 3.0
"""Rays that hit within this many cells of a point support it."""
_LEAST_SUPPORT = 0.2
"""Least support of a point, relative to that of the well-seen points of its piece."""
_LEAST_SIZE = 0.05
"""Least number of points of an instance, relative to the query's largest piece."""
_LEAST_RISE = 0.4
"""Least height of an instance's mean score above the floor, relative to the query's best piece."""


def find_instances(
    scored: ScoredSurface, *, frame: Frame, name: FrameName, up: Float[np.ndarray, "3"]
) -> Found:
    """Finds the instances that match a query.

    Args:
        scored: The scene's points and their scores.
        frame: The frame of the answer.
        name: The frame's name.
        up: The up vector in that frame.
    """
    pieces = sorted(_pieces(scored), key=lambda piece: -_mean_score(scored, piece))
    certainty, reason = judge(scored, pieces)
    return Found(
        question=scored.question.label,
        instances=tuple(_instance(scored, piece, frame, name, up) for piece in pieces),
        certainty=certainty,
        reason=reason,
        best_score=float(scored.scores.max()) if len(scored.scores) else None,
        threshold=scored.threshold,
        frame=name,
    )


def _floor(scored: ScoredSurface) -> float:
    """Returns the score that an absent object may reach."""
    return RELEVANCY_FLOOR if scored.question.compares else COSINE_FLOOR


def _pieces(scored: ScoredSurface) -> list[Int[np.ndarray, " piece"]]:
    """Returns the indices of each instance's points; a given threshold is the only criterion."""
    pieces = list(_candidates(scored))
    if not scored.is_automatic:
        return pieces
    pieces = [piece for piece in pieces if _passes_alone(scored, piece)]
    rises = [_mean_score(scored, piece) - _floor(scored) for piece in pieces]
    largest = max(map(len, pieces), default=0)
    kept = [
        piece
        for piece, rise in zip(pieces, rises, strict=True)
        if len(piece) >= _LEAST_SIZE * largest and rise >= _LEAST_RISE * max(rises)
    ]
    return [piece for piece in kept if not strongest_rival(scored, piece)] or kept


def _candidates(scored: ScoredSurface) -> Iterator[Int[np.ndarray, " piece"]]:
    """Yields the indices of the points of each connected piece that is large enough."""
    matching = np.flatnonzero((scored.scores >= scored.threshold).numpy())
    if not len(matching):
        return
    positions = scored.points.positions.numpy()[matching]
    counts = scored.points.counts.numpy()[matching]
    radius, reach = _JOIN_RADIUS * scored.spacing, _SUPPORT_RADIUS * scored.spacing
    for piece in connected(positions, radius):
        kept = piece[supported(positions[piece], counts[piece], reach)]
        # Dropped points may have been a bridge between two objects.
        for rest in connected(positions[kept], radius):
            if len(rest) >= LEAST_POINTS:
                yield matching[kept[rest]]


def supported(
    positions: Float[np.ndarray, "points 3"], counts: Int[np.ndarray, " points"], radius: float
) -> Bool[np.ndarray, " points"]:
    """Tells which points have not far fewer rays near them than the well-seen ones.

    Args:
        positions: The points of one piece.
        counts: Number of rays that hit each point.
        radius: Rays within it are near.
    """
    support = counts + _near(positions, radius) @ counts
    return support >= _LEAST_SUPPORT * np.quantile(support, 0.75)


def _mean_score(scored: ScoredSurface, piece: Int[np.ndarray, " piece"]) -> float:
    return float(scored.scores[torch.from_numpy(piece)].mean())


def _passes_alone(scored: ScoredSurface, piece: Int[np.ndarray, " piece"]) -> bool:
    """Tells whether a piece would be found if the scene had nothing else."""
    alone = found_from(scored.scores[torch.from_numpy(piece)], compares=scored.question.compares)
    return alone < np.inf


def connected(
    positions: Float[np.ndarray, "points 3"], radius: float
) -> list[Int[np.ndarray, " piece"]]:
    """Splits points into pieces with gaps between them.

    Args:
        positions: The points.
        radius: Points nearer to each other belong to one piece.

    Returns:
        The indices of each piece's points, largest piece first.
    """
    count, piece = connected_components(_near(positions, radius), directed=False)
    pieces = [np.flatnonzero(piece == number) for number in range(count)]
    return sorted(pieces, key=len, reverse=True)


def _near(positions: Float[np.ndarray, "points 3"], radius: float) -> csr_matrix:
    """Returns the symmetric 0-1 matrix of points nearer to each other than a radius."""
    pairs = KDTree(positions).query_pairs(radius, output_type="ndarray")
    shape = (len(positions), len(positions))
    half = csr_matrix((np.ones(len(pairs), dtype=np.int64), (pairs[:, 0], pairs[:, 1])), shape)
    return half + half.T


def _instance(
    scored: ScoredSurface,
    piece: Int[np.ndarray, " piece"],
    frame: Frame,
    name: FrameName,
    up: Float[np.ndarray, "3"],
) -> Instance:
    everything = frame.from_scene(scored.points.positions)
    points = everything[torch.from_numpy(piece)]
    box = fit_box(points.double().numpy(), up)
    inside = torch.from_numpy(box.contains(everything.double().numpy()))
    matching = scored.scores >= scored.threshold
    return Instance(
        score=_mean_score(scored, piece),
        confidence=int((inside & matching).sum()) / max(int(inside.sum()), 1),
        box=box,
        points=points,
        spacing=scored.spacing / frame.scene_per_unit,
        frame=name,
    )
