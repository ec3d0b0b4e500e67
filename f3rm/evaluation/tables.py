"""The printed tables of an evaluation; each line says what its number is."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from rich.box import SIMPLE
from rich.table import Table

from f3rm.language.threshold import Certainty

Number = float | int | None

PAIRED = {
    "localisation": "localisation, box",
    "localisation_mask": "localisation, mask",
    "miou": "mIoU, relevancy > 0.5",
    "miou_minmax": "mIoU, LangSplat's rule",
    "miou_argmax": "mIoU, best phrase wins",
    "miou_boundary": "boundary IoU, relevancy > 0.5",
    "average_precision": "average precision",
    "presence_auroc": "present above absent, view",
    "presence_auroc_scene": "the same, whole scene",
}
"""Numbers of the field and its 2D teacher."""

SINGLE = {
    "miou_ratio": "mIoU / teacher's mIoU",
    "point_accuracy": "points named rightly",
    "point_accuracy_objects": "the same on objects",
    "point_iou": "IoU of points",
    "find_recall": "find: recall, box IoU 0.25",
    "find_precision": "find: precision",
    "find_box_iou": "find: box IoU",
    "find_box_iou_ceiling": "the same of true points",
    "find_centre_error": "find: centre error in m",
    "not_found_recall": "absent prompts not found",
    "not_found_precision": "absent of those not found",
    "psnr": "PSNR in dB",
    "nerfacto_psnr": "PSNR of the --nerfacto run",
}
"""Numbers of the field alone."""

OF_HEADS = {
    "feature_cosine_bilinear": "rendered with extracted features, all pixels",
    "feature_cosine_constant": "the mean training feature with these",
    "feature_cosine_same_points": "rendered, at points that other views see",
    "feature_cosine_teacher_mean": "mean over these views, at the same points",
    "feature_cosine_ratio": "rendered / that mean",
    "consistency": "one point from several views, rendered",
    "consistency_teacher": "the same, extracted",
}
"""Numbers of each feature head."""


def shown(value: Number, *, digits: int = 3) -> str:
    """Formats a number for a table; ``-`` for one that was not measured."""
    return "-" if value is None else f"{value:.{digits}f}"


def query_table(queries: Sequence[Mapping[str, Any]]) -> Table:
    """Returns the table of the queries, the teacher's numbers beside the field's."""
    table = _table("Queries on held-out views (2D: the teacher's answer)", "query")
    for column in ("views", "box", "2D", "mask", "2D", "IoU", "2D", "AP", "2D"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in queries:
        pairs = [
            shown(row.get(f"{who}{name}"), digits=2)
            for name in ("localisation", "localisation_mask", "miou", "average_precision")
            for who in ("", "teacher_")
        ]
        table.add_row(row["text"], str(row["views"]), *pairs)
    return table


def means_table(numbers: Mapping[str, Any]) -> Table:
    """Returns the table of the means, with their intervals and what they are over."""
    table = _table("Means and 95 % intervals (2D: the teacher's)", "")
    for column in ("field", "95 %", "2D", "95 %", "over"):
        table.add_column(column, justify="right", no_wrap=True)
    intervals = numbers["intervals"]
    for name, label in PAIRED.items():
        if numbers[name] is not None:
            teacher = f"teacher_{name}"
            cells = [shown(numbers[name]), _interval(intervals.get(name))]
            cells += [shown(numbers[teacher]), _interval(intervals.get(teacher))]
            table.add_row(label, *cells, _over(intervals.get(name)))
    for name, label in SINGLE.items():
        if numbers[name] is not None:
            interval = intervals.get(name)
            table.add_row(label, shown(numbers[name]), _interval(interval), "", "", _over(interval))
    return table


def _interval(interval: Mapping[str, Any] | None) -> str:
    if interval is None or interval["low"] is None:
        return ""
    digits = 1 if interval["low"] > 10 else 2
    return f"{interval['low']:.{digits}f}-{interval['high']:.{digits}f}"


def _over(interval: Mapping[str, Any] | None) -> str:
    return f"{interval['count']} {interval['unit']}" if interval else ""


def answer_tables(numbers: Mapping[str, Any]) -> list[Table]:
    """Returns the tables of answers: certainty by truth, and absent prompts by kind."""
    tables: list[Table] = []
    if numbers["certainty"]:
        certainty = _table("How certain find is of prompts", "truth")
        for column in get_args(Certainty):
            certainty.add_column(column, justify="right", no_wrap=True)
        for kind, counts in numbers["certainty"].items():
            certainty.add_row(kind.replace("_", " "), *map(str, counts.values()))
        tables.append(certainty)
    if numbers["absent_table"]:
        absent = _table("Absent prompts (2D: the teacher's answer)", "kind")
        for column in ("shared", "prompts", "> 0.5", "2D", "max", "2D", "AUROC", "2D"):
            absent.add_column(column, justify="right", no_wrap=True)
        for row in numbers["absent_table"]:
            cells = [
                shown(row[f"{who}{name}"], digits=2)
                for name in ("accepted", "max_relevancy", "auroc")
                for who in ("", "teacher_")
            ]
            kind = row["kind"].replace("_", " ")
            absent.add_row(kind, str(row["shared_words"]), str(row["prompts"]), *cells)
        absent.caption = (
            "shared: words in common with a present object; > 0.5: share accepted in some view"
        )
        tables.append(absent)
    return tables


def head_table(heads: Mapping[str, Mapping[str, Number]]) -> Table:
    """Returns the table of the heads' features, a column per head."""
    table = _table("Features on held-out views: cosine of ...", "")
    for name in heads:
        table.add_column(name, justify="right", no_wrap=True)
    for key, label in OF_HEADS.items():
        table.add_row(label, *(shown(numbers[key]) for numbers in heads.values()))
    table.caption = "Extracted features are read bilinearly; ns-eval reads them as in training."
    return table


def _table(title: str, first: str) -> Table:
    table = Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column(first, min_width=len(first) + 1)
    return table
