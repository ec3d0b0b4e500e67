"""Finds the instances that match a query, on the surface points of a scene.

Matching neighbours are joined into pieces. Where a run can be asked for more, the surface around
them is sampled densely and scored again. In each piece the points that few rays hit are dropped:
they float, or were seen through something thin. A piece is an instance if it is large enough, would
pass the threshold on its own, and its score is not far below the best piece's; if some pieces fit
the query better than every phrase that contradicts it, the others are left out. A query whose best
score is not above the floor by a margin has no instance.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from f3rm.language.threshold import COSINE_FLOOR, RELEVANCY_FLOOR, found_from
from f3rm.scene.boxes import fit_box
from f3rm.scene.finding.certainty import judge, strongest_rival
from f3rm.scene.finding.completion import complete
from f3rm.scene.finding.pieces import Piece, area, connected, separated, supported
from f3rm.scene.finding.scored import ScoredSurface
from f3rm.scene.found import Found, Instance
from f3rm.scene.frames import Frame, FrameName
from f3rm.scene.surface import Surface

LookCloser = Callable[[Surface, Piece, Sequence[Piece]], Surface]
"""Samples a surface densely around some of its points and returns these and what is around them:
the surface, the indices of all points to keep, and of each piece's that rays are worth."""

LEAST_POINTS = 12
"""Fewest points, and so grid cells, of an instance."""
SMALLEST_CELLS = 3.0
"""Width of the smallest instance in cells, unless another one is given."""

_WORTH_POINTS = 2
"""Fewest points of a piece that is worth a closer look."""
_WORTH_PIECES = 8
"""Only so many pieces, the largest, are worth one."""
_MOST_POINTS = 1 << 14
"""More matching points need no closer look."""
_LEAST_SIZE = 0.2
"""Least area of an instance, relative to the query's largest piece."""
_LEAST_RISE = 0.4
"""Least height of an instance's mean score above the floor, relative to the query's best piece."""


@dataclass(frozen=True)
class Wish:
    """How instances are wanted.

    Attributes:
        frame: The frame of the answer.
        name: The frame's name.
        up: The up vector in that frame.
        smallest: Width of the smallest instance in that frame; None for three cells.
    """

    frame: Frame
    name: FrameName
    up: Float[np.ndarray, "3"]
    smallest: float | None = None


def find_instances(
    scored: ScoredSurface, wish: Wish, look_closer: LookCloser | None = None
) -> Found:
    """Finds the instances that match a query.

    Args:
        scored: The scene's points and their scores.
        wish: How they are wanted.
        look_closer: Samples the surface where something matches; None for a surface that is known
            as densely as it can be.
    """
    if look_closer is not None:
        scored = _closer(scored, look_closer)
    least = SMALLEST_CELLS * scored.surface.spacing
    if wish.smallest is not None:
        least = wish.smallest * wish.frame.scene_per_unit
    pieces = sorted(_pieces(scored, least**2), key=lambda piece: -_mean_score(scored, piece))
    certainty, reason = judge(scored, pieces)
    return Found(
        question=scored.question.label,
        instances=tuple(_instance(scored, piece, wish) for piece in pieces),
        certainty=certainty,
        reason=reason,
        best_score=float(scored.scores.max()) if len(scored.scores) else None,
        threshold=scored.threshold,
        frame=wish.name,
    )


def _matching(scored: ScoredSurface) -> Piece:
    return np.flatnonzero((scored.scores >= scored.threshold).numpy())


def _connected(scored: ScoredSurface, points: Piece) -> list[Piece]:
    if not len(points):  # also of a surface without points
        return []
    return connected(points, scored.surface.neighbours, len(scored.points))


def _closer(scored: ScoredSurface, look_closer: LookCloser) -> ScoredSurface:
    """Samples the surface densely where something matches, and scores it again."""
    matching = _matching(scored)
    worth = [piece for piece in _connected(scored, matching) if len(piece) >= _WORTH_POINTS]
    if not worth or len(matching) > _MOST_POINTS:
        return scored
    return scored.on(look_closer(scored.surface, matching, worth[:_WORTH_PIECES]))


def _floor(scored: ScoredSurface) -> float:
    """Returns the score that what is beside an instance may reach."""
    floor = RELEVANCY_FLOOR if scored.question.compares else COSINE_FLOOR
    return min(floor, scored.threshold)


def _pieces(scored: ScoredSurface, least_area: float) -> list[Piece]:
    """Returns the indices of each instance's points; of a given threshold only size decides."""
    found = list(_candidates(scored, least_area))
    if not scored.is_automatic:
        return [piece for piece, _ in found]
    found = [(piece, size) for piece, size in found if _passes_alone(scored, piece)]
    rises = [_mean_score(scored, piece) - _floor(scored) for piece, _ in found]
    largest = max((size for _, size in found), default=0.0)
    kept = [
        piece
        for (piece, size), rise in zip(found, rises, strict=True)
        if size >= _LEAST_SIZE * largest and rise >= _LEAST_RISE * max(rises)
    ]
    return [piece for piece in kept if not strongest_rival(scored, piece)] or kept


def _candidates(scored: ScoredSurface, least_area: float) -> Iterator[tuple[Piece, float]]:
    """Yields the indices of the points of each connected piece that is large enough; its area."""
    positions, counts = scored.points.positions.numpy(), scored.points.counts.numpy()
    for piece in _connected(scored, _matching(scored)):
        if len(piece) < LEAST_POINTS:
            break  # the largest come first
        kept = piece[supported(positions[piece], counts[piece])]
        # Dropped points may have been a bridge between two objects.
        for rest in _connected(scored, kept):
            if len(rest) < LEAST_POINTS:
                break
            for thing in separated(scored.surface, rest, least=LEAST_POINTS):
                size = area(positions[thing])
                if size >= least_area:
                    yield thing, size


def _mean_score(scored: ScoredSurface, piece: Piece) -> float:
    return float(scored.scores[torch.from_numpy(piece)].mean())


def _passes_alone(scored: ScoredSurface, piece: Piece) -> bool:
    """Tells whether a piece would be found if the scene had nothing else."""
    alone = found_from(scored.scores[torch.from_numpy(piece)], compares=scored.question.compares)
    return alone < np.inf


def _instance(scored: ScoredSurface, piece: Piece, wish: Wish) -> Instance:
    everything = wish.frame.from_scene(scored.points.positions)
    points = everything[torch.from_numpy(piece)]
    box = fit_box(points.double().numpy(), wish.up)
    inside = torch.from_numpy(box.contains(everything.double().numpy()))
    matching = scored.scores >= scored.threshold
    return Instance(
        score=_mean_score(scored, piece),
        confidence=int((inside & matching).sum()) / max(int(inside.sum()), 1),
        visible=box,
        points=points,
        spacing=scored.surface.spacing / wish.frame.scene_per_unit,
        frame=wish.name,
        completed=complete(box, scored.surface, piece, wish.frame),
    )
