"""From the parts of an evaluation to the numbers that are reported, under their names."""

from collections.abc import Mapping, Sequence

import numpy as np

from f3rm.evaluation.finding import FindScore
from f3rm.evaluation.held_out import HeldOutScores
from f3rm.evaluation.multiview import MultiviewCosines
from f3rm.evaluation.query_scores import (
    Answers,
    PresenceScore,
    QueryScore,
    mean_of,
    summarise,
)
from f3rm.evaluation.report import Number, QueryRow, query_numbers
from f3rm.evaluation.surfaces import SurfaceScores

Numbers = dict[str, Number | dict[str, Number] | None]

HEAD_NUMBERS = (
    "feature_cosine",
    "feature_cosine_constant",
    "feature_cosine_same_points",
    "feature_cosine_teacher_mean",
    "feature_cosine_ratio",
    "consistency",
    "consistency_teacher",
)
"""What is measured of every head; the top level has their means over heads."""


def query_rows(scores: HeldOutScores, surfaces: SurfaceScores) -> tuple[QueryRow, ...]:
    """Puts the field's and the teacher's numbers of each query side by side."""
    if scores.field is None:
        return ()
    field = scores.field.queries
    teacher: Sequence[QueryScore | None] = [None] * len(field)
    if scores.teacher is not None:
        teacher = scores.teacher.queries
    points: Sequence[float | None] = [None] * len(field)
    if surfaces.asked is not None:
        points = surfaces.asked.iou
    return tuple(
        QueryRow(
            text=mine.text,
            views=len(mine.pairs),
            field=query_numbers(mine),
            teacher=None if other is None else query_numbers(other),
            point_iou=share,
        )
        for mine, other, share in zip(field, teacher, points, strict=True)
    )


def query_summary(scores: HeldOutScores, surfaces: SurfaceScores) -> Numbers:
    """Returns the means of the field's and the teacher's answers."""
    field, teacher = _asked(scores.field), _asked(scores.teacher)
    numbers = {**field, **{f"teacher_{name}": value for name, value in teacher.items()}}
    asked = surfaces.asked
    return {
        **numbers,
        "miou_ratio": ratio(_miou(scores.field), _miou(scores.teacher)),
        "point_accuracy": asked.accuracy if asked else None,
        "point_accuracy_objects": asked.accuracy_objects if asked else None,
        "point_iou": mean_of(asked.iou) if asked else None,
    }


def _asked(answers: Answers | None) -> Numbers:
    presence = answers.presence if answers else PresenceScore.nothing()
    return {
        **summarise(answers.queries if answers else ()),
        "present_max_relevancy": _distribution(presence.present),
        "absent_max_relevancy": _distribution(presence.absent),
        "absent_found": presence.absent_share,
        "presence_auroc": presence.per_view,
        "presence_auroc_scene": presence.per_scene,
    }


def _miou(answers: Answers | None) -> float | None:
    return summarise(answers.queries)["miou"] if answers else None


def _distribution(values: np.ndarray) -> dict[str, Number] | None:
    if not len(values):
        return None
    mean, median, largest = values.mean(), np.median(values), values.max()
    return {"mean": float(mean), "median": float(median), "max": float(largest)}


def head_numbers(
    scores: HeldOutScores, surfaces: SurfaceScores, names: Sequence[str]
) -> dict[str, dict[str, Number]]:
    """Returns the numbers of every head, by name; see :data:`HEAD_NUMBERS`."""
    return {name: _head(scores, surfaces.heads.get(name), name) for name in names}


def _head(scores: HeldOutScores, points: MultiviewCosines | None, name: str) -> dict[str, Number]:
    cosines = scores.cosines.get(name, [])
    same = points.same_points if points else None
    mean = points.teacher_mean if points else None
    return {
        "feature_cosine": mean_of([cosine.rendered for cosine in cosines]),
        "feature_cosine_constant": mean_of([cosine.constant for cosine in cosines]),
        "feature_cosine_same_points": same,
        "feature_cosine_teacher_mean": mean,
        "feature_cosine_ratio": ratio(same, mean),
        "consistency": points.consistency if points else None,
        "consistency_teacher": points.consistency_teacher if points else None,
        "multiview_points": points.points if points else None,
        "multiview_views_per_point": points.views_per_point if points else None,
    }


def head_summary(heads: Mapping[str, Mapping[str, Number]]) -> Numbers:
    """Returns the means over heads."""
    return {name: mean_of([numbers[name] for numbers in heads.values()]) for name in HEAD_NUMBERS}


def ratio(value: float | None, reference: float | None) -> float | None:
    """Returns ``value / reference``; None where one is missing or the reference not positive."""
    if value is None or reference is None or reference <= 0:
        return None
    return value / reference


def find_summary(score: FindScore | None) -> Numbers:
    """Returns how well things were found in 3D, and what is absent recognised."""
    return {
        "find_box_iou": score.box_iou if score else None,
        "find_centre_error": score.centre_error if score else None,
        "find_recall": score.recall if score else None,
        "find_precision": score.precision if score else None,
        "not_here_precision": score.not_here_precision if score else None,
        "not_here_recall": score.not_here_recall if score else None,
    }
