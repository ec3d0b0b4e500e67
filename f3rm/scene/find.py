"""Finds the instances that match a query, on the surface points of a scene.

Matching points near each other are joined into pieces. In each piece the points that few rays hit
are dropped: they float, or were seen through something thin. A piece is an instance if it is large
enough, would pass the threshold on its own, and its score is not far below the best piece's. A
query whose best score is not above the floor by a margin has no instance.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree
from torch import Tensor

from f3rm.language.questions import Question
from f3rm.language.threshold import (
    COSINE_FLOOR,
    LEAST_CONTRAST,
    RELEVANCY_FLOOR,
    found_from,
)
from f3rm.scene.boxes import fit_box
from f3rm.scene.found import Found, Instance
from f3rm.scene.frames import Frame, FrameName
from f3rm.scene.surface import SurfacePoints

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
_NEIGHBOURS = 8
"""A point's score is the mean over this many nearest points, so that no single ray decides."""


@dataclass(frozen=True)
class ScoredSurface:
    """Surface points with the scores of a query.

    Attributes:
        points: The points, thinned, in the scene frame.
        spacing: Edge of a grid cell.
        question: The query.
        scores: Its smoothed score at each point.
        threshold: The least score of a matching point; infinity where none can match.
        is_automatic: Whether the threshold was chosen from the scores, not given.
    """

    points: SurfacePoints
    spacing: float
    question: Question
    scores: Float[Tensor, " points"]
    threshold: float
    is_automatic: bool


def score_surface(
    points: SurfacePoints, spacing: float, question: Question, threshold: float | None
) -> ScoredSurface:
    """Scores surface points and chooses the threshold.

    Args:
        points: The points, thinned, in the scene frame.
        spacing: Edge of a grid cell.
        question: The query.
        threshold: The least score of a matching point; None to choose it from the scores.
    """
    scores = question.scores(points.hidden.to(question.device)).float().cpu()
    if not len(scores):
        return ScoredSurface(points, spacing, question, scores, torch.inf, is_automatic=True)
    smooth = smoothed(points.positions, scores)
    chosen = found_from(smooth, compares=question.compares) if threshold is None else threshold
    return ScoredSurface(points, spacing, question, smooth, chosen, is_automatic=threshold is None)


def smoothed(
    positions: Float[Tensor, "points 3"], values: Float[Tensor, " points"]
) -> Float[Tensor, " points"]:
    """Returns each point's mean over its eight nearest points, itself among them."""
    count = min(_NEIGHBOURS, len(positions))
    _, near = KDTree(positions.numpy()).query(positions.numpy(), k=count)
    return values[torch.from_numpy(near).reshape(len(positions), count)].mean(dim=1)


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
    found = [_instance(scored, piece, frame, name, up) for piece in _pieces(scored)]
    instances = tuple(sorted(found, key=lambda instance: -instance.score))
    best = float(scored.scores.max()) if len(scored.scores) else None
    return Found(
        question=scored.question.label,
        instances=instances,
        reason="" if instances else _reason(scored, best),
        best_score=best,
        threshold=scored.threshold,
        frame=name,
    )


def _reason(scored: ScoredSurface, best: float | None) -> str:
    absent = f"{scored.question.label!r} not found"
    if best is None:
        return f"{absent}: the field has no surface at all"
    if best >= scored.threshold:
        return f"{absent}: its matches are scattered over a few points"
    kind, least = "threshold", scored.threshold
    if scored.is_automatic:  # the threshold is infinity, which says nothing to a reader
        kind, least = "presence threshold", _floor(scored) + LEAST_CONTRAST
    return f"{absent}: best score {best:.2f} is below the {kind} {least:.2f}"


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
    return [
        piece
        for piece, rise in zip(pieces, rises, strict=True)
        if len(piece) >= _LEAST_SIZE * largest and rise >= _LEAST_RISE * max(rises)
    ]


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
