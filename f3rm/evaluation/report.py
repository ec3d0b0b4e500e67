"""What an evaluation found: as JSON and as a table."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from f3rm.errors import F3rmError, StrPath, as_path
from f3rm.evaluation.query_scores import QueryScore

Number = float | int | None

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


@dataclass(frozen=True)
class QueryRow:
    """A query's numbers.

    Attributes:
        text: The query.
        views: Held-out views that show it.
        field: The field's numbers, as :func:`query_numbers` names them.
        teacher: The 2D teacher's, or None where it was not measured.
        point_iou: Of surface points; None where none shows it.
    """

    text: str
    views: int
    field: Mapping[str, Number]
    teacher: Mapping[str, Number] | None
    point_iou: Number


@dataclass(frozen=True)
class Evaluation:
    """All numbers of one run, and what they were made with.

    Attributes:
        numbers: The means, by the names that ``docs/evaluation.md`` explains; None where something
            was not measured.
        queries: One row per query.
        heads: Numbers of each feature head.
        context: Versions, settings, run and dataset.
        notes: What was not measured, and why.
    """

    numbers: Mapping[str, Any]
    queries: tuple[QueryRow, ...]
    heads: Mapping[str, Mapping[str, Number]]
    context: Mapping[str, Any]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, with the means at the top level."""
        rows = [
            {
                "text": row.text,
                "views": row.views,
                **row.field,
                **{f"teacher_{name}": value for name, value in (row.teacher or {}).items()},
                "point_iou": row.point_iou,
            }
            for row in self.queries
        ]
        heads = {name: dict(numbers) for name, numbers in self.heads.items()}
        context = dict(self.context)
        return {
            **self.numbers,
            "queries": rows,
            "heads": heads,
            **context,
            "notes": list(self.notes),
        }

    def write_json(self, path: StrPath) -> None:
        """Writes :meth:`to_dict` as JSON, at once or not at all.

        Raises:
            F3rmError: If the file cannot be written.
        """
        path = as_path(path)
        text = json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"
        path = path.expanduser().absolute()
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(text, encoding="utf-8")
            aside.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                aside.unlink()
            msg = (
                f"write_json: {str(path)!r} must be a file that can be written, got: {error}. Give "
                "another --json."
            )
            raise F3rmError(msg) from error

    def tables(self) -> list[Table]:
        """Returns what a person reads: queries, means beside the teacher's, heads."""
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
            teacher = row.teacher or {}
            pairs = [
                shown(numbers.get(name), digits=2)
                for name in ("localisation", "miou", "average_precision")
                for numbers in (row.field, teacher)
            ]
            table.add_row(row.text, str(row.views), *pairs, shown(row.point_iou, digits=2))
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


def query_numbers(query: QueryScore) -> dict[str, Number]:
    """Returns one query's means over the views that show it."""
    return {
        "localisation": query.mean(lambda pair: float(pair.localised)),
        "localisation_mask": query.mean(lambda pair: float(pair.localised_mask)),
        "miou": query.mean(lambda pair: pair.iou),
        "miou_minmax": query.mean(lambda pair: pair.iou_minmax),
        "miou_argmax": query.mean(lambda pair: pair.iou_argmax),
        "average_precision": query.average_precision,
        "max_relevancy": query.mean(lambda pair: pair.max_relevancy),
    }


def shown(value: Number, *, digits: int = 3) -> str:
    """Returns a number as it is shown in tables."""
    return "-" if value is None else f"{value:.{digits}f}"
