"""Surface points with the scores of a query, and the threshold that cuts them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.colours.palette import best_query_index
from f3rm.language.questions import Question
from f3rm.language.threshold import RELEVANCY_FLOOR, found_from, otsu_threshold
from f3rm.scene.finding.pieces import connected
from f3rm.scene.surface import Surface, SurfacePoints

_EXAMPLE_RISE = 0.6
"""Least rise of a match above the floor, relative to the example's own. Of one clicked object on
a tabletop (seed 10, TINYCLIP) the mean IoU in held-out views is 0.32 with 0, 0.51 with 0.6."""

_SURE_PIECES = 8
"""Only the surroundings of so many pieces, the largest, are looked at."""
_SURE_POINTS = 3
"""Fewest points of such a piece."""
_AROUND = 2.0
"""What is around a piece, in lengths of the longest side of its box."""
_CUT_OFF = 2.0
"""The floor cuts a thing in two if the thing has so many times the points that are above it. Rooms
10, 11 and 14: 43 of 61 objects are found instead of 39, of a tabletop all as before."""


@dataclass(frozen=True)
class ScoredSurface:
    """A surface with the scores of a query.

    Attributes:
        surface: The surface, in the scene frame.
        question: The query.
        scores: Its smoothed score at each point.
        threshold: The least score of a matching point; infinity where none can match.
        is_automatic: Whether the threshold was chosen from the scores, not given.
        rival: The competing query that fits all of its matches better; empty for none.
        rivals: The competing queries that fit some of its matches better.
    """

    surface: Surface
    question: Question
    scores: Float[Tensor, " points"]
    threshold: float
    is_automatic: bool
    rival: str = ""
    rivals: tuple["ScoredSurface", ...] = ()

    @property
    def points(self) -> SurfacePoints:
        """The surface's points."""
        return self.surface.points

    def on(self, surface: Surface) -> "ScoredSurface":
        """Scores another sampling of the surface, with the same thresholds and rivals."""
        asked = (self, *self.rivals)
        again = [score_surface(surface, each.question, each.threshold) for each in asked]
        return replace(competing(again)[0], is_automatic=self.is_automatic)


def score_surface(surface: Surface, question: Question, threshold: float | None) -> ScoredSurface:
    """Scores surface points and chooses the threshold.

    Args:
        surface: The surface, in the scene frame.
        question: The query.
        threshold: The least score of a matching point; None to choose it from the scores.
    """
    points = surface.points
    scores = question.scores(points.hidden.to(question.device)).float().cpu()
    if not len(scores):
        return ScoredSurface(surface, question, scores, torch.inf, is_automatic=True)
    smooth, chosen = surface.smoothed(scores), threshold
    if chosen is None:
        compares = question.compares
        present = question.is_present
        chosen = found_from(smooth, compares=compares, is_present=present)
        if present:
            rise = float(smooth.max()) - RELEVANCY_FLOOR
            chosen = max(chosen, RELEVANCY_FLOOR + _EXAMPLE_RISE * rise)
        elif compares and chosen < torch.inf:
            chosen = whole_threshold(surface, smooth, chosen)
        chosen = torch.inf if question.unknown else chosen
    return ScoredSurface(surface, question, smooth, chosen, is_automatic=threshold is None)


def whole_threshold(surface: Surface, scores: Float[Tensor, " points"], threshold: float) -> float:
    """Returns a lower threshold where the given one keeps less than half of a thing.

    A relevancy above the floor tells that a thing is there, not how far it goes: of a fox, CLIP's
    phrases may be sure of the face alone. Otsu's threshold parts what was found, with what is
    around it, in two; the thing is the upper part. It is taken only if most of that was cut off.

    Args:
        surface: The surface.
        scores: The smoothed relevancy of each point.
        threshold: The least relevancy of a point that is of a thing for sure.
    """
    sure = np.flatnonzero((scores >= threshold).numpy())
    positions = surface.points.positions.numpy()
    near = np.zeros(len(positions), dtype=bool)
    for piece in connected(sure, surface.neighbours, len(positions))[:_SURE_PIECES]:
        if len(piece) >= _SURE_POINTS:
            low, high = positions[piece].min(axis=0), positions[piece].max(axis=0)
            margin = _AROUND * (high - low).max()
            near |= ((positions >= low - margin) & (positions <= high + margin)).all(axis=1)
    around = scores[torch.from_numpy(near)]
    if not len(around):
        return threshold
    lower = otsu_threshold(around)
    thing, kept = int((around >= lower).sum()), int((around >= threshold).sum())
    return lower if thing >= _CUT_OFF * kept else threshold


def competing(answers: Sequence[ScoredSurface]) -> list[ScoredSurface]:
    """Leaves each point to the best of the queries that it matches; the others lose it.

    Args:
        answers: The same points, scored for several queries.
    """
    scores = torch.stack([each.scores for each in answers], dim=-1)
    owners = best_query_index(scores, tuple(each.threshold for each in answers))
    left: list[ScoredSurface] = []
    for number, each in enumerate(answers):
        lost = (each.scores >= each.threshold) & (owners != number)
        if not bool(lost.any()):
            left.append(each)
        elif bool((owners == number).any()):
            below = torch.tensor(each.threshold).nextafter(torch.tensor(-torch.inf))
            rivals = tuple(answers[int(other)] for other in owners[lost].unique())
            scores_left = torch.where(lost, below, each.scores)
            left.append(replace(each, scores=scores_left, rivals=rivals))
        else:
            winner = answers[int(owners[lost].mode().values)].question.label
            left.append(replace(each, threshold=torch.inf, rival=winner))
    return left
