"""Scores :meth:`Scene.find`: found boxes against true ones, and "not here" for absent phrases.

Found instances and true objects of one name are paired to minimise the sum of the distances between
their centres; a true object without a partner has an IoU of 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from f3rm.evaluation.query_scores import mean_of
from f3rm.scene.boxes import OrientedBox, box_iou
from f3rm.scene.found import Instance
from f3rm.scene.scene import Scene
from f3rm.synthetic.truth import SceneTruth, TruthObject

FOUND_IOU = 0.25
"""A true object is found if its partner's box has at least this IoU with its own."""


FIND_NUMBERS = (
    "find_box_iou",
    "find_centre_error",
    "find_recall",
    "find_precision",
    "not_here_precision",
    "not_here_recall",
)
"""The numbers of :func:`score_finding`; ``docs/evaluation.md`` defines them."""


@dataclass(frozen=True)
class Pairs:
    """Found instances and true objects of one name, paired.

    Attributes:
        ious: IoU of each true object's box with its partner's, 0 without one.
        errors: Distance between the centres of each pair, in metres.
        found: Number of found instances.
    """

    ious: list[float]
    errors: list[float]
    found: int


def score_finding(scene: Scene, truth: SceneTruth, head: str | None) -> dict[str, float | None]:
    """Asks a scene for every query of its truth and for every absent phrase.

    Args:
        scene: The scene.
        truth: The scene's truth.
        head: The head to ask; None takes the first with a text tower.

    Returns:
        The numbers by the names in :data:`FIND_NUMBERS`; None for a mean over nothing. The centre
        error is in metres.

    Raises:
        F3rmError: If the head cannot be asked.
    """
    pairs: list[Pairs] = []
    for query in truth.queries:
        found = scene.find(query.text, frame="metres", head=head)
        pairs.append(pair(found.instances, [truth.objects[number] for number in query.ids]))
    wrongly_absent = sum(not one.found for one in pairs)
    rightly_absent = sum(not scene.find(text, head=head) for text in truth.absent)
    ious = [iou for one in pairs for iou in one.ious]
    hits = sum(iou >= FOUND_IOU for iou in ious)
    return {
        "find_box_iou": mean_of(ious),
        "find_centre_error": mean_of([error for one in pairs for error in one.errors]),
        "find_recall": _share(hits, len(ious)),
        "find_precision": _share(hits, sum(one.found for one in pairs)),
        "not_here_precision": _share(rightly_absent, rightly_absent + wrongly_absent),
        "not_here_recall": _share(rightly_absent, len(truth.absent)),
    }


def true_box(true: TruthObject) -> OrientedBox:
    """Returns the box of a true object, in metres."""
    cos, sin = np.cos(true.yaw), np.sin(true.yaw)
    axes = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return OrientedBox(np.array(true.centre), axes, 2 * np.array(true.half_size))


def pair(instances: Sequence[Instance], objects: Sequence[TruthObject]) -> Pairs:
    """Pairs found instances with true objects, the sum of their centres' distances being least."""
    boxes = [true_box(true) for true in objects]
    distances = np.array(
        [[np.linalg.norm(box.centre - one.centre) for one in instances] for box in boxes]
    ).reshape(len(boxes), len(instances))
    rows, columns = linear_sum_assignment(distances)
    ious = [0.0] * len(boxes)
    for row, column in zip(rows, columns, strict=True):
        ious[row] = box_iou(boxes[row], instances[column].box)
    return Pairs(ious, distances[rows, columns].tolist(), len(instances))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
