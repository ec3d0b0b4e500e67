"""Scores at surface points of held-out views: the field itself, and field against teacher.

The field is evaluated at the points, without rendering, so that its density plays no part; a splat
as ``Scene.hidden`` evaluates it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from f3rm.evaluation.metrics import fixed_mask, iou, require_finite
from f3rm.evaluation.multiview import (
    MultiviewCosines,
    SeenView,
    SurfacePoints,
    compare_views,
    surface_points,
)
from f3rm.evaluation.subject import Subject
from f3rm.evaluation.vocabulary import Language, Vocabulary
from f3rm.language.relevancy import AnyQuery, similarity_from_hidden
from f3rm.scene.frames import FileCamera
from f3rm.scene.run_loading import Split
from f3rm.scene.source import Source
from f3rm.store.progress import track
from f3rm.synthetic.truth import SceneTruth

NUM_POINTS = 4096
"""Number of surface points; drawn twice, evenly over pixels and evenly over objects."""


@dataclass(frozen=True)
class SurfaceScore:
    """The field's answers at surface points.

    Attributes:
        accuracy: Share of points whose best label (query or surface name) is true of them.
        accuracy_objects: The same over points on objects that queries name.
        iou: Per query, of the points with a relevancy above 0.5; None if it is true of no point.
    """

    accuracy: float | None
    accuracy_objects: float | None
    iou: tuple[float | None, ...]


def point_scores(
    source: Source, query: AnyQuery, points: SurfacePoints
) -> Float[np.ndarray, "texts points"]:
    """Returns the relevancy of every text at points; 0 where a splat has nothing."""

    def scores(hidden: Tensor) -> Tensor:
        return similarity_from_hidden(hidden.to(query.prompts), query)

    everywhere = torch.ones(len(points.positions), dtype=torch.bool)
    texts = query.prompts.shape[1]
    return source.values_at(points.positions, everywhere, scores, texts).T.numpy()


def score_points(
    scores: Float[np.ndarray, "texts points"], points: SurfacePoints, vocabulary: Vocabulary
) -> SurfaceScore:
    """Compares scores at points with the objects that the points are on.

    Args:
        scores: Relevancy of every text of the vocabulary.
        points: The points.
        vocabulary: The texts.

    Raises:
        ScoreError: If a score is not finite.
    """
    require_finite(scores, "The scores of surface points")
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


@dataclass(frozen=True)
class SurfaceScores:
    """Scores at surface points.

    Attributes:
        asked: The field's answers at points drawn evenly over objects; None without language.
        heads: Cosines at points drawn evenly over pixels, by head; empty without a feature cache.
    """

    asked: SurfaceScore | None = None
    heads: dict[str, MultiviewCosines] = field(default_factory=dict)


def score_surfaces(
    subject: Subject,
    truth: SceneTruth,
    language: Language | None,
    *,
    seed: int,
    show_progress: bool = False,
) -> SurfaceScores:
    """Measures the field and its teacher at surface points of the held-out views.

    Args:
        subject: What is evaluated.
        truth: The dataset's truth.
        language: The embedded phrases; None without a text tower.
        seed: Seed of the points.
        show_progress: Whether a bar counts training views.

    Raises:
        DatasetError: If the truth is damaged, or a camera is no perspective camera.
    """
    source = subject.source
    scale = source.frames.get("metres").scene_per_unit
    held_out = list(seen_views(subject.held_out, truth, scale))
    asked = None
    if language is not None:
        points = surface_points(held_out, NUM_POINTS, seed=seed, per_object=True)
        answers = point_scores(source, language.hidden_query, points)
        asked = score_points(answers, points, language.vocabulary)
    points = surface_points(held_out, NUM_POINTS, seed=seed, per_object=False)
    heads: dict[str, MultiviewCosines] = {}
    for name in (name for name in source.heads if name in subject.stores):
        training = track(
            seen_views(subject.train, truth, scale),
            total=len(subject.train.names),
            label=f"training views ({name})",
            show=show_progress,
        )
        heads[name] = compare_views(
            source, name, subject.stores[name], points, held_out=held_out, training=training
        )
    return SurfaceScores(asked, heads)


def seen_views(split: Split, truth: SceneTruth, scene_per_metre: float) -> Iterator[SeenView]:
    """Yields the photographs of a split with their truth in the scene frame, one at a time."""
    for index, name in enumerate(split.names):
        view = truth.view(name)
        height, width = view.ids.shape
        view = replace(view, depth=view.depth * np.float32(scene_per_metre))
        yield SeenView(name, FileCamera(split.cameras, index, (height, width)), view)
