"""Scores :meth:`Scene.find`: found boxes against true ones, and answers to absent prompts.

Found instances and true objects of one name are paired to minimise the sum of the distances between
their centres; a true object without a partner has an IoU of 0. Boxes of shapes that look the same
from all sides are compared at the yaw where they overlap most: their true yaw cannot be seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from f3rm.evaluation.query_scores import mean_of
from f3rm.evaluation.surface_scores import seen_views
from f3rm.language.questions import QuestionOptions
from f3rm.language.relevancy import Rule
from f3rm.scene.boxes import OrientedBox, box_iou, fit_box
from f3rm.scene.found import Instance
from f3rm.scene.frames import Frame
from f3rm.scene.scene import SPACING, Scene
from f3rm.synthetic.truth import SceneTruth, TruthObject

ROUND_SHAPES = ("ball", "cylinder", "cone", "ring", "bowl", "bottle")
"""Shapes without a visible yaw."""

_YAW_STEPS = np.radians(np.arange(0, 90, 5))
"""From a box's own yaw; a quarter turn exchanges the sides of a round object's square footprint."""
_PIXEL_STEP = 2
"""Every so many rows and columns of a view give the visible points of the ceiling."""


@dataclass(frozen=True)
class Pairs:
    """Found instances and true objects of one name, paired.

    Attributes:
        ious: IoU of each true object's box with its partner's, 0 without one.
        visible: The same of the box around what views see of the partner.
        errors: Distance between the centres of each pair, in metres.
        found: Number of found instances.
    """

    ious: list[float]
    visible: list[float]
    errors: list[float]
    found: int


@dataclass(frozen=True)
class Finding:
    """What :meth:`Scene.find` answered, as additions to the rows of an evaluation.

    Attributes:
        queries: One per query: certainty, number of instances, IoUs of boxes, errors of centres.
        absent: One per absent prompt.
    """

    queries: tuple[dict[str, Any], ...]
    absent: tuple[dict[str, Any], ...]


def score_finding(
    scene: Scene, truth: SceneTruth, head: str | None, rule: Rule | None = None
) -> Finding:
    """Asks a scene for every query of its truth and for every absent prompt.

    Args:
        scene: The scene.
        truth: The scene's truth.
        head: The head to ask; None takes the first with a text tower.
        rule: How phrases are scored; None as :meth:`Scene.find` does.

    Raises:
        F3rmError: If the head cannot be asked.
    """
    limits = ceilings(scene, truth)
    options = QuestionOptions(head=head)
    if rule is not None:
        options["rule"] = rule

    def asked(text: str) -> tuple[tuple[Instance, ...], dict[str, Any]]:
        found = scene.find(text, frame="metres", **options)
        plain = {"certainty": found.certainty, "reason": found.reason, "instances": len(found)}
        return found.instances, {**plain, "best_score": found.best_score}

    queries: list[dict[str, Any]] = []
    for query in truth.queries:
        instances, row = asked(query.text)
        pairs = pair(instances, [truth.objects[number] for number in query.ids])
        row |= {"box_ious": pairs.ious, "visible_ious": pairs.visible}
        row["matched"] = len(pairs.errors)
        row["centre_error"] = mean_of(pairs.errors)
        queries.append({**row, "box_iou_ceilings": [limits[number] for number in query.ids]})
    return Finding(tuple(queries), tuple(asked(prompt.text)[1] for prompt in truth.absent))


def true_box(true: TruthObject) -> OrientedBox:
    """Returns the box of a true object, in metres."""
    return _turned(true, true.yaw)


def _turned(true: TruthObject, yaw: float) -> OrientedBox:
    cos, sin = np.cos(yaw), np.sin(yaw)
    axes = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return OrientedBox(np.array(true.centre), axes, 2 * np.array(true.half_size))


def overlap(true: TruthObject, box: OrientedBox) -> float:
    """Returns the IoU of a true object's box with another, of round shapes at the best yaw.

    Args:
        true: The object.
        box: The other box, in metres.
    """
    yaws = box.yaw + _YAW_STEPS if true.shape in ROUND_SHAPES else []
    return max(box_iou(_turned(true, yaw), box) for yaw in (true.yaw, *yaws))


def pair(instances: Sequence[Instance], objects: Sequence[TruthObject]) -> Pairs:
    """Pairs found instances with true objects, the sum of their centres' distances being least."""
    distances = np.array(
        [
            [np.linalg.norm(np.array(true.centre) - one.centre) for one in instances]
            for true in objects
        ]
    ).reshape(len(objects), len(instances))
    rows, columns = linear_sum_assignment(distances)
    ious, visible = [0.0] * len(objects), [0.0] * len(objects)
    for row, column in zip(rows, columns, strict=True):
        ious[row] = overlap(objects[row], instances[column].box)
        visible[row] = overlap(objects[row], instances[column].visible)
    return Pairs(ious, visible, distances[rows, columns].tolist(), len(instances))


def ceilings(scene: Scene, truth: SceneTruth) -> list[float]:
    """Returns the IoU that each true object's box can reach, by the way in which boxes are fitted.

    It is that of a box around the true surface points that training views see, one per cell of the
    grid in which instances are found: perfect geometry and language. 0 for what nobody sees.
    """
    dataset = scene.frames.get("dataset").scene_from_frame
    frame = Frame(dataset @ np.linalg.inv(truth.metres_from_dataset))
    seen: dict[int, list[np.ndarray]] = {}
    for view in seen_views(scene.run.train, truth, frame.scene_per_unit):
        ids = view.truth.ids[::_PIXEL_STEP, ::_PIXEL_STEP]
        y, x = np.nonzero(ids >= 0)
        xy = torch.from_numpy(_PIXEL_STEP * np.stack((x, y), axis=-1)).float()
        depth = torch.from_numpy(view.truth.depth[::_PIXEL_STEP, ::_PIXEL_STEP][y, x])
        points = frame.from_scene(view.camera.unproject(xy, depth).double()).numpy()
        for number in np.unique(ids[y, x]):
            seen.setdefault(int(number), []).append(points[ids[y, x] == number])
    cell = SPACING / frame.scene_per_unit
    return [_ceiling(true, seen.get(true.id, []), cell) for true in truth.objects]


def _ceiling(true: TruthObject, seen: list[Float[np.ndarray, "_ 3"]], cell: float) -> float:
    points = np.concatenate([np.zeros((0, 3)), *seen])
    if true.kind == "surface" or len(points) < 3:
        return 0.0
    _, first = np.unique(np.floor(points / cell).astype(int), axis=0, return_index=True)
    kept = points[first] if len(first) >= 3 else points
    return overlap(true, fit_box(kept, np.array([0.0, 0.0, 1.0])))
