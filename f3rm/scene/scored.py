"""Surface points with the scores of a query, and the threshold that cuts them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.language.questions import Question
from f3rm.language.threshold import found_from
from f3rm.scene.surface import Surface, SurfacePoints


@dataclass(frozen=True)
class ScoredSurface:
    """A surface with the scores of a query.

    Attributes:
        surface: The surface, in the scene frame.
        question: The query.
        scores: Its smoothed score at each point.
        threshold: The least score of a matching point; infinity where none can match.
        is_automatic: Whether the threshold was chosen from the scores, not given.
    """

    surface: Surface
    question: Question
    scores: Float[Tensor, " points"]
    threshold: float
    is_automatic: bool

    @property
    def points(self) -> SurfacePoints:
        """The surface's points."""
        return self.surface.points


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
        chosen = torch.inf if question.unknown else found_from(smooth, compares=compares)
    return ScoredSurface(surface, question, smooth, chosen, is_automatic=threshold is None)
