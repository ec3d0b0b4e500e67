"""Surface points of a run's held-out views, and everything that is measured on them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from f3rm.evaluation.multiview import (
    MultiviewCosines,
    SeenView,
    compare_views,
    surface_points,
)
from f3rm.evaluation.surface_scores import SurfaceScore, point_scores, score_points
from f3rm.evaluation.vocabulary import Language
from f3rm.model import FeatureFieldModel
from f3rm.scene.frames import FileCamera, Frame, scene_from_dataset
from f3rm.scene.run_loading import LoadedRun, Split
from f3rm.store.progress import track
from f3rm.synthetic.truth import SceneTruth

NUM_POINTS = 4096
"""Surface points that are drawn: once evenly over pixels, once evenly over objects."""


@dataclass(frozen=True)
class SurfaceScores:
    """What surface points gave.

    Attributes:
        asked: Answers of the field at points drawn evenly over objects; None without language.
        heads: Cosines at points drawn evenly over pixels, by head; empty without a cache.
    """

    asked: SurfaceScore | None = None
    heads: dict[str, MultiviewCosines] = field(default_factory=dict)


def scene_frame(run: LoadedRun, truth: SceneTruth) -> Frame:
    """Returns the frame that a run is trained in, against its dataset's metres.

    Raises:
        DatasetError: If transforms.json cannot be read.
    """
    scene = scene_from_dataset(run.manager.train_dataparser_outputs, run.data)
    return Frame(scene @ np.linalg.inv(truth.metres_from_dataset))


def score_surfaces(
    run: LoadedRun,
    model: FeatureFieldModel,
    truth: SceneTruth,
    language: Language | None,
    *,
    seed: int,
    show_progress: bool = False,
) -> SurfaceScores:
    """Measures the field and its teacher at surface points of the held-out views.

    Args:
        run: The run.
        model: Its model.
        truth: What its dataset shows.
        language: The phrases, or None where nothing can be asked.
        seed: Seed of the points.
        show_progress: Whether a bar counts training views.

    Raises:
        DatasetError: If the truth is damaged, or a camera is no perspective camera.
    """
    scale = scene_frame(run, truth).scene_per_unit
    held_out = list(seen_views(run.held_out, truth))
    asked = None
    if language is not None:
        points = surface_points(
            held_out, NUM_POINTS, seed=seed, per_object=True, scene_per_metre=scale
        )
        answers = point_scores(model, language.hidden_query, points)
        asked = score_points(answers, points, language.vocabulary)
    points = surface_points(
        held_out, NUM_POINTS, seed=seed, per_object=False, scene_per_metre=scale
    )
    heads: dict[str, MultiviewCosines] = {}
    for name in (name for name in model.heads if name in run.stores):
        training = track(
            seen_views(run.train, truth),
            total=len(run.train.names),
            label=f"training views ({name})",
            show=show_progress,
        )
        heads[name] = compare_views(
            model,
            name,
            run.stores[name],
            points,
            held_out=held_out,
            training=training,
            scene_per_metre=scale,
        )
    return SurfaceScores(asked, heads)


def seen_views(split: Split, truth: SceneTruth) -> Iterator[SeenView]:
    """Yields the photographs of a split with their truth, one at a time."""
    for index, name in enumerate(split.names):
        view = truth.view(name)
        height, width = view.ids.shape
        yield SeenView(name, FileCamera(split.cameras, index, (height, width)), view)
