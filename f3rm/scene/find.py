"""Finds the instances of what a question asks, on the surface points of a scene.

Points that answer are joined where they are near each other. Of each connected piece the points
that few rays hit are left out: they float, or lie behind what is thin. A piece that is large
enough, convinces by itself and is not far less convincing than the best is an instance. A question
whose best score is no better than that of the canonical negatives by a margin is answered "not
here".
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
from f3rm.language.threshold import COSINE_FLOOR, RELEVANCY_FLOOR, found_from
from f3rm.scene.boxes import fit_box
from f3rm.scene.found import Found, Instance
from f3rm.scene.frames import Frame, FrameName
from f3rm.scene.surface import SurfacePoints

LEAST_POINTS = 12
"""Cells that an instance fills, at least."""

_JOINED = 2.5
"""Points up to so many cells apart belong to one instance."""
_SUPPORT_REACH = 3.0
_LEAST_SUPPORT = 0.2
"""A point stays if so many times the rays of well-seen points of its piece hit near it."""
_LEAST_SIZE = 0.05
"""An instance has so many points, relative to the largest of its question."""
_LEAST_RISE = 0.4
"""An instance is so far above the floor, relative to the best of its question."""
_BEST = 8
"""A place's score is the mean over so many neighbours, so that no single ray decides."""


@dataclass(frozen=True)
class Scored:
    """Surface points with the scores of a question.

    Attributes:
        points: The points, thinned, in the scene frame.
        spacing: Edge of a cell of theirs.
        question: The question.
        scores: Its score at each point.
        threshold: From which score on a point answers; infinity for none.
        is_automatic: Whether the threshold was chosen by the scene.
    """

    points: SurfacePoints
    spacing: float
    question: Question
    scores: Float[Tensor, " points"]
    threshold: float
    is_automatic: bool


def score_surface(
    points: SurfacePoints, spacing: float, question: Question, threshold: float | None
) -> Scored:
    """Scores surface points and chooses the threshold.

    Args:
        points: The points, thinned, in the scene frame.
        spacing: Edge of a cell of theirs.
        question: The question.
        threshold: From which score on a point answers; None to choose it by the scene.
    """
    scores = question.scores(points.hidden.to(question.device)).float().cpu()
    if not len(scores):
        return Scored(points, spacing, question, scores, torch.inf, is_automatic=True)
    smooth = smoothed(points.positions, scores)
    chosen = found_from(smooth, compares=question.compares) if threshold is None else threshold
    return Scored(points, spacing, question, smooth, chosen, is_automatic=threshold is None)


def smoothed(
    positions: Float[Tensor, "points 3"], values: Float[Tensor, " points"]
) -> Float[Tensor, " points"]:
    """Returns each point's mean over its eight nearest points, itself among them."""
    count = min(_BEST, len(positions))
    _, near = KDTree(positions.numpy()).query(positions.numpy(), k=count)
    return values[torch.from_numpy(near).reshape(len(positions), count)].mean(dim=1)


def find_instances(
    scored: Scored, *, frame: Frame, name: FrameName, up: Float[np.ndarray, "3"]
) -> Found:
    """Finds what answers a question.

    Args:
        scored: The scene's points and their scores.
        frame: The frame of the answer.
        name: Its name.
        up: Which way is up there.
    """
    pieces = [_instance(scored, piece, frame, name, up) for piece in _pieces(scored)]
    instances = tuple(sorted(pieces, key=lambda instance: -instance.score))
    best = float(scored.scores.max()) if len(scored.scores) else None
    return Found(
        question=scored.question.label,
        instances=instances,
        reason="" if instances else _reason(scored, best),
        best_score=best,
        threshold=scored.threshold,
        frame=name,
    )


def _reason(scored: Scored, best: float | None) -> str:
    label = scored.question.label
    if best is None:
        return f"not here: the field shows no surface at all, so nothing answers {label!r}"
    if best < scored.threshold and not scored.is_automatic:
        return f"not here: the best score of {label!r} is {best:.2f}, below {scored.threshold:.2f}"
    if best < scored.threshold:
        return (
            f"not here: the best score of {label!r} is {best:.2f}, which anything could have; "
            "what is there scores higher"
        )
    return f"not here: what answers {label!r} is scattered over a few points"


def _pieces(scored: Scored) -> list[Int[np.ndarray, " piece"]]:
    """Returns the indices of the points of each instance; a threshold that was given says all."""
    pieces = list(_candidates(scored))
    if not scored.is_automatic:
        return pieces
    pieces = [piece for piece in pieces if _convinces(scored, piece)]
    if not pieces:
        return []
    floor = RELEVANCY_FLOOR if scored.question.compares else COSINE_FLOOR
    rises = [float(scored.scores[torch.from_numpy(piece)].mean()) - floor for piece in pieces]
    largest = max(len(piece) for piece in pieces)
    return [
        piece
        for piece, rise in zip(pieces, rises, strict=True)
        if len(piece) >= _LEAST_SIZE * largest and rise >= _LEAST_RISE * max(rises)
    ]


def _candidates(scored: Scored) -> Iterator[Int[np.ndarray, " piece"]]:
    """Yields the indices of the points of each connected piece that is large enough."""
    answering = np.flatnonzero((scored.scores >= scored.threshold).numpy())
    if not len(answering):
        return
    positions = scored.points.positions.numpy()[answering]
    counts = scored.points.counts.numpy()[answering]
    joined, reach = _JOINED * scored.spacing, _SUPPORT_REACH * scored.spacing
    for piece in connected(positions, joined):
        kept = piece[supported(positions[piece], counts[piece], reach)]
        for rest in connected(positions[kept], joined):
            if len(rest) >= LEAST_POINTS:
                yield answering[kept[rest]]


def supported(
    positions: Float[np.ndarray, "points 3"], counts: Int[np.ndarray, " points"], radius: float
) -> Bool[np.ndarray, " points"]:
    """Returns which points have about as many rays near them as the well-seen ones have.

    Args:
        positions: The points of one piece.
        counts: How many rays hit each.
        radius: How far near is.
    """
    support = counts + _near(positions, radius) @ counts
    return support >= _LEAST_SUPPORT * np.quantile(support, 0.75)


def _convinces(scored: Scored, piece: Int[np.ndarray, " piece"]) -> bool:
    """Whether a piece would be found if the scene had nothing else."""
    alone = found_from(scored.scores[torch.from_numpy(piece)], compares=scored.question.compares)
    return alone < np.inf


def connected(
    positions: Float[np.ndarray, "points 3"], radius: float
) -> list[Int[np.ndarray, " piece"]]:
    """Splits points into pieces between which there is a gap.

    Args:
        positions: The points.
        radius: Points nearer than it are of one piece.

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
    scored: Scored,
    piece: Int[np.ndarray, " piece"],
    frame: Frame,
    name: FrameName,
    up: Float[np.ndarray, "3"],
) -> Instance:
    everything = frame.from_scene(scored.points.positions)
    points = everything[torch.from_numpy(piece)]
    box = fit_box(points.double().numpy(), up)
    inside = torch.from_numpy(box.contains(everything.double().numpy()))
    answers = scored.scores >= scored.threshold
    shared = int((inside & answers).sum()) / max(int(inside.sum()), 1)
    return Instance(
        score=float(scored.scores[torch.from_numpy(piece)].mean()),
        confidence=shared,
        box=box,
        points=points,
        spacing=scored.spacing / frame.scene_per_unit,
        frame=name,
    )
