"""The report of an evaluation: its rows, and its numbers under their names, as JSON."""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.table import Table

from f3rm.errors import F3rmError, StrPath, as_path
from f3rm.evaluation.finding import Finding
from f3rm.evaluation.held_out import HeldOutScores
from f3rm.evaluation.means import ANSWERS, AUROCS, MEANS, mean_over, no_interval
from f3rm.evaluation.multiview import MultiviewCosines
from f3rm.evaluation.prompts import absent_table, confusion
from f3rm.evaluation.query_scores import mean_of
from f3rm.evaluation.surface_scores import SurfaceScores
from f3rm.evaluation.tables import Number, answer_tables, head_table, means_table, query_table

Row = dict[str, Any]

HEAD_NUMBERS = (
    "feature_cosine_bilinear",
    "feature_cosine_constant",
    "feature_cosine_same_points",
    "feature_cosine_teacher_mean",
    "feature_cosine_ratio",
    "consistency",
    "consistency_teacher",
)
"""Numbers of each head whose means over heads are at the top level."""


@dataclass(frozen=True)
class Evaluation:
    """All numbers of one run, and the settings that they were measured with.

    ``docs/evaluation.md`` explains the names; a number that was not measured is None.

    Attributes:
        numbers: The means, their intervals, and counts of answers.
        rows: What the means are over: a list of ``queries``, of ``absent`` prompts and of
            ``views``.
        heads: Numbers of each feature head.
        context: Versions, settings, run and dataset.
        notes: Why some numbers were not measured.
    """

    numbers: Mapping[str, Any]
    rows: Mapping[str, Sequence[Row]]
    heads: Mapping[str, Mapping[str, Number]]
    context: Mapping[str, Any]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, with the means at the top level."""
        return {
            **self.numbers,
            **{name: [dict(row) for row in rows] for name, rows in self.rows.items()},
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
        """Returns the tables to print: queries, means beside the teacher's, answers, heads."""
        tables = [means_table(self.numbers)]
        if self.rows["queries"]:
            tables.insert(0, query_table(self.rows["queries"]))
        tables += answer_tables(self.numbers)
        if self.heads:
            tables.append(head_table(self.heads))
        return tables


def collect_rows(
    scores: HeldOutScores, surfaces: SurfaceScores, finding: Finding | None, views: Sequence[str]
) -> dict[str, list[Row]]:
    """Returns the rows that all means are over.

    Args:
        scores: Of the held-out views.
        surfaces: Of surface points.
        finding: Answers of :meth:`Scene.find`; None without truth or language.
        views: Names of the held-out views.
    """
    rows: dict[str, list[Row]] = {"queries": [], "absent": [], "views": _view_rows(scores, views)}
    if scores.field is None:
        return rows
    answers = {"": scores.field, "teacher_": scores.teacher}
    for number, query in enumerate(scores.field.queries):
        row: Row = {"text": query.text, "views": len(query.pairs)}
        for who in ANSWERS:
            if (known := answers[who]) is not None:
                mine = known.queries[number]
                numbers = {**mine.numbers(), "max_relevancies": list(mine.max_relevancies)}
                row |= {f"{who}{name}": value for name, value in numbers.items()}
        row["point_iou"] = surfaces.asked.iou[number] if surfaces.asked else None
        rows["queries"].append(row | (finding.queries[number] if finding else {}))
    for number, absent in enumerate(scores.field.absent):
        prompt = absent.prompt
        row = {"text": prompt.text, "kind": prompt.kind, "shared_words": prompt.shared_words}
        for who in ANSWERS:
            if (known := answers[who]) is not None:
                mine = known.absent[number]
                row[f"{who}max_relevancies"] = list(mine.max_relevancies)
                row[f"{who}found_share"] = mine.found_share
        rows["absent"].append(row | (finding.absent[number] if finding else {}))
    return rows


def _view_rows(scores: HeldOutScores, views: Sequence[str]) -> list[Row]:
    rows: list[Row] = []
    for number, (view, psnr) in enumerate(zip(views, scores.psnr, strict=True)):
        heads = [cosines[number] for cosines in scores.cosines.values()]
        rows.append(
            {
                "view": view,
                "psnr": psnr,
                "feature_cosine_bilinear": mean_of([head.rendered for head in heads]),
                "feature_cosine_constant": mean_of([head.constant for head in heads]),
            }
        )
    return rows


def summarise(
    rows: Mapping[str, Sequence[Row]],
    surfaces: SurfaceScores,
    heads: Mapping[str, Mapping[str, Number]],
) -> dict[str, Any]:
    """Returns all numbers of the field, and the teacher's as ``teacher_...``, with intervals.

    Args:
        rows: From :func:`collect_rows`.
        surfaces: Scores of surface points.
        heads: From :func:`head_numbers`.
    """
    over_heads = {name: mean_of([of[name] for of in heads.values()]) for name in HEAD_NUMBERS}
    means = {name: mean_over(name, [rows]) for name in (*MEANS, *AUROCS)}
    values: dict[str, Any] = {name: mean.value if mean else None for name, mean in means.items()}
    for who in ANSWERS:
        for which, kind in (("present", "queries"), ("absent", "absent")):
            maxima = [best for row in rows[kind] for best in row.get(f"{who}max_relevancies", ())]
            values[f"{who}{which}_max_relevancy"] = _distribution(maxima)
    asked, queries, absent = surfaces.asked, rows["queries"], rows["absent"]
    return {
        **over_heads,
        **values,
        "point_accuracy": asked.accuracy if asked else None,
        "point_accuracy_objects": asked.accuracy_objects if asked else None,
        "pairs": sum(row["views"] for row in queries),
        "intervals": {
            name: mean.interval() if mean else no_interval(name) for name, mean in means.items()
        },
        "certainty": confusion(queries, absent),
        "absent_table": absent_table(queries, absent),
    }


def _distribution(values: Sequence[float]) -> dict[str, Number] | None:
    if not values:
        return None
    return {
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "max": float(np.max(values)),
    }


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
        "feature_cosine_bilinear": mean_of([cosine.rendered for cosine in cosines]),
        "feature_cosine_constant": mean_of([cosine.constant for cosine in cosines]),
        "feature_cosine_same_points": same,
        "feature_cosine_teacher_mean": mean,
        "feature_cosine_ratio": ratio(same, mean),
        "consistency": points.consistency if points else None,
        "consistency_teacher": points.consistency_teacher if points else None,
        "multiview_points": points.points if points else None,
        "multiview_views_per_point": points.views_per_point if points else None,
    }


def ratio(value: float | None, reference: float | None) -> float | None:
    """Returns ``value / reference``; None if one is None or the reference is not positive."""
    if value is None or reference is None or reference <= 0:
        return None
    return value / reference
