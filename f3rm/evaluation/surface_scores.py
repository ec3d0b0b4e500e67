"""The field asked at points of the scene's surfaces: no rendering, no density."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from f3rm.evaluation.metrics import fixed_mask, iou, require_finite
from f3rm.evaluation.multiview import SurfacePoints
from f3rm.evaluation.vocabulary import Vocabulary
from f3rm.language.relevancy import HiddenQuery, similarity_from_hidden
from f3rm.model import FeatureFieldModel


@dataclass(frozen=True)
class SurfaceScore:
    """What the field knows at surface points.

    Attributes:
        accuracy: Share of points whose best label (query or surface name) is true of them.
        accuracy_objects: The same of the points on what the queries name.
        iou: Per query, of the points that the fixed rule finds; None where no point shows it.
    """

    accuracy: float | None
    accuracy_objects: float | None
    iou: tuple[float | None, ...]


@torch.no_grad()
def point_scores(
    model: FeatureFieldModel, query: HiddenQuery, points: SurfacePoints
) -> Float[np.ndarray, "texts points"]:
    """Returns the relevancy of every text at points."""
    positions = points.positions.to(model.device)
    parts = [
        similarity_from_hidden(model.feature_field.hidden(p).to(query.gram), query)
        for p in positions.split(1 << 14)
    ]
    return torch.cat(parts).T.float().cpu().numpy()


def score_points(
    scores: Float[np.ndarray, "texts points"], points: SurfacePoints, vocabulary: Vocabulary
) -> SurfaceScore:
    """Compares scores at points with what the points lie on.

    Args:
        scores: Relevancy of every text.
        points: The points.
        vocabulary: The texts.

    Raises:
        ScoreError: If a score is not finite.
    """
    require_finite(scores, "score_points: the scores of surface points")
    ids = points.ids.numpy()
    truth = np.stack([np.isin(ids, label.ids) for label in vocabulary.labels])  # (labels, points)
    best = scores[: len(vocabulary.labels)].argmax(axis=0)
    right = truth[best, np.arange(len(ids))]
    named, asked = truth.any(axis=0), truth[: len(vocabulary.queries)].any(axis=0)
    found = fixed_mask(scores)
    return SurfaceScore(
        accuracy=_share(right[named]),
        accuracy_objects=_share(right[asked]),
        iou=tuple(
            iou(found[number], truth[number]) if truth[number].any() else None
            for number in range(len(vocabulary.queries))
        ),
    )


def _share(right: np.ndarray) -> float | None:
    return float(right.mean()) if len(right) else None
