"""How well :meth:`Scene.find` answers: boxes against the true ones, and what is not there.

Found instances and true objects of one name are paired so that the distances of their centres are
least together; a true object without a partner has no overlap.
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
"""A true object counts as found if the box of its partner overlaps it so much."""


@dataclass(frozen=True)
class FindScore:
    """How well things were found; None where there is nothing to take a mean of.

    Attributes:
        box_iou: Mean IoU of the boxes of true objects and their partners, 0 without one.
        centre_error: Mean distance in metres of the centres of those that have a partner.
        recall: Share of true objects with an IoU of at least :data:`FOUND_IOU`.
        precision: Share of found instances that are such a partner.
        not_here_precision: Share of absent phrases among those that were answered "not here".
        not_here_recall: Share of absent phrases that were answered "not here".
    """

    box_iou: float | None
    centre_error: float | None
    recall: float | None
    precision: float | None
    not_here_precision: float | None
    not_here_recall: float | None


@dataclass(frozen=True)
class Pairs:
    """Found instances of one name beside the true objects.

    Attributes:
        ious: IoU of each true object's box with its partner's, 0 without one.
        errors: Distance of the centres of each pair, in metres.
        found: How many instances were found.
    """

    ious: list[float]
    errors: list[float]
    found: int


def score_finding(scene: Scene, truth: SceneTruth, head: str | None) -> FindScore:
    """Asks a scene for everything that is in it and for what is not.

    Args:
        scene: The scene.
        truth: What is in it.
        head: The head that is asked; None for the first that has a text tower.

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
    return FindScore(
        box_iou=mean_of(ious),
        centre_error=mean_of([error for one in pairs for error in one.errors]),
        recall=_share(hits, len(ious)),
        precision=_share(hits, sum(one.found for one in pairs)),
        not_here_precision=_share(rightly_absent, rightly_absent + wrongly_absent),
        not_here_recall=_share(rightly_absent, len(truth.absent)),
    )


def true_box(thing: TruthObject) -> OrientedBox:
    """Returns the box of a true object, in metres."""
    cos, sin = np.cos(thing.yaw), np.sin(thing.yaw)
    axes = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    return OrientedBox(np.array(thing.centre), axes, 2 * np.array(thing.half_size))


def pair(instances: Sequence[Instance], things: Sequence[TruthObject]) -> Pairs:
    """Pairs found instances with true objects, so that their centres are nearest together."""
    boxes = [true_box(thing) for thing in things]
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
