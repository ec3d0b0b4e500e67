"""The report of an evaluation: its numbers under their names, as JSON and as tables."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.box import SIMPLE
from rich.table import Table

from f3rm.errors import F3rmError, StrPath, as_path
from f3rm.evaluation.held_out import HeldOutScores
from f3rm.evaluation.multiview import MultiviewCosines
from f3rm.evaluation.query_scores import Answers, PresenceScore, mean_of, summarise
from f3rm.evaluation.surface_scores import SurfaceScores

Number = float | int | None
Numbers = dict[str, Number | dict[str, Number] | None]

_PAIRED = (
    ("localisation", "localisation"),
    ("localisation on the object", "localisation_mask"),
    ("mIoU, relevancy > 0.5", "miou"),
    ("mIoU, LangSplat's rule", "miou_minmax"),
    ("mIoU, best phrase wins", "miou_argmax"),
    ("average precision", "average_precision"),
    ("present above absent, per view", "presence_auroc"),
    ("present above absent, per scene", "presence_auroc_scene"),
)
_SINGLE = (
    ("point accuracy", "point_accuracy"),
    ("point accuracy, objects", "point_accuracy_objects"),
    ("point IoU", "point_iou"),
    ("found in 3D: box IoU", "find_box_iou"),
    ("found in 3D: centre error in m", "find_centre_error"),
    ("found in 3D: recall", "find_recall"),
    ("found in 3D: precision", "find_precision"),
    ("'not here': precision", "not_here_precision"),
    ("'not here': recall", "not_here_recall"),
    ("mIoU / teacher's mIoU", "miou_ratio"),
    ("PSNR in dB", "psnr"),
    ("PSNR in dB, plain Nerfacto", "nerfacto_psnr"),
)
_HEAD = (
    ("cosine", "feature_cosine"),
    ("constant", "feature_cosine_constant"),
    ("on points", "feature_cosine_same_points"),
    ("multi-view", "feature_cosine_teacher_mean"),
    ("ratio", "feature_cosine_ratio"),
    ("consistency", "consistency"),
    ("teacher's", "consistency_teacher"),
)


HEAD_NUMBERS = tuple(key for _, key in _HEAD)
"""Numbers of each head whose means over heads are at the top level."""


@dataclass(frozen=True)
class Evaluation:
    """All numbers of one run, and the settings that they were measured with.

    ``docs/evaluation.md`` explains the names; a number that was not measured is None.

    Attributes:
        numbers: The means.
        queries: One row per query: its text, its number of views, and its own numbers.
        heads: Numbers of each feature head.
        context: Versions, settings, run and dataset.
        notes: Why some numbers were not measured.
    """

    numbers: Mapping[str, Any]
    queries: tuple[Mapping[str, Any], ...]
    heads: Mapping[str, Mapping[str, Number]]
    context: Mapping[str, Any]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, with the means at the top level."""
        return {
            **self.numbers,
            "queries": [dict(row) for row in self.queries],
            "heads": {name: dict(numbers) for name, numbers in self.heads.items()},
            **self.context,
            "notes": list(self.notes),
        }

    def write_json(self, path: StrPath) -> None:
        """Writes :meth:`to_dict` as JSON, at once or not at all.

        Raises:
            F3rmError: If the file cannot be written.
        """
        path = as_path(path).expanduser().absolute()
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(text, encoding="utf-8")
            aside.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            msg = f"--json: {str(path)!r} cannot be written: {error}. Give another --json."
            raise F3rmError(msg) from error

    def tables(self) -> list[Table]:
        """Returns the tables to print: queries, means beside the teacher's, heads."""
        tables = [self._means()]
        if self.queries:
            tables.insert(0, self._per_query())
        if self.heads:
            tables.append(self._per_head())
        return tables

    def _per_query(self) -> Table:
        table = _table("Queries on held-out views (2D: the teacher's answer)", "query")
        for column in ("views", "hit", "2D", "IoU", "2D", "AP", "2D", "points"):
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.queries:
            pairs = [
                shown(row.get(f"{who}{name}"), digits=2)
                for name in ("localisation", "miou", "average_precision")
                for who in ("", "teacher_")
            ]
            points = shown(row["point_iou"], digits=2)
            table.add_row(row["text"], str(row["views"]), *pairs, points)
        return table

    def _means(self) -> Table:
        table = _table("Means", "")
        for column in ("field", "2D teacher"):
            table.add_column(column, justify="right")
        for label, name in _PAIRED:
            if self.numbers[name] is not None:
                teacher = self.numbers[f"teacher_{name}"]
                table.add_row(label, shown(self.numbers[name]), shown(teacher))
        for label, name in _SINGLE:
            if self.numbers[name] is not None:
                table.add_row(label, shown(self.numbers[name]), "")
        return table

    def _per_head(self) -> Table:
        table = _table("Features on held-out views (cosine)", "head")
        for label, _ in _HEAD:
            table.add_column(label, justify="right")
        for name, numbers in self.heads.items():
            table.add_row(name, *(shown(numbers[key]) for _, key in _HEAD))
        return table


def _table(title: str, first: str) -> Table:
    table = Table(
        title=title, title_justify="left", box=SIMPLE, pad_edge=False, padding=(0, 1, 0, 0)
    )
    table.add_column(first, min_width=len(first) + 1)
    return table


def query_rows(scores: HeldOutScores, surfaces: SurfaceScores) -> tuple[dict[str, Any], ...]:
    """Returns one row per query: the field's numbers, the teacher's, and the points' IoU."""
    if scores.field is None:
        return ()
    rows: list[dict[str, Any]] = []
    for number, mine in enumerate(scores.field.queries):
        row = {"text": mine.text, "views": len(mine.pairs), **mine.numbers()}
        if scores.teacher is not None:
            numbers = scores.teacher.queries[number].numbers()
            row |= {f"teacher_{name}": value for name, value in numbers.items()}
        rows.append({**row, "point_iou": surfaces.asked.iou[number] if surfaces.asked else None})
    return tuple(rows)


def query_summary(scores: HeldOutScores, surfaces: SurfaceScores) -> Numbers:
    """Returns the means of the field's answers, and the teacher's as ``teacher_...``."""
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
    """Returns ``value / reference``; None if one is None or the reference is not positive."""
    if value is None or reference is None or reference <= 0:
        return None
    return value / reference


def shown(value: Number, *, digits: int = 3) -> str:
    """Formats a number for a table; ``-`` for one that was not measured."""
    return "-" if value is None else f"{value:.{digits}f}"
